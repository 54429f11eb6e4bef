"""Which volumes and slices a reader may ask for, as a few numpy arrays: 48 bytes of bitmap a volume of 128^3."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stores.records import VolumeRecord

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StoreIndex:
    """The volumes of a store that have rows of one teacher, sorted by id.

    Attributes:
        volumes: Ids.
        subjects: Person of each volume.
        datasets: Dataset of each volume.
        slots: (n,) slot of each volume in the Zarr arrays.
        valid: (n, 3, ceil(J / 8)) packed bits: the slices that have rows.
    """

    volumes: tuple[str, ...]
    subjects: tuple[str, ...]
    datasets: tuple[str, ...]
    slots: Indices
    valid: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, records: Sequence[VolumeRecord]) -> "StoreIndex":
        """Index some volume records."""
        ordered = sorted(records, key=lambda record: record.volume)
        packed = [[np.frombuffer(bytes.fromhex(plane), np.uint8) for plane in r.valid] for r in ordered]
        return cls(
            volumes=tuple(record.volume for record in ordered),
            subjects=tuple(record.subject for record in ordered),
            datasets=tuple(record.dataset for record in ordered),
            slots=np.array([record.slot for record in ordered], np.int64),
            valid=np.array(packed, np.uint8) if ordered else np.zeros((0, 3, 0), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.volumes)

    def select(self, positions: Sequence[int]) -> "StoreIndex":
        """The index of some of the volumes, in the order given."""
        return StoreIndex(
            volumes=tuple(self.volumes[i] for i in positions),
            subjects=tuple(self.subjects[i] for i in positions),
            datasets=tuple(self.datasets[i] for i in positions),
            slots=self.slots[list(positions)],
            valid=self.valid[list(positions)],
        )

    def bits(self, volumes: Indices) -> npt.NDArray[np.bool_]:
        """(b, 3, J') valid slices of some volumes; J' is J rounded up to a multiple of 8."""
        return np.unpackbits(self.valid[volumes], axis=-1).astype(bool)

    def num_rows(self) -> Indices:
        """(n, 3) rows of each volume and plane."""
        return np.bitwise_count(self.valid).sum(axis=-1, dtype=np.int64)

    def slices_of(self, volume: int) -> tuple[Indices, Indices]:
        """Plane and slice position of every row of a volume, in the order of its blocks; each of shape (rows,)."""
        planes, slices = np.nonzero(self.bits(np.array([volume]))[0])
        return planes, slices

    def ranks(self, volumes: Indices, planes: Indices, slices: Indices) -> Indices:
        """Row of each (plane, slice) within its block; planes and slices are (b, k).

        Raises:
            ValueError: When a slice has no row (blank, off the stride, or outside the cube).
        """
        bits = self.bits(volumes)
        rows = np.arange(len(volumes))[:, None]
        if not bits[rows, planes, slices].all():
            row, column = np.argwhere(~bits[rows, planes, slices])[0]
            raise ValueError(
                f"slice {slices[row, column]} of plane {planes[row, column]} "
                f"of {self.volumes[volumes[row]]} has no row"
            )
        return np.cumsum(bits, axis=-1)[rows, planes, slices] - 1
