"""Voxels to an array: every declared byte must be there, checksums are read, and expansion is bounded."""

import bz2
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from m3di.volumes.formats.header import MAX_BYTES, Encoding, Header, require_file
from stores.errors import CaseError

SLACK: Final = 1 << 20  # bytes after the voxels that are tolerated: extensions, padding
GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_RATIO: Final = {"gzip": 1032, "zlib": 1032}  # deflate cannot expand more
_CHUNK: Final = 1 << 18


def read_voxels(header: Header) -> npt.NDArray[Any]:
    """Read the voxels that a header declares; a compressed stream is read to its end, so that its checksum counts.

    Returns:
        (i, j, k) voxels in scanner units; float32 where the header scales them.

    Raises:
        CaseError: E_MISSING, E_NOT_FILE, E_EMPTY, E_TRUNCATED, E_TOO_LARGE or E_CORRUPT.
    """
    declared = header.offset + header.num_bytes
    present = require_file(header.file) - header.compressed_from
    if header.num_bytes > MAX_BYTES:
        message = f"{header.file} declares {header.num_bytes} bytes of voxels"
        raise CaseError("E_TOO_LARGE", message, hint=f"at most {MAX_BYTES} are read; crop or downsample the scan")
    if declared > present * _MAX_RATIO.get(header.encoding, 1) and header.encoding != "bzip2":
        raise _truncated(header.file, present, header)
    content = np.empty(header.num_bytes, np.uint8)
    with header.file.open("rb") as file:
        file.seek(header.compressed_from)
        stream = open_stream(file, header.encoding, header.file)
        _skip(stream, header.offset)
        filled = _fill(stream, content.data)
        if filled < header.num_bytes:
            raise _truncated(header.file, filled, header)
        _drain(stream, header.file)
    voxels = content.view(header.dtype).reshape(header.geometry.shape, order=header.order)
    return _scaled(voxels, header)


def read_start(path: Path, count: int) -> tuple[bytes, bool]:
    """The first bytes of a file, after decompression when it is gzip, and whether it is."""
    require_file(path)
    with path.open("rb") as file:
        gzipped = file.read(2) == GZIP_MAGIC
        file.seek(0)
        start = bytearray(count)
        filled = _fill(open_stream(file, "gzip" if gzipped else "raw", path), memoryview(start))
        return bytes(start[:filled]), gzipped


def read_plain_start(path: Path, count: int) -> bytes:
    """The first bytes of a file whose format has a header of plain text.

    Raises:
        CaseError: E_FORMAT, when the file is gzip as a whole; E_MISSING, E_NOT_FILE or E_EMPTY.
    """
    start, gzipped = read_start(path, count)
    if gzipped:
        raise CaseError("E_FORMAT", f"{path} is compressed as a whole, header too", hint="decompress it")
    return start


@runtime_checkable
class Stream(Protocol):
    """What voxels are read from: a file, or a compressed stream in one."""

    def read(self, count: int, /) -> bytes:
        """Up to `count` bytes; none only at the end."""


def open_stream(file: BinaryIO, encoding: Encoding, path: Path) -> Stream:
    """View a file's bytes decompressed."""
    if encoding == "raw":
        return file
    decoders: dict[str, Callable[[], Any]] = {
        "gzip": lambda: zlib.decompressobj(wbits=31),
        "zlib": lambda: zlib.decompressobj(wbits=15),
        "bzip2": bz2.BZ2Decompressor,
    }
    return _Inflated(file, decoders[encoding], path)


class _Inflated:
    """Decompresses a file, members in a row allowed, to its end, so that its checksums count."""

    def __init__(self, file: BinaryIO, new_decoder: Callable[[], Any], path: Path) -> None:
        self._file = file
        self._path = path
        self._new_decoder = new_decoder
        self._decoder = new_decoder()
        self._raw = b""

    def read(self, count: int, /) -> bytes:
        """Up to `count` uncompressed bytes; none only at the end."""
        while True:
            if self._decoder.eof:
                self._raw = self._decoder.unused_data or self._file.read(_CHUNK)
                if not self._raw.strip(b"\0"):
                    return b""
                self._decoder = self._new_decoder()
            elif not self._raw and not self._has_more():
                self._raw = self._file.read(_CHUNK)
                if not self._raw:
                    message = f"{self._path} ends within its compressed stream"
                    raise CaseError("E_TRUNCATED", message, hint="copy it again")
            if part := self._decompress(count):
                return part

    def _has_more(self) -> bool:
        """Whether a bzip2 decoder still holds input of its own."""
        return not getattr(self._decoder, "needs_input", True)

    def _decompress(self, count: int) -> bytes:
        try:
            part: bytes = self._decoder.decompress(self._raw, count)
        except (zlib.error, OSError) as error:
            message = f"{self._path} fails its checksum, or is not compressed as it says: {error}"
            raise CaseError("E_CORRUPT", message, hint="copy it again") from error
        self._raw = getattr(self._decoder, "unconsumed_tail", b"")
        return part


def _skip(stream: Stream, count: int) -> None:
    while count > 0 and (part := stream.read(min(count, _CHUNK))):
        count -= len(part)


def _fill(stream: Stream, target: memoryview) -> int:
    """Read until the target is full or the stream ends; returns how many bytes there were."""
    filled = 0
    while filled < len(target):
        part = stream.read(min(len(target) - filled, 4 * _CHUNK))
        if not part:
            break
        target[filled : filled + len(part)] = part
        filled += len(part)
    return filled


def _drain(stream: Stream, path: Path) -> None:
    """Read what follows the voxels, to the end: little, or the header is wrong."""
    surplus = 0
    while part := stream.read(_CHUNK):
        surplus += len(part)
        if surplus > SLACK:
            raise CaseError("E_TOO_LARGE", f"{path} holds more bytes than it declares", hint="write the file anew")


def _truncated(path: Path, found: int, header: Header) -> CaseError:
    message = f"{path} has {found} bytes ({header.encoding}) where {header.num_bytes} bytes of voxels are declared"
    return CaseError("E_TRUNCATED", message, hint="copy it again")


def _scaled(voxels: npt.NDArray[Any], header: Header) -> npt.NDArray[Any]:
    """Apply the header's slope and intercept, if they say anything, a slab at a time."""
    native = voxels
    if not header.dtype.isnative:
        native = voxels.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    if (header.slope, header.intercept) == (1.0, 0.0):
        return native
    in_place = native.itemsize == np.dtype(np.float32).itemsize  # saves a gigabyte for the largest scans
    scaled = native.view(np.float32) if in_place else np.empty(native.shape, np.float32, order=header.order)
    slowest = -1 if header.order == "F" else 0
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large becomes infinite, and is counted as such
        for source, target in zip(np.moveaxis(native, slowest, 0), np.moveaxis(scaled, slowest, 0), strict=True):
            target[...] = source.astype(np.float64) * header.slope + header.intercept
    return scaled
