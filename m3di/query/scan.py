"""Exact search: the cosine of a vector with every row, block by block, straight from the memory map.

Rows are float16. numpy converts these one at a time; shifting their bits into place, as float32 numbers 2^112 times
too small, is exact for all finite values and 7.6 times as fast, and the vector makes good what is missing.

Nothing derived from the rows is kept on disk. Measured on 630 thousand rows of width 512 (`benchmarks/search.py`), a
copy of one part in contiguous memory is scanned in 0.6 of the time, but costs seven scans to make and check, and its
size in memory: so an engine that stays open may ask for it (`Part.compact`).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from stores.blocks import Rows
from stores.geometry import PLANES
from stores.index import Indices, StoreIndex

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.int16]
_KEPT: Final = np.int32(-0x70002000)  # sign, exponent and fraction of a half, after the shift; not its copied sign
_SHIFT: Final = 13
_SCALE: Final = np.float32(2.0**112)
_UNIT: Final = 2.0**-24  # rounding of float32
_CHUNK: Final = 8192  # candidates looked at again at a time


@runtime_checkable
class RowSource(Protocol):
    """Where rows come from: `stores.embeddings.EmbeddingStore`, or what a model makes of its volumes."""

    @property
    def index(self) -> StoreIndex:
        """Which volumes and slices have rows."""

    def halves(self, part: int) -> list[Halves]:
        """One part of every block, in the order of the index, as bits of float16, each (s, e)."""

    def reading(self) -> AbstractContextManager[object]:
        """Hold what `halves` gave while it is read."""

    def plane(self, volume: str, plane: int) -> Rows:
        """All rows of a block, checked: (s, parts, e)."""

    def gather(self, volumes: Indices, planes: Indices, slices: Indices) -> Rows:
        """Some rows, checked: (b, k, parts, e)."""


class Part:
    """One part, image or text, of all rows of a row set, to be searched again and again.

    Args:
        source: The row set.
        part: Which part.

    Attributes:
        index: Volumes and slices; rows are numbered in its order: by volume, plane and position.
        starts: (3 n + 1,) number of the first row of each block.
    """

    def __init__(self, source: RowSource, part: int) -> None:
        self.index = source.index
        self.starts = np.concatenate([[0], np.cumsum(self.index.num_rows().ravel())]).astype(np.int64)
        self._source = source
        self._part = part
        self._blocks: Sequence[Halves] = source.halves(part)
        self._threads = len(os.sched_getaffinity(0))
        self._blas = ThreadpoolController().select(user_api="blas")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def compact(self) -> None:
        """Copy the part into contiguous memory, every row checked: later scans take 0.6 of the time."""
        rows = np.empty((len(self), self.dim), "<f2")
        for number, start in enumerate(self.starts[:-1]):
            volume, plane = divmod(number, len(PLANES))
            block = self._source.plane(self.index.volumes[volume], plane)
            rows[start : start + len(block)] = block[:, self._part]
        self._blocks = [rows.view("<i2")[start:stop] for start, stop in pairwise(self.starts)]

    @property
    def dim(self) -> int:
        """Width of a row; 0 without rows."""
        return max((block.shape[1] for block in self._blocks), default=0)

    def scores(self, vector: Floats, allowed: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Cosine of a unit vector (e,) with every row; -inf for rows of blocks that are not allowed (n, 3)."""
        found = np.full(len(self), -np.inf, np.float32)
        numbers = np.arange(len(self._blocks)) if allowed is None else np.flatnonzero(allowed.ravel())
        numbers = numbers[self.starts[numbers + 1] > self.starts[numbers]]
        if not len(numbers):
            return found
        scaled = vector.astype(np.float32) * _SCALE
        with ExitStack() as held:
            held.enter_context(self._source.reading())
            held.enter_context(self._blas.limit(limits=1))
            pool = held.enter_context(ThreadPoolExecutor(self._threads))
            shares = [share for share in np.array_split(numbers, self._threads) if len(share)]
            list(pool.map(lambda share: self._scan(share, scaled, found), shares))
        return found

    def means(self) -> npt.NDArray[np.float64]:
        """Embedding of each volume: the mean of its rows, each plane counted alike, of unit length, (n, e).

        The same as `m3di.evaluation.leaks.embedding_of`, in one pass over all rows. Zeros for a volume without rows.
        """
        sums = np.zeros((len(self.index), self.dim))
        buffer = self._buffer()
        with self._source.reading():
            for number, block in enumerate(self._blocks):
                if len(block):
                    rows = _floats(block, buffer)
                    sums[number // len(PLANES)] += (np.ones(len(rows), np.float32) @ rows) / len(rows)
        return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float64).tiny)

    def exact(self, rows: Indices, vector: Floats) -> npt.NDArray[np.float64]:
        """Cosines of some rows, each checked against its checksum; equal rows get equal ones.

        Raises:
            DamagedError: Naming the block and the row.
        """
        if not len(rows):
            return np.zeros(0)
        chunks = np.split(rows, range(_CHUNK, len(rows), _CHUNK))
        wide = vector.astype(np.float64)
        return np.concatenate([(self.rows(chunk).astype(np.float64) * wide).sum(axis=1) for chunk in chunks])

    def rows(self, numbers: Indices) -> npt.NDArray[np.float16]:
        """Some rows, checked: (n, e).

        Raises:
            DamagedError: Naming the block and the row.
        """
        volumes, planes, slices = self.places(numbers)
        return self._source.gather(volumes, planes[:, None], slices[:, None])[:, 0, self._part]

    def places(self, rows: Indices) -> tuple[Indices, ...]:
        """Volume (its position in the index), plane and slice of some rows."""
        blocks = np.searchsorted(self.starts, rows, side="right") - 1
        volumes, planes = np.divmod(blocks, len(PLANES))
        ranks = rows - self.starts[blocks]
        counts = np.cumsum(self.index.bits(volumes)[np.arange(len(rows)), planes], axis=-1)
        return volumes, planes, (counts > ranks[:, None]).argmax(axis=1)

    @property
    def margin(self) -> float:
        """How far a score of `scores` may lie from the exact one, for vectors and rows of about unit length."""
        return 1.01 * (self.dim + 2) * _UNIT

    def _scan(self, numbers: Indices, scaled: Floats, found: Floats) -> None:
        buffer = self._buffer()
        starts = self.starts.tolist()
        for number in numbers.tolist():
            np.dot(_floats(self._blocks[number], buffer), scaled, out=found[starts[number] : starts[number + 1]])

    def _buffer(self) -> npt.NDArray[np.int32]:
        return np.empty((max(map(len, self._blocks), default=0), self.dim), np.int32)


def _floats(block: Halves, buffer: npt.NDArray[np.int32]) -> Floats:
    """Halves by their bits as float32 numbers 2^112 times too small, in a buffer of their number or more."""
    bits = buffer[: len(block)]
    bits[...] = block
    np.left_shift(bits, _SHIFT, out=bits)
    np.bitwise_and(bits, _KEPT, out=bits)
    return bits.view(np.float32)
