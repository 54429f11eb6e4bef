"""Label maps drawn on DICOM slices: a folder of PNG masks, one a slice, as CHAOS gives them."""

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from m3di.volumes.formats import dicom
from m3di.volumes.formats.header import require_file
from stores.errors import CaseError

MAX_PIXELS: Final = 1 << 26


def read_masks(folder: Path, series: Path, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Read the masks of a series and put them in the order of its slices in space.

    A mask belongs to the slice whose file has its name; when the names differ, the first mask in the order of names
    belongs to the first file in the order of names, as the challenge's own code has it.

    Args:
        folder: The PNG files.
        series: Folder of the DICOM series.
        shape: (columns, rows, slices) of the series.

    Returns:
        (i, j, k) grey values.

    Raises:
        CaseError: E_LABEL_GEOMETRY, when numbers or sizes differ; E_DECODE, for a file that is no grey picture.
    """
    masks = sorted(folder.glob("*.png"), key=_natural)
    slices = [one.file for one in dicom.stack(dicom.select(series, ""))[0]]
    if len(masks) != len(slices):
        message = f"{folder} has {len(masks)} masks for {len(slices)} slices"
        raise CaseError("E_LABEL_GEOMETRY", message, hint="give one mask a slice")
    by_name = {mask.stem: mask for mask in masks}
    if by_name.keys() != {file.stem for file in slices}:
        by_name = dict(zip((file.stem for file in sorted(slices, key=_natural)), masks, strict=True))
    voxels = np.empty(shape, np.uint8, order="F")
    for k, file in enumerate(slices):
        voxels[:, :, k] = _read(by_name[file.stem], shape[:2]).T
    return voxels


def _read(path: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    require_file(path)
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.size != size:
                message = f"mask {path} has {picture.size} pixels, its slice {size}"
                raise CaseError("E_LABEL_GEOMETRY", message, hint="draw masks on the slices' own grid")
            if picture.mode not in ("L", "1", "P", "I;16", "I") or picture.width * picture.height > MAX_PIXELS:
                raise CaseError("E_DECODE", f"mask {path} is no grey picture", hint="save it as 8-bit grey PNG")
            return np.asarray(picture.convert("L"), np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise CaseError("E_DECODE", f"mask {path} cannot be read", hint="copy it again") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key in which `b10` comes after `b2`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem) if part]
