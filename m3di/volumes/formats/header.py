"""What a scan's header declares, and the limits that every format must keep before a voxel is read.

Nothing is allocated by size until `Header` has been built: shape, type, spacing and axes are checked here.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from m3di.volumes.manifests import inside
from stores.errors import CaseError, RefusedError
from stores.geometry import Affine, Geometry

Encoding = Literal["raw", "gzip", "zlib", "bzip2"]

MAX_VOXELS: Final = 1 << 28  # in one scan: a CT of 512 x 512 x 1000 fits, and its float32 copy stays at 1 GiB
MAX_BYTES: Final = 1 << 30  # of voxels in one scan
MAX_SIDE: Final = 1 << 13  # voxels along one axis: the weights that resample it stay small
SPACING_MM: Final = (0.01, 100.0)
MAX_EXTENT_MM: Final = 5000.0
MAX_SHEAR: Final = 1e-3  # largest cosine between two axes
LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Header:
    """Where a scan's voxels are, of what type, and where they lie in space.

    Attributes:
        geometry: Shape along the stored axes, and affine to RAS+ mm.
        dtype: Type of the stored numbers, with byte order.
        file: File that holds the voxels.
        offset: Where they begin in it, after decompression.
        encoding: How the bytes are compressed.
        compressed_from: Where the compressed bytes begin in the file.
        slope: Value = slope * stored + intercept.
        intercept: See `slope`.
        order: `F` when the first axis runs fastest.
        header_file: File that the header came from, when it may be another one than was asked for.
    """

    geometry: Geometry
    dtype: np.dtype[Any]
    file: Path
    offset: int = 0
    encoding: Encoding = "raw"
    compressed_from: int = 0
    slope: float = 1.0
    intercept: float = 0.0
    order: Literal["F", "C"] = "F"
    header_file: Path | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the voxels."""
        return int(np.prod(self.geometry.shape, dtype=object)) * self.dtype.itemsize


@np.errstate(over="ignore")  # what is too large becomes infinite, and is refused
def checked_geometry(sizes: tuple[int, ...], affine: Affine, path: Path) -> Geometry:
    """Build a scan's geometry when it is one that can be trusted.

    Args:
        sizes: Voxels along the stored axes; axes of one voxel after the third are dropped.
        affine: 4 x 4, voxel index to RAS+ mm.
        path: The file, for messages.

    Raises:
        CaseError: E_NDIM, E_HEADER, E_TOO_LARGE, E_AFFINE or E_SPACING.
    """
    shape = checked_shape(sizes, path)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise CaseError("E_AFFINE", f"{path} has an affine that is not finite", hint="write its orientation anew")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    check_spacing(spacing, path)
    if max(spacing * shape) > MAX_EXTENT_MM:
        message = f"{path} would be {max(spacing * shape) / 1000:.3g} m long"
        raise CaseError("E_SPACING", message, hint=f"at most {MAX_EXTENT_MM / 1000:g} m are read: check the units")
    shear = shear_of(affine)
    if shear > MAX_SHEAR:
        message = f"{path} has axes that are not orthogonal (cosine {shear:.3g})"
        raise CaseError("E_AFFINE", message, hint="resample it to a grid with orthogonal axes")
    return Geometry(shape, affine)


def check_spacing(spacing: Iterable[float], path: Path) -> None:
    """Refuse a spacing in mm that no scanner makes: zero, negative, not a number, out of `SPACING_MM`.

    Raises:
        CaseError: E_SPACING.
    """
    low, high = SPACING_MM
    values = list(spacing)
    if not all(low <= value <= high for value in values):  # NaN fails too
        text = " x ".join(f"{value:.6g}" for value in values)
        hint = f"it must lie in {low} to {high} mm: check the header's units"
        raise CaseError("E_SPACING", f"{path} has a spacing of {text} mm", hint=hint)


def checked_shape(sizes: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """Three positive sizes, from what a header declares.

    Raises:
        CaseError: E_HEADER, E_NDIM or E_TOO_LARGE.
    """
    text = " x ".join(str(size) for size in sizes)
    if any(size < 1 for size in sizes):
        raise CaseError("E_HEADER", f"{path} declares {text} voxels", hint="write the file anew")
    if len(sizes) < 3:
        raise CaseError("E_NDIM", f"{path} is an image of {text} pixels, not a volume", hint="give a 3-D scan")
    if any(size != 1 for size in sizes[3:]):
        hint = "give one 3-D volume a file: split time points or channels; for one-hot label maps take the argmax"
        raise CaseError("E_NDIM", f"{path} has {len(sizes)} dimensions ({text})", hint=hint)
    if max(sizes[:3]) > MAX_SIDE or int(np.prod(sizes[:3], dtype=object)) > MAX_VOXELS:
        hint = f"at most {MAX_SIDE} a side and {MAX_VOXELS} in all are read; crop or downsample the scan"
        raise CaseError("E_TOO_LARGE", f"{path} declares {text} voxels", hint=hint)
    return sizes[0], sizes[1], sizes[2]


def checked_dtype(name: str | None, declared: object, path: Path) -> np.dtype[Any]:
    """A real number type.

    Raises:
        CaseError: E_DTYPE, when `name` is None: the declared type is not a single real number a voxel.
    """
    if name is None:
        hint = "save it with whole or real numbers, one value a voxel"
        raise CaseError("E_DTYPE", f"{path} has voxels of type {declared}", hint=hint)
    return np.dtype(name)


def shear_of(affine: Affine) -> float:
    """Largest cosine between two axes of an affine: 0 for orthogonal axes."""
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not norms.all() or not np.isfinite(norms).all():
        return 1.0
    axes = affine[:3, :3] / norms
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def data_file(header: Path, name: str) -> Path:
    """The one file of voxels that a text header names, which must lie in its folder or below.

    Raises:
        CaseError: E_HEADER or E_NOT_FILE.
    """
    try:
        if not name.startswith("LIST") and "%" not in name:
            return companion(header, inside(header.parent, name, links=True))
    except RefusedError:
        pass
    message = f"{header} names its voxels with a list, a pattern, or a path outside its folder"
    raise CaseError("E_HEADER", message, hint="save it as one file that holds its voxels itself")


def companion(path: Path, file: Path) -> Path:
    """The other file of a scan; it may be a link that leaves the folder only where the first file is one.

    Raises:
        CaseError: E_NOT_FILE.
    """
    folder, first, other = (Path(os.path.realpath(one)) for one in (path.parent, path, file))
    if first.is_relative_to(folder) and not other.is_relative_to(folder):
        raise CaseError("E_NOT_FILE", f"{file} is a link that leaves its folder", hint="copy the file there")
    return file


def require_file(path: Path) -> int:
    """Size of a regular file that has bytes.

    Raises:
        CaseError: E_MISSING, E_NOT_FILE or E_EMPTY.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        hint = "check the manifest, or copy the file again"
        raise CaseError("E_MISSING", f"{path} does not exist", hint=hint) from error
    if not stat.S_ISREG(status.st_mode):
        raise CaseError("E_NOT_FILE", f"{path} is not a regular file", hint="give a scan's file")
    if status.st_size == 0:
        raise CaseError("E_EMPTY", f"{path} has no bytes", hint="copy it again")
    return status.st_size
