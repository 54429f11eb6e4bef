"""Embeddings on disk: one block of float16 rows a (volume, plane), and how rows are gathered (FORMAT.md, 4)."""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stores.database import Database
from stores.errors import DamagedError
from stores.index import StoreIndex
from stores.keys import block_key

Rows = npt.NDArray[np.float16]
_HEADER: Final = struct.Struct("<4sHHII")  # magic, version, parts of a row, rows, width of a part
_MAGIC: Final = b"M3RB"
_VERSION: Final = 1


def encode_block(rows: Rows) -> bytes:
    """Encode rows of shape (rows, parts, dim)."""
    num_rows, parts, dim = rows.shape
    return _HEADER.pack(_MAGIC, _VERSION, parts, num_rows, dim) + np.ascontiguousarray(rows, "<f2").tobytes()


def decode_block(payload: memoryview, name: str) -> Rows:
    """View a block as rows of shape (rows, parts, dim), without a copy.

    Raises:
        DamagedError: E_VERSION or E_CORRUPT, naming the block.
    """
    magic, version, parts, num_rows, dim = _HEADER.unpack_from(payload)
    if magic != _MAGIC or len(payload) != _HEADER.size + 2 * num_rows * parts * dim:
        raise DamagedError("E_CORRUPT", f"block {name} is not a block of rows", hint="run m3di verify")
    if version > _VERSION:
        raise DamagedError("E_VERSION", f"block {name} has version {version}", hint="use a newer m3di")
    return np.frombuffer(payload, "<f2", offset=_HEADER.size).reshape(num_rows, parts, dim)


class EmbeddingStore:
    """Reads the rows of one teacher.

    Args:
        database: The store's open database.
        fingerprint: The teacher's fingerprint.
        index: Which slices have rows.
    """

    def __init__(self, database: Database, fingerprint: str, index: StoreIndex) -> None:
        self._database = database
        self._fingerprint = fingerprint
        self.index = index

    def select(self, positions: Sequence[int]) -> "EmbeddingStore":
        """The rows of some of the volumes, in the order given."""
        return EmbeddingStore(self._database, self._fingerprint, self.index.select(positions))

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, volumes: npt.NDArray[Any], planes: npt.NDArray[Any], slices: npt.NDArray[Any]) -> Rows:
        """Read the rows of K slices of each of B volumes, every block's checksum verified.

        Args:
            volumes: (b,) positions in the index.
            planes: (b, k) plane numbers.
            slices: (b, k) slice positions in the cube; each must be valid.

        Returns:
            (b, k, parts, dim), float16, L2-normalised rows.
        """
        ranks = self.index.ranks(volumes, planes, slices)
        owners = np.broadcast_to(volumes[:, None], planes.shape)
        blocks, block_of = np.unique(np.stack([owners.ravel(), planes.ravel()]), axis=1, return_inverse=True)
        gathered: Rows | None = None
        with self._database.reading() as transaction:
            for number, (volume, plane) in enumerate(blocks.T):
                rows = self._block(transaction, self.index.volumes[volume], int(plane))
                if gathered is None:
                    gathered = np.empty((planes.size, *rows.shape[1:]), np.float16)
                (wanted,) = np.nonzero(block_of == number)
                gathered[wanted] = rows[ranks.ravel()[wanted]]
        if gathered is None:
            raise ValueError("nothing to gather: no slices were asked for")
        return gathered.reshape(*planes.shape, *gathered.shape[1:])

    def plane(self, volume: str, plane: int) -> Rows:
        """Copy all rows of one plane: (s, parts, dim), in ascending order of slice position."""
        with self._database.reading() as transaction:
            return np.array(self._block(transaction, volume, plane))

    def all_rows(self, volumes: Sequence[str]) -> Rows:
        """Copy every row of some volumes, in the order of `index.slices_of`: (rows, parts, dim)."""
        return np.concatenate([self.plane(volume, plane) for volume in volumes for plane in range(3)])

    def _block(self, transaction: Any, volume: str, plane: int) -> Rows:
        key = block_key(self._fingerprint, volume, plane)
        payload = transaction.get("rows", key)
        if payload is None:
            raise DamagedError("E_MISSING", f"block {key.decode()} is missing", hint="run m3di verify")
        return decode_block(payload, key.decode())
