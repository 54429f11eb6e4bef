"""Embeddings: how the rows of K slices of each volume of a batch are gathered, checked (FORMAT.md, section 4)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stores.blocks import Block, Rows, check, salts
from stores.database import Snapshot, Transaction
from stores.errors import DamagedError
from stores.index import StoreIndex
from stores.keys import block_key

MAX_BLOCKS: Final = 1 << 16  # blocks whose place in the map is remembered, some 500 bytes each


class EmbeddingStore:
    """Reads the rows of one row set, as they were when it was opened.

    Args:
        snapshot: A view of the store's database, which keeps the rows in place.
        fingerprint: The row set: a teacher's fingerprint for its image and text rows.
        index: Which slices have rows.
    """

    def __init__(self, snapshot: Snapshot, fingerprint: str, index: StoreIndex) -> None:
        self._snapshot = snapshot
        self._fingerprint = fingerprint
        self._blocks: dict[tuple[int, int], Block] = {}
        self.index = index

    def select(self, positions: Sequence[int]) -> "EmbeddingStore":
        """The rows of some of the volumes, in the order given."""
        return EmbeddingStore(self._snapshot, self._fingerprint, self.index.select(positions))

    @property
    def fingerprint(self) -> str:
        """Which row set it is."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, volumes: npt.NDArray[Any], planes: npt.NDArray[Any], slices: npt.NDArray[Any]) -> Rows:
        """Read the rows of K slices of each of B volumes, every row's checksum verified.

        Args:
            volumes: (b,) positions in the index.
            planes: (b, k) plane numbers.
            slices: (b, k) slice positions in the cube; each must be valid.

        Returns:
            (b, k, parts, dim), float16, L2-normalised rows.

        Raises:
            DamagedError: Naming the block and row.
        """
        if not planes.size:
            raise ValueError("nothing to gather: no slices were asked for")
        ranks = self.index.ranks(volumes, planes, slices).ravel()
        wanted = (3 * volumes[:, None] + planes).ravel()
        order = np.argsort(wanted, kind="stable")
        wanted, ranks = wanted[order], ranks[order]
        bounds = [*np.flatnonzero(np.diff(wanted, prepend=-1)).tolist(), len(wanted)]
        with self._snapshot.reading() as reader:
            blocks = [self._block(reader, *divmod(int(wanted[start]), 3)) for start in bounds[:-1]]
            items = np.empty(len(wanted), blocks[0].item)
            owner = np.repeat(np.arange(len(blocks)), np.diff(bounds))
            _require_rows(blocks, owner, ranks)
            for block, start, stop in zip(blocks, bounds[:-1], bounds[1:], strict=True):
                block.take(ranks[start:stop], items[start:stop])
        salted = salts(np.array([block.salt for block in blocks])[owner], ranks)
        rows = check(items, blocks[0], lambda number: blocks[owner[number]].key, salted, ranks)
        gathered = np.empty_like(rows)
        gathered[order] = rows
        return gathered.reshape(*planes.shape, *rows.shape[1:])

    def plane(self, volume: str, plane: int) -> Rows:
        """Copy all rows of one plane, checked: (s, parts, dim), in ascending order of slice position."""
        with self._snapshot.reading() as reader:
            return self._open(reader, volume, plane).rows()

    def all_rows(self, volumes: Sequence[str]) -> Rows:
        """Copy every row of some volumes, in the order of `index.slices_of`: (rows, parts, dim)."""
        return np.concatenate([self.plane(volume, plane) for volume in volumes for plane in range(3)])

    def halves(self, part: int) -> list[npt.NDArray[np.int16]]:
        """One part of every block, in the order of the index, as the bits of its float16 numbers, each (s, dim).

        They are views of the database's map, unchecked: read them within `reading`, and check by `gather` what is
        found in them.
        """
        with self._snapshot.reading() as reader:
            return [self._open(reader, name, plane).halves(part) for name in self.index.volumes for plane in range(3)]

    def reading(self) -> AbstractContextManager[Transaction]:
        """Keep the map in place while `halves` are read."""
        return self._snapshot.reading()

    def _block(self, reader: Transaction, volume: int, plane: int) -> Block:
        place = (volume, plane)
        block = self._blocks.get(place)
        if block is None:
            if len(self._blocks) >= MAX_BLOCKS:
                self._blocks.clear()
            block = self._blocks[place] = self._open(reader, self.index.volumes[volume], plane)
        return block

    def _open(self, reader: Transaction, volume: str, plane: int) -> Block:
        key = block_key(self._fingerprint, volume, plane)
        # Rows are checked one by one as they are taken: the whole block's checksum would read all of it.
        payload = reader.get("rows", key, verified=False)
        if payload is None:
            raise DamagedError("E_MISSING", f"block {key.decode()} is missing", hint="run m3di verify")
        block = Block(payload, key)
        if not block.checked:
            reader.get("rows", key)
        return block


def _require_rows(blocks: Sequence[Block], owner: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]) -> None:
    """Refuse ranks that a block does not have, and blocks of unlike rows."""
    for block in blocks:
        if block.item != blocks[0].item or block.shape[1:] != blocks[0].shape[1:]:
            message = f"blocks {blocks[0].key.decode()} and {block.key.decode()} hold rows of unlike shapes"
            raise DamagedError("E_CORRUPT", message, hint="run m3di verify")
    missing = np.flatnonzero(ranks >= np.array([block.shape[0] for block in blocks])[owner])
    if len(missing):
        block = blocks[owner[missing[0]]]
        message = f"block {block.key.decode()} has {block.shape[0]} rows, row {ranks[missing[0]]} is wanted"
        raise DamagedError("E_CORRUPT", message, hint="run m3di verify")
