"""Which volumes and slices a reader may ask for, as a few numpy arrays: about 100 bytes a volume of 128^3."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stores.records import VolumeRecord

Indices = npt.NDArray[np.int64]
SEGMENT: Final = 1 << 16  # volumes in one stored piece of an index


class Names(Sequence[str]):
    """Many short names in two arrays: a Python string each would take three times the memory.

    Args:
        letters: The names' ASCII bytes, one after another.
        ends: (n,) where each name ends.
    """

    def __init__(self, letters: npt.NDArray[np.uint8], ends: npt.NDArray[np.uint32]) -> None:
        self.letters = letters
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[str]) -> "Names":
        """Pack some names."""
        encoded = [name.encode() for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.uint32) if encoded else np.zeros(0, np.uint32)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, position: int) -> str:  # type: ignore[override]
        if not 0 <= position < len(self):
            raise IndexError(position)
        start = self.ends[position - 1] if position else 0
        return self.letters[start : self.ends[position]].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def select(self, positions: Sequence[int]) -> "Names":
        """Some of the names, in the order given."""
        return Names.of([self[position] for position in positions])


class Repeated(Sequence[str]):
    """Names of which few are distinct: a number each, into those.

    Args:
        codes: (n,) number of each name.
        distinct: The names.
    """

    def __init__(self, codes: npt.NDArray[np.unsignedinteger[Any]], distinct: Names) -> None:
        self.codes = codes
        self.distinct = distinct

    @classmethod
    def of(cls, names: Sequence[str]) -> "Repeated":
        """Number some names."""
        distinct = sorted(set(names))
        numbers = {name: number for number, name in enumerate(distinct)}
        codes = np.array([numbers[name] for name in names], np.min_scalar_type(max(len(distinct) - 1, 0)))
        return cls(codes, Names.of(distinct))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, position: int) -> str:  # type: ignore[override]
        return self.distinct[int(self.codes[position])]

    def select(self, positions: Sequence[int]) -> "Repeated":
        """Some of the names, in the order given."""
        return Repeated(self.codes[list(positions)], self.distinct)


@dataclass(frozen=True, eq=False)
class StoreIndex:
    """The volumes of a store that have rows of one row set, sorted by id.

    Attributes:
        volumes: Ids.
        subjects: Person of each volume.
        datasets: Dataset of each volume.
        slots: (n,) slot of each volume in the Zarr arrays.
        checksums: (n,) crc32c at the end of each volume's `image` chunk, 0 where it is not known.
        valid: (n, 3, ceil(J / 8)) packed bits: the slices that have rows.
    """

    volumes: Names
    subjects: Names
    datasets: Repeated
    slots: npt.NDArray[np.uint32]
    checksums: npt.NDArray[np.uint32]
    valid: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, records: Sequence[VolumeRecord]) -> "StoreIndex":
        """Index some volume records."""
        ordered = sorted(records, key=lambda record: record.volume)
        packed = [[np.frombuffer(bytes.fromhex(plane), np.uint8) for plane in r.valid] for r in ordered]
        return cls(
            volumes=Names.of([record.volume for record in ordered]),
            subjects=Names.of([record.subject for record in ordered]),
            datasets=Repeated.of([record.dataset for record in ordered]),
            slots=np.array([max(record.slot, 0) for record in ordered], np.uint32),
            checksums=np.array([_image_checksum(record) for record in ordered], np.uint32),
            valid=np.array(packed, np.uint8) if ordered else np.zeros((0, 3, 0), np.uint8),
        )

    def segments(self) -> Iterator[bytes]:
        """The index in pieces of `SEGMENT` volumes: npz files without pickled objects."""
        for start in range(0, len(self), SEGMENT):
            part = self.select(range(start, min(start + SEGMENT, len(self))))
            file = io.BytesIO()
            names = {
                f"{field}_{array}": getattr(getattr(part, field), array)
                for field in ("volumes", "subjects")
                for array in ("letters", "ends")
            }
            names["datasets"] = np.array(list(part.datasets))
            np.savez(file, slots=part.slots, checksums=part.checksums, valid=part.valid, **names)
            yield file.getvalue()

    @classmethod
    def join(cls, segments: Sequence[bytes]) -> "StoreIndex":
        """Undo `segments`."""
        parts = [np.load(io.BytesIO(segment), allow_pickle=False) for segment in segments]
        return cls(
            volumes=_joined(parts, "volumes"),
            subjects=_joined(parts, "subjects"),
            datasets=Repeated.of([str(name) for part in parts for name in part["datasets"]]),
            slots=np.concatenate([part["slots"] for part in parts]),
            checksums=np.concatenate([part["checksums"] for part in parts]),
            valid=np.concatenate([part["valid"] for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.volumes)

    def select(self, positions: Sequence[int]) -> "StoreIndex":
        """The index of some of the volumes, in the order given."""
        return StoreIndex(
            volumes=self.volumes.select(positions),
            subjects=self.subjects.select(positions),
            datasets=self.datasets.select(positions),
            slots=self.slots[list(positions)],
            checksums=self.checksums[list(positions)],
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


def _image_checksum(record: VolumeRecord) -> int:
    return record.objects["image"].crc32c if "image" in record.objects else 0


def _joined(parts: Sequence[Any], field: str) -> Names:
    letters = [part[f"{field}_letters"] for part in parts]
    begins = np.cumsum([0, *(len(piece) for piece in letters[:-1])])
    ends = [part[f"{field}_ends"] + np.uint32(begin) for part, begin in zip(parts, begins, strict=True)]
    return Names(np.concatenate(letters), np.concatenate(ends))
