"""NRRD, attached (.nrrd) or detached (.nhdr with one data file): http://teem.sourceforge.net/nrrd/format.html."""

import re
from pathlib import Path
from typing import Final

import numpy as np

from m3di.volumes.formats.header import LPS_TO_RAS, Encoding, Header, checked_dtype, checked_geometry, data_file
from m3di.volumes.formats.voxels import read_plain_start
from stores.errors import CaseError
from stores.geometry import Affine

MAX_HEADER: Final = 1 << 18  # bytes; segmentations describe each of their segments
DTYPES: Final = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
ENCODINGS: Final[dict[str, Encoding]] = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"
}  # fmt: skip
SPACES: Final = {
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
}
UNIT_MM: Final = {"mm": 1.0, "millimeter": 1.0, "m": 1000.0, "um": 0.001, "μm": 0.001, "µm": 0.001, "cm": 10.0}


def parse(path: Path) -> Header:
    """Read the header of a NRRD file.

    Raises:
        CaseError: E_FORMAT, E_HEADER, E_NDIM, E_DTYPE, E_DECODE, E_SPACING, E_AFFINE or E_TOO_LARGE.
    """
    fields, length = _fields(read_plain_start(path, MAX_HEADER), path)
    sizes = tuple(_integers(_required(fields, "sizes", path), path))
    if fields.get("dimension") != str(len(sizes)):
        message = f"{path} has dimension {fields.get('dimension', '')[:20]!r} and {len(sizes)} sizes"
        raise CaseError("E_HEADER", message, hint="write the file anew")
    encoding = ENCODINGS.get(_required(fields, "encoding", path).lower())
    if encoding is None:
        hint = "save it with the encoding raw, gzip or bzip2"
        raise CaseError("E_DECODE", f"{path} has the encoding {fields['encoding'][:20]!r}", hint=hint)
    if any(fields.get(name, "0") != "0" for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise CaseError("E_HEADER", f"{path} skips lines or bytes", hint="write the file anew, without skips")
    detached = fields.get("data file", fields.get("datafile"))
    shape, affine = _place(fields, sizes, path)
    return Header(
        checked_geometry(shape, affine, path),
        _dtype(fields, path),
        path if detached is None else data_file(path, detached),
        encoding=encoding,
        compressed_from=length if detached is None and encoding != "raw" else 0,
        offset=length if detached is None and encoding == "raw" else 0,
    )


def _fields(start: bytes, path: Path) -> tuple[dict[str, str], int]:
    """Fields by lower-case name, and how many bytes the header has."""
    if not re.match(rb"NRRD000[1-5]\r?\n", start):
        raise CaseError("E_FORMAT", f"{path} is not a NRRD file", hint="convert it to .nii.gz")
    end = re.search(rb"\r?\n\r?\n", start)
    head = start[: end.start()] if end else start
    if end is None and len(start) == MAX_HEADER:
        raise CaseError("E_HEADER", f"{path} has a header of over {MAX_HEADER} bytes", hint="write the file anew")
    fields = {}
    for line in (line.decode("utf-8", "surrogateescape") for line in head.splitlines()[1:]):
        if line.startswith("#") or ":=" in line:
            continue
        name, colon, value = line.partition(":")
        if not colon or name.strip().lower() in fields:
            raise CaseError("E_HEADER", f"{path} has a header line that cannot be read", hint="write the file anew")
        fields[name.strip().lower()] = value.strip()
    return fields, end.end() if end else len(start)


def _required(fields: dict[str, str], name: str, path: Path) -> str:
    if name not in fields:
        raise CaseError("E_HEADER", f"{path} has no field {name!r}", hint="write the file anew")
    return fields[name]


def _dtype(fields: dict[str, str], path: Path) -> np.dtype[np.generic]:
    declared = _required(fields, "type", path)
    name = next((code for code, names in DTYPES.items() if declared.lower() in names), None)
    dtype = checked_dtype(name, repr(declared[:20]), path)
    if dtype.itemsize > 1 and fields.get("endian", "").lower() not in ("little", "big"):
        raise CaseError("E_HEADER", f"{path} does not say its byte order", hint="write the file anew")
    return dtype.newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by `checked_geometry`
def _place(fields: dict[str, str], sizes: tuple[int, ...], path: Path) -> tuple[tuple[int, ...], Affine]:
    """Sizes along the axes in space, then along others, and voxel index to RAS+ mm."""
    space = SPACES.get(fields.get("space", "").lower())
    if space is None:
        hint = "save it with a space such as left-posterior-superior, directions and origin"
        raise CaseError("E_AFFINE", f"{path} has no anatomical space ({fields.get('space', '')[:40]!r})", hint=hint)
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", ""))
    columns = [_vector(vector, path) for vector in directions if vector != "none"]
    if len(columns) != 3 or len(directions) != len(sizes):
        message = f"{path} has {len(sizes)} dimensions and {len(columns)} directions in space"
        raise CaseError("E_NDIM", message, hint="give one 3-D volume a file; for one-hot label maps take the argmax")
    affine = np.eye(4)
    affine[:3, :3] = np.stack(columns, axis=1)
    affine[:3, 3] = _vector(fields.get("space origin", "(0,0,0)"), path)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", '"mm"')))
    if len(units) != 1 or not units <= UNIT_MM.keys():
        raise CaseError("E_HEADER", f"{path} has space units {str(sorted(units))[:40]}", hint="save it in mm")
    affine[:3] *= UNIT_MM[units.pop()]
    in_space = [size for size, vector in zip(sizes, directions, strict=True) if vector != "none"]
    others = [size for size, vector in zip(sizes, directions, strict=True) if vector == "none"]
    return (*in_space, *others), space @ affine


def _vector(text: str, path: Path) -> list[float]:
    try:
        values = [float(part) for part in text.strip("() \t").split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise CaseError("E_HEADER", f"{path} has a vector that is not three numbers", hint="write the file anew")
    return values


def _integers(text: str, path: Path) -> list[int]:
    parts = text.split()
    if not parts or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise CaseError("E_HEADER", f"{path} has sizes that are not whole numbers", hint="write the file anew")
    return [int(part) for part in parts]
