"""The bytes of a chunk file: how a volume's part is encoded, and how it is read back, checked (FORMAT.md, section 3).

zarr-python is the reference for what the bytes are; here they are made and read without its call cost.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc

from stores.errors import DamagedError
from stores.records import StoredObject

Array = npt.NDArray[Any]
CHECKSUM: Final = 4  # bytes of crc32c at the end of every chunk file
_POPULATE_READ: Final = 22  # Linux MADV_POPULATE_READ, which Python 3.11 has no name for


@dataclass(frozen=True)
class Layout:
    """How the chunks of a store are compressed; the voxels are the same in all of them.

    Attributes:
        cname: Compressor within blosc; empty for none.
        clevel: Its level.
        shuffle: Blosc's filter: 1 by bytes, 2 by bits.
    """

    cname: Literal["lz4hc", "lz4", ""]
    clevel: int = 5
    shuffle: int = 1

    @property
    def codecs(self) -> tuple[Any, ...]:
        """The bytes-to-bytes codecs that a plain Zarr reader applies."""
        # Here, because who reads and writes volumes needs none of it: a fifth of a worker's time to start.
        from zarr.codecs import BloscCodec, Crc32cCodec  # noqa: PLC0415

        if not self.cname:
            return (Crc32cCodec(),)
        shuffle: Literal["shuffle", "bitshuffle"] = "shuffle" if self.shuffle == 1 else "bitshuffle"
        return BloscCodec(cname=self.cname, clevel=self.clevel, shuffle=shuffle), Crc32cCodec()


# Shuffled by bytes, lz4hc took less space on real cubes than lz4 or zstd shuffled by bits, and was decoded faster
# than both; `benchmarks/loading.py` shows what compact costs against memcpy, and its bytes against .nii.gz.
LAYOUTS: Final[dict[str, Layout]] = {
    "compact": Layout("lz4hc"),
    "uncompressed": Layout(""),
    "version-1": Layout("lz4", shuffle=2),
}


@dataclass(frozen=True)
class Chunk:
    """One volume's part of an array as the bytes of its chunk file, with what the record says of them."""

    payload: bytes
    stored: StoredObject


def encode_chunk(part: Array, layout: Layout) -> Chunk:
    """Turn a volume's part into the bytes of its chunk: those that zarr-python writes.

    A part that equals the fill value has a chunk too: an absent chunk always means an absent volume.
    """
    whole = np.ascontiguousarray(part)
    if layout.cname:
        body = bytes(blosc.compress(whole, layout.cname.encode(), layout.clevel, layout.shuffle))
    else:
        body = whole.tobytes()
    checksum = google_crc32c.value(body)
    payload = body + checksum.to_bytes(CHECKSUM, "little")
    return Chunk(payload, StoredObject(len(payload), hashlib.sha256(payload).hexdigest(), checksum))


def read_chunk(path: Path, part: Array, layout: Layout, *, checksum: int = 0) -> None:
    """Read a chunk file into `part` (C-contiguous, of the array's shape and type), its checksum verified.

    Args:
        path: The chunk file.
        part: Where to.
        layout: How it is compressed.
        checksum: What its record says that it ends with, so that no other chunk passes for it; 0 if unknown.

    Raises:
        DamagedError: E_MISSING or E_CORRUPT, naming the file.
    """
    try:
        found = _decode(np.fromfile(path, np.uint8), part, path) if layout.cname else _copy(path, part)
    except FileNotFoundError as error:
        raise DamagedError("E_MISSING", f"chunk {path} is missing", hint="run m3di verify") from error
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror}") from error
    if checksum not in (0, found):
        raise _corrupt(path, "is whole, but not the one that was written: it is another volume's, or an older one")


def _decode(payload: npt.NDArray[np.uint8], part: Array, path: Path) -> int:
    """Decode a chunk; returns its checksum, verified."""
    body = payload[:-CHECKSUM]
    # blosc's header is 16 bytes, which hold the size that the body expands to
    if len(payload) < 16 + CHECKSUM or google_crc32c.value(body) != _stored(payload):
        raise _corrupt(path, "fails its checksum")
    try:
        blosc.decompress(body, part)
    except (RuntimeError, ValueError) as error:
        raise _corrupt(path, f"does not decode: {error}") from error
    return _stored(payload)


def _copy(path: Path, part: Array) -> int:
    """Copy an uncompressed chunk out of the page cache; returns its checksum, verified.

    Out of a map, since the kernel's own copy took up to twice the time in one measurement, and the same in another.
    """
    target = part.reshape(-1).view(np.uint8)
    with _mapped(path) as payload:
        if len(payload) != len(target) + CHECKSUM:
            raise _corrupt(path, f"has {len(payload)} bytes instead of {len(target) + CHECKSUM}")
        np.copyto(target, payload[:-CHECKSUM])
        stored = _stored(payload)
        del payload
    if google_crc32c.value(target) != stored:
        raise _corrupt(path, "fails its checksum")
    return stored


@contextmanager
def _mapped(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """A file's bytes, mapped where the kernel can say beforehand that all can be read; else read.

    An unreadable or truncated page of a plain mapping would end the process with SIGBUS; populating it is an OSError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) if size else None
    finally:
        os.close(descriptor)
    try:
        if mapping is None:
            raise ValueError
        mapping.madvise(_POPULATE_READ)
        payload = np.frombuffer(mapping, np.uint8)
    except (OSError, ValueError):  # an older kernel, another system, or a page that cannot be read: read says which
        payload = np.fromfile(path, np.uint8)
    yield payload


def _stored(payload: npt.NDArray[np.uint8]) -> int:
    return int.from_bytes(payload[-CHECKSUM:].tobytes(), "little")


def _corrupt(path: Path, what: str) -> DamagedError:
    return DamagedError("E_CORRUPT", f"chunk {path} {what}", hint="run m3di verify")
