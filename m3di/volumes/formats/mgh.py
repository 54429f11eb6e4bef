"""MGH and MGZ, FreeSurfer's format, big-endian, RAS: surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat."""

import struct
from pathlib import Path
from typing import Final

import numpy as np

from m3di.volumes.formats.header import Header, check_spacing, checked_dtype, checked_geometry, checked_shape
from m3di.volumes.formats.voxels import read_start
from stores.errors import CaseError
from stores.geometry import Affine

HEADER_BYTES: Final = 284
DTYPES: Final = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}


def parse(path: Path) -> Header:
    """Read the header of a MGH or MGZ file.

    Raises:
        CaseError: E_FORMAT, E_TRUNCATED, E_NDIM, E_DTYPE, E_SPACING, E_AFFINE or E_TOO_LARGE.
    """
    start, gzipped = read_start(path, HEADER_BYTES)
    if len(start) < HEADER_BYTES:
        raise CaseError("E_TRUNCATED", f"{path} ends within its header", hint="copy it again")
    version, *dims, number, _dof = struct.unpack_from(">7i", start)
    if version != 1:
        raise CaseError("E_FORMAT", f"{path} is not a MGH file", hint="convert it to .nii.gz")
    shape = checked_shape(tuple(dims), path)
    return Header(
        checked_geometry(shape, _affine(start, shape, path), path),
        checked_dtype(DTYPES.get(number), f"MGH {number}", path),
        path,
        offset=HEADER_BYTES,
        encoding="gzip" if gzipped else "raw",
    )


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by `checked_geometry`
def _affine(start: bytes, shape: tuple[int, int, int], path: Path) -> Affine:
    """Voxel index to RAS+ mm: the header gives directions, spacing, and where the middle of the grid is."""
    (good,) = struct.unpack_from(">h", start, 28)
    if good <= 0:
        hint = "set its orientation with mri_convert: left and right cannot be guessed"
        raise CaseError("E_AFFINE", f"{path} declares no orientation", hint=hint)
    spacing = struct.unpack_from(">3f", start, 30)
    check_spacing(spacing, path)
    direction = np.reshape(struct.unpack_from(">9f", start, 42), (3, 3)).T
    centre = struct.unpack_from(">3f", start, 78)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    return affine
