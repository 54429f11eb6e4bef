"""Questions that are files: an image, or a whole scan."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from stores.errors import RefusedError
from stores.recipe import Recipe

PICTURE_HINT: Final = "give a PNG or JPEG file; a scan is given by --scan"

Images = npt.NDArray[np.uint8]


def read_image(path: Path) -> Images:
    """Grey pixels (1, y, x) of a PNG or JPEG file.

    Raises:
        RefusedError: E_MISSING or E_FORMAT.
    """
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415

    if not path.is_file():
        raise RefusedError("E_MISSING", f"{path} is not a file", hint=PICTURE_HINT)
    try:
        return np.array(Image.open(path).convert("L"))[None]
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise RefusedError("E_FORMAT", f"{path} is not an image: {error}", hint=PICTURE_HINT) from error


def read_scan_slices(path: Path, recipe: Recipe) -> list[Images]:
    """The slices of a scan as a store of this recipe would show them to its teacher: per plane (s, y, x).

    Raises:
        RefusedError: E_MISSING, E_FORMAT or E_CONFIG, when it is not one scan, or the store keeps no slices.
        CaseError: When the scan cannot be used.
    """
    from m3di.volumes import readers  # noqa: PLC0415
    from m3di.volumes.layouts import discover  # noqa: PLC0415
    from m3di.volumes.prepare import render  # noqa: PLC0415

    if not path.exists():
        raise RefusedError("E_MISSING", f"there is no scan at {path}", hint="give a scan's file, or its DICOM folder")
    cases = discover(path)
    if len(cases) != 1:
        message = f"{path} holds {len(cases)} scans"
        raise RefusedError("E_CONFIG", message, hint="give one scan's file, or the folder of one DICOM series")
    if not recipe.slice_size:
        raise RefusedError("E_CONFIG", "this store keeps no slices", hint="build it with volumes.slice_size over 0")
    (case,) = cases
    volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
    _, valid, images = render(volume, recipe)
    return [stack[there[list(recipe.positions)]] for stack, there in zip(images.values(), valid, strict=True)]
