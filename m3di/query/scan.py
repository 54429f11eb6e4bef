"""Exact search: the cosine of a vector with every row, straight from the memory map, or from a copy in memory.

Rows are float16. numpy converts these one at a time; shifting their bits into place, as float32 numbers 2^112 times
too small, is exact for all finite values and 7.6 times as fast, and the vector makes good what is missing.

A row set that is asked again and again is copied, where memory allows (`Part.compact`): whole numbers of 16 bits, in
steps that a block shares, become float32 in one pass, where halves take three. How far such a score may lie from the
exact one is known (`Part.margin`), and whatever could be among the best is scored again from the checked rows, so
answers are the same with and without the copy. Nothing derived from the rows is kept on disk.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from m3di.machine import free_memory
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
_LARGEST: Final = np.float32(2**15 - 1)  # of a copy's whole numbers
_PIECE: Final = 256  # rows of a copy that are scanned at a time: what fits into a processor's second cache
_WORTH_IT: Final = 8  # questions, by which a copy is made: it costs about as much as ten, and saves half of each
_FREE: Final = 4 << 30  # bytes of memory that are taken to be free where the system does not say


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

    def gather(self, volumes: Indices, planes: Indices, slices: Indices) -> Rows:
        """Some rows, checked: (b, k, parts, e)."""


class Part:
    """One part, image or text, of all rows of a row set, to be searched again and again.

    Args:
        source: The row set.
        part: Which part.
        compacts: Search a copy (`compact`) once there were questions enough, if it takes at most half of the free
            memory.

    Attributes:
        index: Volumes and slices; rows are numbered in its order: by volume, plane and position.
        starts: (3 n + 1,) number of the first row of each block.
    """

    def __init__(self, source: RowSource, part: int, *, compacts: bool = True) -> None:
        self.index = source.index
        self.starts = np.concatenate([[0], np.cumsum(self.index.num_rows().ravel())]).astype(np.int64)
        self._source = source
        self._part = part
        self._blocks: Sequence[Halves] = source.halves(part)
        self._copy: _Copy | None = None
        self._compacts = compacts
        self._num_asked = 0
        self._threads = len(os.sched_getaffinity(0))
        self._blas = ThreadpoolController().select(user_api="blas")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def compact(self) -> None:
        """Copy the part into contiguous memory, 2 bytes a number: later scans take half the time."""
        copy = _Copy(np.empty((len(self), self.dim), np.int16), np.empty(len(self), np.float32))
        self._share(np.arange(len(self._blocks)), lambda numbers: self._fill(copy, numbers))
        self._copy = copy

    @property
    def dim(self) -> int:
        """Width of a row; 0 without rows."""
        return max((block.shape[1] for block in self._blocks), default=0)

    def scores(self, vector: Floats, allowed: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Cosine of a unit vector (e,) with every row, right within `margin`.

        They are -inf for rows of blocks that are not allowed (n, 3).
        """
        self._num_asked += 1
        if self._compacts and self._num_asked == _WORTH_IT and 4 * len(self) * self.dim <= (free_memory() or _FREE):
            self.compact()
        found = np.full(len(self), -np.inf, np.float32)
        numbers = np.arange(len(self._blocks)) if allowed is None else np.flatnonzero(allowed.ravel())
        narrow = vector.astype(np.float32)
        self._share(numbers, lambda share: self._scan(share, narrow, found))
        return found

    def some_scores(self, rows: Indices, vector: Floats) -> Floats:
        """Cosines of some rows with a unit vector (e,), as `scores` has them."""
        narrow = vector.astype(np.float32)
        if self._copy is not None:
            return self._copy.steps[rows] * (self._copy.numbers[rows].astype(np.float32) @ narrow)
        blocks = np.searchsorted(self.starts, rows, side="right") - 1
        ranks = rows - self.starts[blocks]
        halves = np.empty((len(rows), self.dim), np.int16)
        with self._source.reading():
            for place, (block, rank) in enumerate(zip(blocks.tolist(), ranks.tolist(), strict=True)):
                halves[place] = self._blocks[block][rank]
        return _floats(halves, np.empty(halves.shape, np.int32)) @ (narrow * _SCALE)

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

    def numbers(self, volumes: Indices, planes: Indices, slices: Indices) -> Indices:
        """Numbers of some rows; each slice must have one."""
        ranks = self.index.ranks(volumes, planes[:, None], slices[:, None])[:, 0]
        return self.starts[len(PLANES) * volumes + planes] + ranks

    def places(self, rows: Indices) -> tuple[Indices, ...]:
        """Volume (its position in the index), plane and slice of some rows."""
        blocks = np.searchsorted(self.starts, rows, side="right") - 1
        volumes, planes = np.divmod(blocks, len(PLANES))
        ranks = rows - self.starts[blocks]
        counts = np.cumsum(self.index.bits(volumes)[np.arange(len(rows)), planes], axis=-1)
        return volumes, planes, (counts > ranks[:, None]).argmax(axis=1)

    @property
    def margin(self) -> float:
        """How far a score of `scores` may lie from the exact one, for vectors and rows of about unit length.

        Rounding in float32: a unit for each product and sum. A copy's numbers lie within half a step (and what the
        division rounds) of the row's, so by Cauchy and Schwarz the score within that times the root of the width.
        """
        rounding = 1.01 * (self.dim + 2) * _UNIT
        if self._copy is None:
            return rounding
        return rounding + 0.51 * float(self._copy.steps.max(initial=0)) * self.dim**0.5

    def _share(self, numbers: Indices, work: Callable[[Indices], None]) -> None:
        """Divide blocks that have rows among as many threads as there are cores, each with one for BLAS."""
        numbers = numbers[self.starts[numbers + 1] > self.starts[numbers]]
        shares = [share for share in np.array_split(numbers, self._threads) if len(share)]
        if not shares:
            return
        with ExitStack() as held:
            held.enter_context(self._source.reading())
            held.enter_context(self._blas.limit(limits=1))
            pool = held.enter_context(ThreadPoolExecutor(len(shares)))
            list(pool.map(work, shares))

    def _scan(self, numbers: Indices, vector: Floats, found: Floats) -> None:
        if self._copy is not None:
            self._copy.scan(self._pieces(numbers), vector, found)
            return
        buffer, scaled = self._buffer(), vector * _SCALE
        starts = self.starts.tolist()
        for number in numbers.tolist():
            np.dot(_floats(self._blocks[number], buffer), scaled, out=found[starts[number] : starts[number + 1]])

    def _pieces(self, numbers: Indices) -> Iterator[slice]:
        """The rows of some blocks, ascending, in pieces across blocks that follow each other."""
        starts, stops = self.starts[numbers], self.starts[numbers + 1]
        breaks = np.flatnonzero(starts[1:] != stops[:-1])
        for start, stop in zip(starts[np.append(0, breaks + 1)], stops[np.append(breaks, -1)], strict=True):
            for first in range(int(start), int(stop), _PIECE):
                yield slice(first, min(first + _PIECE, int(stop)))

    def _fill(self, copy: "_Copy", numbers: Indices) -> None:
        buffer = self._buffer()
        for number in numbers.tolist():
            rows = _floats(self._blocks[number], buffer)
            rows *= _SCALE
            copy.put(slice(self.starts[number], self.starts[number + 1]), rows)

    def _buffer(self) -> npt.NDArray[np.int32]:
        return np.empty((max(map(len, self._blocks), default=0), self.dim), np.int32)


@dataclass(frozen=True, eq=False)
class _Copy:
    """Rows as whole numbers.

    Attributes:
        numbers: (rows, e).
        steps: (rows,) what 1 stands for in each row.
    """

    numbers: npt.NDArray[np.int16]
    steps: Floats

    def put(self, place: slice, rows: Floats) -> None:
        """Copy some rows (n, e), with one step for all; they are overwritten."""
        step = max(rows.max(), -rows.min()) / _LARGEST or np.float32(1)
        rows /= step
        np.rint(rows, out=rows)
        self.numbers[place] = rows
        self.steps[place] = step

    def scan(self, pieces: Iterator[slice], vector: Floats, found: Floats) -> None:
        """Write the product of some rows with a vector (e,) to their places."""
        buffer = np.empty((_PIECE, len(vector)), np.float32)
        for piece in pieces:
            rows = buffer[: piece.stop - piece.start]
            rows[...] = self.numbers[piece]
            np.dot(rows, vector, out=found[piece])
            found[piece] *= self.steps[piece]


def _floats(block: Halves, buffer: npt.NDArray[np.int32]) -> Floats:
    """Halves by their bits as float32 numbers 2^112 times too small, in a buffer of their number or more."""
    bits = buffer[: len(block)]
    bits[...] = block
    np.left_shift(bits, _SHIFT, out=bits)
    np.bitwise_and(bits, _KEPT, out=bits)
    return bits.view(np.float32)
