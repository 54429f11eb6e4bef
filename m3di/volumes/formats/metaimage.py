"""MetaImage: .mha, or .mhd with one data file (https://itk.org/Wiki/ITK/MetaIO/Documentation); its world is LPS."""

from pathlib import Path
from typing import Final

import numpy as np

from m3di.volumes.formats.header import LPS_TO_RAS, Header, check_spacing, checked_dtype, checked_geometry, data_file
from m3di.volumes.formats.voxels import read_plain_start
from stores.errors import CaseError
from stores.geometry import Affine

MAX_HEADER: Final = 1 << 16  # bytes
DTYPES: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def parse(path: Path) -> Header:
    """Read the header of a MetaImage file.

    Raises:
        CaseError: E_FORMAT, E_HEADER, E_NDIM, E_DTYPE, E_DECODE, E_SPACING, E_AFFINE or E_TOO_LARGE.
    """
    fields, length = _fields(read_plain_start(path, MAX_HEADER), path)
    if fields.get("ObjectType", "Image") != "Image" or "DimSize" not in fields:
        raise CaseError("E_FORMAT", f"{path} is not a MetaImage file", hint="convert it to .nii.gz")
    if _flag(fields, "BinaryData", "True") != "true" or "HeaderSize" in fields:
        raise CaseError("E_DECODE", f"{path} holds text, or voxels at an offset", hint="save it as binary .mha")
    if fields.get("ElementNumberOfChannels", "1") != "1":
        channels = repr(fields["ElementNumberOfChannels"][:20])
        raise CaseError("E_NDIM", f"{path} has {channels} channels", hint="give one channel a file")
    sizes = tuple(int(value) for value in _numbers(fields, "DimSize", path))
    if len(sizes) < 3:
        raise CaseError("E_NDIM", f"{path} has {len(sizes)} dimensions, not 3", hint="give a 3-D scan")
    compressed = _flag(fields, "CompressedData", "False") == "true"
    big = "true" in (_flag(fields, "BinaryDataByteOrderMSB", ""), _flag(fields, "ElementByteOrderMSB", ""))
    declared = fields.get("ElementType", "")
    attached = fields["ElementDataFile"].upper() == "LOCAL"
    begin = length if attached else 0
    return Header(
        checked_geometry(sizes, _affine(fields, len(sizes), path), path),
        checked_dtype(DTYPES.get(declared), repr(declared[:20]), path).newbyteorder(">" if big else "<"),
        path if attached else data_file(path, fields["ElementDataFile"]),
        encoding="zlib" if compressed else "raw",
        compressed_from=begin if compressed else 0,
        offset=0 if compressed else begin,
    )


def _fields(start: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields by name up to `ElementDataFile`, which is the last, and how many bytes they take."""
    fields: dict[str, str] = {}
    position = 0
    while (end := start.find(b"\n", position)) >= 0:
        name, equals, value = start[position:end].decode("utf-8", "surrogateescape").partition("=")
        position = end + 1
        if not equals or name.strip() in fields:
            break
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, position
    if "DimSize" in fields:
        message = f"{path} has a header that cannot be read to its end"
        raise CaseError("E_HEADER", message, hint="write the file anew")
    raise CaseError("E_FORMAT", f"{path} is not a MetaImage file", hint="convert it to .nii.gz")


def _flag(fields: dict[str, str], name: str, default: str) -> str:
    return fields.get(name, default).lower()


def _numbers(fields: dict[str, str], name: str, path: Path) -> list[float]:
    try:
        values = [float(part) for part in fields[name].split()]
    except ValueError:
        values = []
    finite = bool(values) and bool(np.isfinite(values).all()) and max(abs(value) for value in values) < 2**31
    if not finite or (name == "DimSize" and any(value != int(value) for value in values)):
        raise CaseError("E_HEADER", f"{path} has a field {name} that is no list of numbers", hint="write it anew")
    return values


def _affine(fields: dict[str, str], rank: int, path: Path) -> Affine:
    """Voxel index to RAS+ mm; `TransformMatrix` lists the direction of one axis after the other."""
    names = {
        "spacing": ("ElementSpacing", "ElementSize"),
        "origin": ("Offset", "Position", "Origin"),
        "direction": ("TransformMatrix", "Orientation", "Rotation"),
    }
    found = {key: next((name for name in options if name in fields), None) for key, options in names.items()}
    if found["spacing"] is None or found["direction"] is None:
        hint = "save it with ElementSpacing, TransformMatrix and Offset"
        raise CaseError("E_AFFINE", f"{path} does not say its spacing or orientation", hint=hint)
    spacing = _numbers(fields, found["spacing"], path)
    origin = _numbers(fields, found["origin"], path) if found["origin"] else [0.0] * rank
    direction = _numbers(fields, found["direction"], path)
    if (len(spacing), len(origin), len(direction)) != (rank, rank, rank * rank):
        raise CaseError("E_HEADER", f"{path} has geometry fields of unlike lengths", hint="write the file anew")
    check_spacing(spacing[:3], path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (rank, rank))[:3, :3].T * spacing[:3]
    affine[:3, 3] = origin[:3]
    return LPS_TO_RAS @ affine
