"""Reading NIfTI strictly: every declared byte must be there, and every voxel comes out as it was stored.

ITK's reader pads a truncated file with zeros and turns NaN into 0, both silently; so the voxels are read here, from
the same pass that checks the file to its last byte, and ITK is asked for the geometry only.
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from stores.errors import CaseError

SLACK: Final = 1 << 20  # bytes after the voxels that are tolerated: extensions, padding
MAX_VOXELS: Final = 1 << 31
SPACING_MM: Final = (0.01, 100.0)
MAX_OFFSET: Final = 1 << 26  # bytes; header extensions come before the voxels
DTYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"
}  # fmt: skip
_HEADER_BYTES: Final = (348, 540)
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Header:
    """What a NIfTI header declares.

    Attributes:
        shape: Voxels along i, j, k.
        dtype: Type of the stored numbers, with byte order.
        offset: Where the voxels begin in the uncompressed file.
        slope: Value = slope * stored + intercept; 0 means that values are stored as they are.
        intercept: See `slope`.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float

    @property
    def num_bytes(self) -> int:
        """Size of the uncompressed file up to the last voxel."""
        return self.offset + int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def read_nifti(path: Path) -> npt.NDArray[Any]:
    """Read a NIfTI-1 or -2 single file, compressed or not; a gzip stream is read to its checksum.

    Returns:
        (i, j, k) voxels in scanner units; float32 where the header scales them.

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
        stream: _Stream = _Gzip(file, path) if gzipped else file
        head = stream.read(_HEADER_BYTES[-1])
        header = _parse(head, path)
        content = head + _read_rest(stream, header.num_bytes - len(head), path)
    if len(content) < header.num_bytes:
        message = f"{path} has {len(content)} bytes of header and voxels, {header.num_bytes} are declared"
        raise CaseError("E_TRUNCATED", message, hint="copy it again")
    voxels = np.frombuffer(content, header.dtype, int(np.prod(header.shape)), header.offset)
    return _scaled(voxels.reshape(header.shape, order="F"), header)


def _scaled(voxels: npt.NDArray[Any], header: Header) -> npt.NDArray[Any]:
    """Apply the header's slope and intercept, if it has any that say something."""
    slope, intercept = header.slope, header.intercept
    if slope == 0 or not np.isfinite([slope, intercept]).all() or (slope, intercept) == (1.0, 0.0):
        return voxels.astype(header.dtype.newbyteorder("="), copy=False)
    return (voxels.astype(np.float64) * slope + intercept).astype(np.float32)


def _parse(head: bytes, path: Path) -> Header:
    order, version = _byte_order(head, path)
    if version == 1:
        dims = struct.unpack_from(order + "8h", head, 40)
        number = struct.unpack_from(order + "h", head, 70)[0]
        pixdim = struct.unpack_from(order + "8f", head, 76)
        offset, slope, intercept = struct.unpack_from(order + "3f", head, 108)
    else:
        number = struct.unpack_from(order + "h", head, 12)[0]
        dims = struct.unpack_from(order + "8q", head, 16)
        pixdim = struct.unpack_from(order + "8d", head, 104)
        offset, slope, intercept = struct.unpack_from(order + "q2d", head, 168)
    shape = _shape(dims, path)
    if number not in DTYPES:
        hint = "save it with whole or real numbers, one value a voxel"
        raise CaseError("E_DTYPE", f"{path} has NIfTI data type {number}", hint=hint)
    low, high = SPACING_MM
    if not all(low <= abs(spacing) <= high for spacing in pixdim[1:4]):  # NaN fails too
        raise CaseError("E_SPACING", f"{path} has spacing {pixdim[1:4]}", hint=f"it must lie in {low} to {high} mm")
    if not _HEADER_BYTES[0] <= offset < MAX_OFFSET:
        raise CaseError("E_HEADER", f"{path} has voxel offset {offset}", hint="write the file anew")
    return Header(shape, np.dtype(order + DTYPES[number]), int(offset), float(slope), float(intercept))


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


def _read_rest(stream: "_Stream", declared: int, path: Path) -> bytes:
    """Read to the end, with a bound on what a small file may expand to."""
    parts, size = [], 0
    while chunk := stream.read(_CHUNK):
        size += len(chunk)
        if size > declared + SLACK:
            raise CaseError("E_TOO_LARGE", f"{path} holds more bytes than it declares", hint="write the file anew")
        parts.append(chunk)
    return b"".join(parts)


@runtime_checkable
class _Stream(Protocol):
    """What voxels are read from: a file, or a gzip stream in one."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes; fewer only at the end."""


class _Gzip:
    """Reads a gzip file (members in a row allowed) to its end, so that its checksums count."""

    def __init__(self, file: _Stream, path: Path) -> None:
        self._file = file
        self._path = path
        self._inflate = zlib.decompressobj(wbits=31)
        self._raw = b""

    def read(self, count: int, /) -> bytes:
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
                self._raw = self._inflate.unused_data or self._file.read(_CHUNK)
                if not self._raw.strip(b"\0"):
                    return b""
                self._inflate = zlib.decompressobj(wbits=31)
            elif not self._raw:
                self._raw = self._file.read(_CHUNK)
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
