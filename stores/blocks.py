"""Blocks of rows: the value under a (row set, volume, plane), each row checked by itself (FORMAT.md, section 4).

A reader takes a few rows of a block that holds 128, so each row carries a checksum of its own: one that numpy works
out for many rows at once.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from stores.errors import DamagedError

Rows = npt.NDArray[np.float16]
Words = npt.NDArray[np.uint64]
VERSION: Final = 2
_HEADER: Final = struct.Struct("<4sHHII")  # magic, version, parts of a row, rows, width of a part
_MAGIC: Final = b"M3RB"
_SUM: Final = 8  # bytes of a row's checksum, before the row


def encode_block(rows: Rows, key: bytes) -> bytes:
    """Encode rows of shape (rows, parts, width), to be kept under `key`."""
    num_rows, parts, width = rows.shape
    words = _words(np.ascontiguousarray(rows, "<f2").reshape(num_rows, parts * width))
    sums = row_sums(words, salts(salt_of(key), np.arange(num_rows)))
    body = np.concatenate([sums[:, None], words], axis=1)
    return _HEADER.pack(_MAGIC, VERSION, parts, num_rows, width) + body.astype("<u8").tobytes()


class Block:
    """An encoded block, looked at without a copy.

    Args:
        payload: The value under the key, without its envelope.
        key: The key, which the rows' checksums depend on.

    Attributes:
        shape: (rows, parts, width).
        key: The key.
        salt: What ties its rows to the key.
        checked: Whether rows carry checksums; those of format version 1 have the envelope's only.

    Raises:
        DamagedError: E_VERSION or E_CORRUPT, naming the block.
    """

    def __init__(self, payload: memoryview, key: bytes) -> None:
        try:
            magic, version, parts, num_rows, width = _HEADER.unpack_from(payload)
        except struct.error:
            magic, version, parts, num_rows, width = b"", 0, 0, 0, 0
        self.checked = version > 1
        size = 8 * -(-parts * width // 4) if self.checked else 2 * parts * width
        stride = size + (_SUM if self.checked else 0)
        if magic == _MAGIC and version > VERSION:
            raise DamagedError("E_VERSION", f"block {key.decode()} has version {version}", hint="use a newer m3di")
        if magic != _MAGIC or len(payload) != _HEADER.size + num_rows * stride:
            raise DamagedError("E_CORRUPT", f"block {key.decode()} is not a block of rows", hint="run m3di verify")
        self.shape = (num_rows, parts, width)
        self.key = key
        self.salt = salt_of(key)
        self._items = (
            np.frombuffer(payload, f"V{stride}", offset=_HEADER.size) if stride else np.empty(num_rows, "V1")
        )

    @property
    def item(self) -> np.dtype[Any]:
        """Type of one stored row, checksum included."""
        return self._items.dtype

    def take(self, ranks: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        """Copy some rows, as they are stored, into `out` (an array of type `item`); the ranks must be rows here."""
        self._items.take(ranks, out=out, mode="clip")

    def halves(self, part: int) -> npt.NDArray[np.int16]:
        """One part of all rows as the bits of its float16 numbers, (rows, width): not a copy, and not checked."""
        rows, _, width = self.shape
        if not rows:
            return np.empty((0, width), "<i2")
        words = self._items.view("<i2").reshape(rows, -1)
        start = (_SUM // 2 if self.checked else 0) + part * width
        return words[:, start : start + width]

    def rows(self) -> Rows:
        """All rows, each checked: (rows, parts, width), a copy.

        Raises:
            DamagedError: E_CORRUPT, naming the block and the row.
        """
        ranks = np.arange(self.shape[0])
        return check(self._items, self, lambda _: self.key, salts(self.salt, ranks), ranks)


def check(
    items: npt.NDArray[Any], like: Block, key_of: Callable[[int], bytes], salted: Words, ranks: npt.NDArray[np.int64]
) -> Rows:
    """Verify stored rows and strip their checksums: (n, parts, width).

    Args:
        items: (n,) stored rows.
        like: A block of the row set that they are of.
        key_of: Key of the block of the n-th row, for the message.
        salted: (n,) salts of the rows.
        ranks: (n,) rank of each row in its block, for the message.

    Raises:
        DamagedError: E_CORRUPT, naming the first row whose checksum does not fit.
    """
    _, parts, width = like.shape
    if not like.checked or not items.size:
        return (
            items.view("<f2").reshape(len(items), parts, width) if items.size else np.empty((0, parts, width), "<f2")
        )
    words = np.ascontiguousarray(items).view("<u8").reshape(len(items), -1)
    wrong = np.flatnonzero(row_sums(words[:, 1:], salted) != words[:, 0])
    if len(wrong):
        first = wrong[0]
        message = f"row {ranks[first]} of block {key_of(int(first)).decode()} fails its checksum"
        raise DamagedError("E_CORRUPT", message, hint="run m3di verify")
    values = np.ascontiguousarray(words[:, 1:]).view("<f2")[:, : parts * width]
    return values.reshape(len(items), parts, width)


def row_sums(words: Words, salted: Words) -> Words:
    """Checksum of each row of 64-bit words: a sum of the words times odd constants, modulo 2^64, plus a salt.

    Odd constants make any change within one word change the sum; changes of several words pass with odds of 2^-64.
    """
    return words @ _constants(words.shape[1]) + salted


def salt_of(key: bytes) -> np.uint64:
    """What ties the rows of a block to its key."""
    return np.uint64(google_crc32c.value(key) << 32)


def salts(salt: Words | np.uint64, ranks: npt.NDArray[np.int64]) -> Words:
    """What ties a row's checksum to its place: the salt of its block, and its rank there."""
    return splitmix64(salt ^ ranks.astype(np.uint64))


def _constants(count: int) -> Words:
    if count not in _known:
        _known[count] = splitmix64(np.arange(count, dtype=np.uint64)) | np.uint64(1)
    return _known[count]


_known: dict[int, Words] = {}


def _words(rows: npt.NDArray[np.float16]) -> Words:
    """Rows as 64-bit words, filled up with zeros."""
    missing = -rows.shape[1] % 4
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, missing)))).view("<u8")


def splitmix64(value: Words) -> Words:
    """One step of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        mixed = value + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
