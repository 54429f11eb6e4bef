"""Weights of slices, as `m3di captions audit --out` writes them: what the sampler multiplies a slice's chance by.

A file of JSON lines, each with `volume`, `plane`, `slice` (position in the cube) and `weight`; more fields are left
alone. Slices that the file does not name have weight 1.
"""

import hashlib
import json
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.index import Indices, StoreIndex

LOWEST, HIGHEST = 1e-9, 1e9  # of weights that are not 0: the sampler's arithmetic is exact enough between them
_HINT: Final = "write the file again: m3di captions audit --out FILE"


@dataclass(frozen=True, eq=False)
class SliceWeights:
    """The weights that are not 1: 16 bytes each, whatever the size of the store.

    Attributes:
        places: (m,) ascending: the number of each slice among those of all volumes, as `_places` counts.
        values: (m,) their weights.
        positions: Slice positions that a plane has in the index.
        digest: sha256 of the file.
    """

    places: Indices
    values: npt.NDArray[np.float64]
    positions: int
    digest: str

    def of(self, volumes: Indices) -> npt.NDArray[np.float64]:
        """(b, 3, positions) weights of the slices of some volumes."""
        size = 3 * self.positions
        weights = np.ones((len(volumes), size))
        begins, ends = np.searchsorted(self.places, [volumes * size, (volumes + 1) * size])
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            weights[row, self.places[begin:end] - volumes[row] * size] = self.values[begin:end]
        return weights.reshape(-1, 3, self.positions)

    def num_barred(self, num_volumes: int, planes: npt.NDArray[np.bool_]) -> Indices:
        """(n,) how many slices of each volume have weight 0, in the planes that are given as (3,) of bool."""
        volumes, within = np.divmod(self.places[self.values == 0], 3 * self.positions)
        return np.bincount(volumes[planes[within // self.positions]], minlength=num_volumes)


def read_slice_weights(path: Path, known: StoreIndex, drawn: StoreIndex) -> SliceWeights:
    """Read the weights of the slices that are drawn from.

    Args:
        path: The file.
        known: All volumes that the file may speak of, sorted by id.
        drawn: Those to draw from, sorted by id; the weights of others are checked and left out.

    Raises:
        RefusedError: E_CONFIG, when the file cannot be read; E_CAPTION, naming the line, when one is malformed, names
            a slice that has no row or was named before, or gives a weight that is none.
    """
    reader = _Reader(path, known, drawn)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                reader.take(number, line)
    except OSError as error:
        message = f"pretrain.slice_weights={path} cannot be read: {error.strerror}"
        raise RefusedError("E_CONFIG", message, hint=_HINT) from error
    return reader.weights()


class _Reader:
    """What is known of the lines so far; the slices of one volume usually follow each other.

    Args:
        path: The file, for messages.
        known: See `read_slice_weights`.
        drawn: See there.
    """

    def __init__(self, path: Path, known: StoreIndex, drawn: StoreIndex) -> None:
        self._path = path
        self._known = known
        self._drawn = drawn
        self._digest = hashlib.sha256()
        self._volume = ""
        self._place, self._target, self._valid = -1, -1, np.zeros((3, 0), bool)
        self._named = array("q")  # one a line: place in `known`, to find lines that say the same slice
        self._places, self._values = array("q"), array("d")

    def take(self, number: int, line: bytes) -> None:
        """Take one line."""
        self._digest.update(line)
        try:
            volume, plane, index, weight = _fields(line)
            self._find(volume)
            if not 0 <= index < self._valid.shape[1] or not self._valid[plane, index]:
                raise _Unfit(f"slice {index} of plane {PLANES[plane]} of {volume!r} has no row in the store")
        except _Unfit as unfit:
            raise RefusedError("E_CAPTION", f"{self._path} line {number}: {unfit}", hint=_HINT) from None
        positions = self._valid.shape[1]
        self._named.append((3 * self._place + plane) * positions + index)
        if weight != 1 and self._target >= 0:
            self._places.append((3 * self._target + plane) * positions + index)
            self._values.append(weight)

    def weights(self) -> SliceWeights:
        """All that was taken."""
        self._refuse_repeated()
        places, values = np.array(self._places, np.int64), np.array(self._values, np.float64)
        order = np.argsort(places)
        return SliceWeights(places[order], values[order], 8 * self._drawn.valid.shape[-1], self._digest.hexdigest())

    def _find(self, volume: str) -> None:
        if volume == self._volume:
            return
        self._place = _position(self._known, volume)
        if self._place < 0:
            raise _Unfit(f"volume {volume!r} has no rows in the store")
        self._target = _position(self._drawn, volume)
        self._valid = self._known.bits(np.array([self._place]))[0]
        self._volume = volume

    def _refuse_repeated(self) -> None:
        named = np.array(self._named, np.int64)
        order = np.argsort(named, kind="stable")
        again = np.flatnonzero(np.diff(named[order]) == 0)
        if len(again):
            first, second = sorted(int(line) + 1 for line in order[again[0] : again[0] + 2])
            message = f"{self._path} line {second}: says the same slice as line {first}"
            raise RefusedError("E_CAPTION", message, hint=_HINT)


class _Unfit(Exception):  # noqa: N818
    """What is wrong with a line."""


def _fields(line: bytes) -> tuple[str, int, int, float]:
    """Volume, plane number, slice and weight of a line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _Unfit("is not JSON") from None
    if not isinstance(row, dict):
        raise _Unfit("is not a JSON object")
    volume, plane, index, weight = (_field(row, name) for name in ("volume", "plane", "slice", "weight"))
    if not isinstance(volume, str) or not volume:
        raise _Unfit(f"volume {volume!r} is no name")
    if plane not in PLANES:
        raise _Unfit(f"plane {plane!r} is none of {', '.join(PLANES)}")
    if not isinstance(index, int) or isinstance(index, bool):
        raise _Unfit(f"slice {index!r} is no whole number")
    return volume, PLANES.index(plane), index, _weight(weight)


def _field(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise _Unfit(f"has no {name}")
    return row[name]


def _weight(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value == 0 or LOWEST <= value <= HIGHEST):
        raise _Unfit(f"weight {value!r:.40} is neither 0 nor a number from {LOWEST:g} to {HIGHEST:g}")
    return float(value)


def _position(index: StoreIndex, volume: str) -> int:
    """Where a volume is in a sorted index; -1 when it is not there."""
    place = bisect_left(index.volumes, volume)
    return place if place < len(index) and index.volumes[place] == volume else -1
