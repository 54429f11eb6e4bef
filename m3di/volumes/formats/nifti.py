"""NIfTI-1 and -2, single file or .hdr/.img pair: the header, and the affine that it means (NIfTI-1 standard).

The sform is taken where it is the scanner's grid: orthogonal, and with the voxel sizes of `pixdim`. A sform that
scales or shears into a template's space gives way to the qform; a file with neither has no left and right.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from m3di.volumes.formats.header import (
    MAX_SHEAR,
    Header,
    check_spacing,
    checked_dtype,
    checked_geometry,
    checked_shape,
    companion,
    shear_of,
)
from m3di.volumes.formats.voxels import read_start
from stores.errors import CaseError
from stores.geometry import Affine

MAX_OFFSET: Final = 1 << 26  # bytes; header extensions come before the voxels
DTYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip
UNIT_MM: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # unknown, metre, mm, micron
_HEADER_BYTES: Final = (348, 540)
_SINGLE, _PAIR = (b"n+1", b"n+2"), (b"ni1", b"ni2")


@dataclass(frozen=True)
class _Fields:
    """Fields of the header by their names in the standard."""

    dim: tuple[int, ...]
    datatype: int
    pixdim: tuple[float, ...]
    vox_offset: float
    scl_slope: float
    scl_inter: float
    xyzt_units: int
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    srow: tuple[float, ...]


def parse(path: Path) -> Header:
    """Read the header of a NIfTI file, compressed or not; of a pair, either file may be given.

    Raises:
        CaseError: E_NOT_NIFTI, E_HEADER, E_NDIM, E_DTYPE, E_SPACING, E_AFFINE, E_TOO_LARGE or E_TRUNCATED.
    """
    header_file = _partner(path, ".hdr") if _stem_suffix(path) == ".img" else path
    head, gzipped = read_start(header_file, _HEADER_BYTES[-1])
    order, version, paired = _identify(head, header_file)
    fields = _fields_1(order, head) if version == 1 else _fields_2(order, head)
    shape = checked_shape(_sizes(fields.dim, path), path)
    dtype = checked_dtype(DTYPES.get(fields.datatype), f"NIfTI {fields.datatype}", path)
    slope, intercept = _scaling(fields, path)
    file = _partner(header_file, ".img") if paired else header_file
    if paired:
        gzipped = file.name.lower().endswith(".gz")
    first = 0 if paired else _HEADER_BYTES[version - 1]
    if not first <= fields.vox_offset < MAX_OFFSET or fields.vox_offset != int(fields.vox_offset):
        raise CaseError("E_HEADER", f"{path} has voxel offset {fields.vox_offset}", hint="write the file anew")
    return Header(
        checked_geometry(shape, _affine(fields, path), path),
        dtype.newbyteorder("<" if order == "<" else ">"),
        file,
        offset=int(fields.vox_offset),
        encoding="gzip" if gzipped else "raw",
        slope=slope,
        intercept=intercept,
        header_file=header_file,
    )


def _identify(head: bytes, path: Path) -> tuple[str, int, bool]:
    """Byte order, version, and whether the voxels are in a file of their own."""
    for order in "<>":
        size = struct.unpack_from(order + "i", head)[0] if len(head) >= 4 else 0
        if size not in _HEADER_BYTES:
            continue
        if len(head) < size:
            raise CaseError("E_TRUNCATED", f"{path} ends within its header", hint="copy it again")
        version = _HEADER_BYTES.index(size) + 1
        magic = head[344:347] if version == 1 else head[4:7]
        if magic == _SINGLE[version - 1] or magic == _PAIR[version - 1]:
            return order, version, magic == _PAIR[version - 1]
    raise CaseError("E_NOT_NIFTI", f"{path} is not a NIfTI file", hint="convert it to .nii or .nii.gz")


def _fields_1(order: str, head: bytes) -> _Fields:
    def at(offset: int, form: str) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, head, offset)

    return _Fields(
        dim=struct.unpack_from(order + "8h", head, 40),
        datatype=struct.unpack_from(order + "h", head, 70)[0],
        pixdim=at(76, "8f"),
        vox_offset=at(108, "f")[0],
        scl_slope=at(112, "f")[0],
        scl_inter=at(116, "f")[0],
        xyzt_units=head[123],
        qform_code=struct.unpack_from(order + "h", head, 252)[0],
        sform_code=struct.unpack_from(order + "h", head, 254)[0],
        quatern=at(256, "6f"),
        srow=at(280, "12f"),
    )


def _fields_2(order: str, head: bytes) -> _Fields:
    def at(offset: int, form: str) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, head, offset)

    return _Fields(
        dim=struct.unpack_from(order + "8q", head, 16),
        datatype=struct.unpack_from(order + "h", head, 12)[0],
        pixdim=at(104, "8d"),
        vox_offset=float(at(168, "q")[0]),
        scl_slope=at(176, "d")[0],
        scl_inter=at(184, "d")[0],
        xyzt_units=struct.unpack_from(order + "i", head, 500)[0],
        qform_code=struct.unpack_from(order + "i", head, 344)[0],
        sform_code=struct.unpack_from(order + "i", head, 348)[0],
        quatern=at(352, "6d"),
        srow=at(400, "12d"),
    )


def _sizes(dim: tuple[int, ...], path: Path) -> tuple[int, ...]:
    if not 1 <= dim[0] <= 7:
        raise CaseError("E_HEADER", f"{path} declares {dim[0]} dimensions", hint="write the file anew")
    return dim[1 : dim[0] + 1]


def _scaling(fields: _Fields, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0, or one that is no number, means that values are stored as they are."""
    if fields.scl_slope == 0 or not np.isfinite(fields.scl_slope):
        return 1.0, 0.0
    if not np.isfinite(fields.scl_inter):
        message = f"{path} scales its values by {fields.scl_slope:g}, and adds {fields.scl_inter}"
        raise CaseError("E_HEADER", message, hint="write the file anew")
    return fields.scl_slope, fields.scl_inter


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by `checked_geometry`
def _affine(fields: _Fields, path: Path) -> Affine:
    """Voxel index to RAS+ mm."""
    unit = UNIT_MM.get(fields.xyzt_units & 7)
    if unit is None:
        raise CaseError("E_HEADER", f"{path} has spatial unit {fields.xyzt_units & 7}", hint="write the file anew")
    sizes = np.abs(fields.pixdim[1:4])
    check_spacing(sizes * unit, path)
    scale = np.diag([unit, unit, unit, 1.0])
    sform = np.vstack([np.reshape(fields.srow, (3, 4)), [0, 0, 0, 1]])
    found = np.linalg.norm(sform[:3, :3], axis=0)
    scanner_grid = shear_of(sform) <= MAX_SHEAR and np.allclose(found, sizes, rtol=0.01)
    if fields.sform_code > 0 and (scanner_grid or fields.qform_code <= 0):
        return scale @ sform
    if fields.qform_code > 0:
        return scale @ _qform(fields, path)
    hint = "set its sform or qform with the tool that wrote it: left and right cannot be guessed"
    raise CaseError("E_AFFINE", f"{path} declares no orientation (sform and qform codes are 0)", hint=hint)


def _qform(fields: _Fields, path: Path) -> Affine:
    """The affine of the quaternion form, method 2 of the standard."""
    b, c, d = fields.quatern[:3]
    rest = 1.0 - (b * b + c * c + d * d)
    if not rest > -1e-5:  # NaN fails too
        raise CaseError("E_AFFINE", f"{path} has a quaternion longer than 1", hint="write its orientation anew")
    a = max(rest, 0.0) ** 0.5
    rotation = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ])  # fmt: skip
    handedness = -1.0 if fields.pixdim[0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.abs(fields.pixdim[1:4]) * [1, 1, handedness]
    affine[:3, 3] = fields.quatern[3:]
    return affine


def _stem_suffix(path: Path) -> str:
    """`.hdr`, `.img` or `.nii`, without a `.gz` after it."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _partner(path: Path, suffix: str) -> Path:
    """The other file of a pair: same name, compressed or not."""
    stem = Path(path.name[:-3] if path.name.lower().endswith(".gz") else path.name).stem
    candidates = [path.with_name(stem + suffix + end) for end in ("", ".gz")]
    return companion(path, next((file for file in candidates if file.exists()), candidates[0]))
