"""Label maps drawn on DICOM slices: a folder of PNG masks, one a slice, as CHAOS gives them."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from m3di.volumes.formats import dicom
from m3di.volumes.formats.header import require_file
from stores.errors import CaseError


def read_masks(folder: Path, series: Path, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Read the masks of a series and put them in the order of its slices in space.

    The first mask in the order of names belongs to the first file in the order of names, as the challenge's own code
    has it; so a mask belongs to the slice whose file has its name, when all names are the same.

    Args:
        folder: The PNG files.
        series: Folder of the DICOM series.
        shape: (columns, rows, slices) of the series.

    Returns:
        (i, j, k) grey values.

    Raises:
        CaseError: E_LABEL_GEOMETRY, when numbers or sizes differ; E_LABEL_VALUES, for values over 255; E_DECODE, for
            a file that is no grey picture; as `dicom.select` and `dicom.stack`.
    """
    masks = masks_in(folder)
    slices = dicom.stack(dicom.select(series, ""))[0]
    if len(masks) != len(slices):
        message = f"{folder} has {len(masks)} masks for {len(slices)} slices"
        raise CaseError("E_LABEL_GEOMETRY", message, hint="give one mask a slice")
    order = sorted(range(len(slices)), key=lambda k: (_natural(slices[k].file), slices[k].frame))
    voxels = np.empty(shape, np.uint8, order="F")
    for k, mask in zip(order, masks, strict=True):
        voxels[:, :, k] = _read(mask, shape[:2]).T
    return voxels


def masks_in(folder: Path) -> list[Path]:
    """The PNG files of a folder in natural order, hidden ones left out."""
    return sorted((path for path in folder.glob("*.png") if not path.name.startswith(".")), key=_natural)


def _read(path: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    require_file(path)
    try:
        with warnings.catch_warnings(action="error"), Image.open(path, formats=["PNG"]) as picture:
            if picture.size != size:
                sizes = [f"{width} x {height}" for width, height in (picture.size, size)]
                message = f"mask {path} has {sizes[0]} pixels, its slice {sizes[1]}"
                raise CaseError("E_LABEL_GEOMETRY", message, hint="draw masks on the slices' own grid")
            if picture.mode not in ("L", "1", "P", "I;16", "I"):
                raise CaseError("E_DECODE", f"mask {path} is no grey picture", hint="save it as 8-bit grey PNG")
            values = np.asarray(picture if picture.mode[0] == "I" else picture.convert("L"))
    except CaseError:
        raise
    except Exception as error:  # a decoder of hostile bytes: whatever it stumbles over, the file is at fault
        message = f"mask {path} cannot be read ({type(error).__name__})"
        raise CaseError("E_DECODE", message, hint="copy it again") from None
    if values.max() > np.iinfo(np.uint8).max:
        message = f"mask {path} holds {values.max()}"
        raise CaseError("E_LABEL_VALUES", message, hint="save it as 8-bit grey PNG")
    return values.astype(np.uint8)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which `b10` comes after `b2`, and no two names are equal."""
    parts = [part for part in re.split("([0-9]+)", path.stem) if part]
    return [*((int(part), "") if part[0] in "0123456789" else (-1, part) for part in parts), (-2, path.stem)]
