"""A strict look at a NIfTI file before any library reads it: SimpleITK pads a truncated one with zeros, silently."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from stores.errors import CaseError

SLACK: Final = 1 << 20  # bytes after the voxels that are tolerated: extensions, padding
MAX_VOXELS: Final = 1 << 31
SPACING_MM: Final = (0.01, 100.0)
SHEAR: Final = 1e-3  # largest cosine between two axes
DTYPE_BYTES: Final = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
_HEADER_BYTES: Final = {348: 348, 540: 540}
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Header:
    """What a NIfTI header declares.

    Attributes:
        shape: Voxels along i, j, k.
        spacing: Of the header, in its own unit.
        num_bytes: Size of the uncompressed file up to the last voxel.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    num_bytes: int


def check_nifti(path: Path) -> Header:
    """Check a NIfTI-1 or -2 single file to its last byte; a gzip stream is read to its checksum.

    Raises:
        CaseError: E_NOT_FILE, E_EMPTY, E_NOT_NIFTI, E_NDIM, E_DTYPE, E_SPACING, E_HEADER, E_TOO_LARGE,
            E_TRUNCATED or E_CORRUPT.
    """
    if not path.exists():
        raise CaseError("E_MISSING", f"{path} does not exist", hint="check the manifest")
    if not path.is_file():
        raise CaseError("E_NOT_FILE", f"{path} is not a regular file", hint="give a scan's file")
    if path.stat().st_size == 0:
        raise CaseError("E_EMPTY", f"{path} has no bytes", hint="copy it again")
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = _Gzip(file, path) if gzipped else file
        header = _parse(stream.read(540), path)
        size = _measure(stream, 540, header.num_bytes, path)
    if size < header.num_bytes:
        message = f"{path} has {size} bytes of voxel data and header, {header.num_bytes} are declared"
        raise CaseError("E_TRUNCATED", message, hint="copy it again")
    return header


def _parse(head: bytes, path: Path) -> Header:
    order, version = _byte_order(head, path)
    if version == 1:
        dims = struct.unpack_from(order + "8h", head, 40)
        dtype = struct.unpack_from(order + "h", head, 70)[0]
        pixdim = struct.unpack_from(order + "8f", head, 76)
        offset = struct.unpack_from(order + "f", head, 108)[0]
    else:
        dtype = struct.unpack_from(order + "h", head, 12)[0]
        dims = struct.unpack_from(order + "8q", head, 16)
        pixdim = struct.unpack_from(order + "8d", head, 104)
        offset = struct.unpack_from(order + "q", head, 168)[0]
    shape = _shape(dims, path)
    if dtype not in DTYPE_BYTES:
        hint = "save it with whole or real numbers, one value a voxel"
        raise CaseError("E_DTYPE", f"{path} has NIfTI data type {dtype}", hint=hint)
    spacing = (abs(float(pixdim[1])), abs(float(pixdim[2])), abs(float(pixdim[3])))
    low, high = SPACING_MM
    if not all(np.isfinite(s) and low <= s <= high for s in spacing):
        raise CaseError("E_SPACING", f"{path} has spacing {spacing}", hint=f"it must lie in {low} to {high} mm")
    if not (np.isfinite(offset) and 0 <= offset < SLACK * 64):
        raise CaseError("E_HEADER", f"{path} has voxel offset {offset}", hint="write the file anew")
    return Header(shape, spacing, int(offset) + int(np.prod(shape, dtype=object)) * DTYPE_BYTES[dtype])


def _byte_order(head: bytes, path: Path) -> tuple[str, int]:
    """Byte order and version, from the header's own size."""
    for order in "<>":
        size = struct.unpack_from(order + "i", head)[0] if len(head) >= 4 else 0
        if size in _HEADER_BYTES:
            if len(head) < size:
                raise CaseError("E_TRUNCATED", f"{path} ends within its header", hint="copy it again")
            magic = head[344:348] if size == 348 else head[4:8]
            if magic[:3] in (b"n+1", b"n+2"):
                return order, 1 if size == 348 else 2
    raise CaseError("E_NOT_NIFTI", f"{path} is not a NIfTI file", hint="convert it to .nii or .nii.gz")


def _shape(dims: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    rank = dims[0]
    if not 1 <= rank <= 7 or any(d < 1 for d in dims[1 : rank + 1]):
        raise CaseError("E_HEADER", f"{path} declares dimensions {dims}", hint="write the file anew")
    sizes = dims[1 : rank + 1]
    if rank < 3 or any(size != 1 for size in sizes[3:]):
        hint = "give one 3-D volume a file; split time points or channels"
        raise CaseError("E_NDIM", f"{path} has shape {sizes}", hint=hint)
    if int(np.prod(sizes, dtype=object)) > MAX_VOXELS:
        raise CaseError("E_TOO_LARGE", f"{path} declares {sizes} voxels", hint=f"at most {MAX_VOXELS} are read")
    return sizes[0], sizes[1], sizes[2]


def _measure(stream: "_Gzip | object", already: int, declared: int, path: Path) -> int:
    """Read to the end and count, with a bound on what a small file may expand to."""
    size = already
    while chunk := stream.read(_CHUNK):  # type: ignore[attr-defined]
        size += len(chunk)
        if size > declared + SLACK:
            message = f"{path} holds more than the {declared} bytes it declares"
            raise CaseError("E_TOO_LARGE", message, hint="write the file anew")
    return size


class _Gzip:
    """Reads a gzip file (members in a row allowed) to its end, so that its checksums count."""

    def __init__(self, file: object, path: Path) -> None:
        self._file = file
        self._path = path
        self._inflate = zlib.decompressobj(wbits=31)
        self._raw = b""

    def read(self, count: int) -> bytes:
        """Up to `count` uncompressed bytes; fewer only at the end."""
        parts, missing = [], count
        while missing:
            part = self._more(missing)
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _more(self, count: int) -> bytes:
        while True:
            if self._inflate.eof:
                self._raw = self._inflate.unused_data or self._file.read(_CHUNK)  # type: ignore[attr-defined]
                if not self._raw.strip(b"\0"):
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)
            elif not self._raw:
                self._raw = self._file.read(_CHUNK)  # type: ignore[attr-defined]
                if not self._raw:
                    message = f"{self._path} ends within its gzip stream"
                    raise CaseError("E_TRUNCATED", message, hint="copy it again")
            try:
                part = self._inflate.decompress(self._raw, count)
            except zlib.error as error:
                message = f"{self._path} fails its gzip checksum: {error}"
                raise CaseError("E_CORRUPT", message, hint="copy it again") from error
            self._raw = self._inflate.unconsumed_tail
            if part:
                return part
