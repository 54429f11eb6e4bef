"""PlaneSliceSampler: which volumes and which K slices of each make a batch, as a pure function of the clock."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.training.slice_weights import SliceWeights
from stores.blocks import splitmix64
from stores.errors import RefusedError
from stores.index import StoreIndex

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Draw:
    """One batch to be.

    Attributes:
        volumes: (b,) positions in the index.
        planes: (b, k) plane numbers.
        slices: (b, k) slice positions in the cube.
        epochs: (b,) how often each volume was drawn before.
    """

    volumes: Indices
    planes: Indices
    slices: Indices
    epochs: Indices


class Shuffle:
    """Endless epochs of shuffled volumes, as a pure function of the clock; batches run over the end of an epoch.

    Args:
        num_volumes: Volumes in an epoch.
        seed: Another seed is another sequence.
    """

    def __init__(self, num_volumes: int, *, seed: int) -> None:
        self._num_volumes = num_volumes
        self._seed = seed
        self._orders: dict[int, Indices] = {}

    def draw(self, samples_seen: int, batch_size: int) -> tuple[Indices, Indices]:
        """The volumes that follow after `samples_seen` ones, and the epoch of each: two arrays of shape (b,)."""
        clock = np.arange(samples_seen, samples_seen + batch_size)
        epochs, ranks = np.divmod(clock, self._num_volumes)
        volumes = np.empty(batch_size, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            volumes[epochs == epoch] = self._order(epoch)[ranks[epochs == epoch]]
        return volumes, epochs

    def _order(self, epoch: int) -> Indices:
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1}
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._orders[epoch] = generator.permutation(self._num_volumes)
        return self._orders[epoch]


class PlaneSliceSampler:
    """Stateless: the same (seed, samples seen) gives the same draw, whatever was drawn before.

    Every epoch is a permutation of the volumes; batches run over its end into the next. The K slices of a volume
    are drawn without replacement from its valid ones; planes have equal weight, however many slices they have. With
    weights of slices, the chance of each is multiplied by its own, and that of its plane changes with it. A volume
    with fewer than K slices gives all of them in the order drawn, and then those again.

    Args:
        index: Volumes and their valid slices.
        slices_per_volume: K.
        seed: Another seed is another sequence.
        plane_weights: Relative frequency of axial, coronal and sagittal slices.
        slice_weights: Of the slices of the index; None where all are 1. A slice of weight 0 is never drawn.

    Raises:
        RefusedError: E_CONFIG, when there is no volume, or one without a slice to draw, naming it.

    Attributes:
        index: The volumes.
        num_drawable: (n,) how many slices of each volume may be drawn.
    """

    def __init__(
        self,
        index: StoreIndex,
        *,
        slices_per_volume: int,
        seed: int,
        plane_weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        slice_weights: SliceWeights | None = None,
    ) -> None:
        if len(index) == 0:
            raise RefusedError("E_CONFIG", "there is no volume to train on", hint="build a store with more volumes")
        weighted = np.asarray(plane_weights) > 0
        self.num_drawable = index.num_rows()[:, weighted].sum(axis=1)
        _require_slices(index, self.num_drawable, hint="give more planes weight in pretrain.plane_weights")
        if slice_weights is not None:
            self.num_drawable = self.num_drawable - slice_weights.num_barred(len(index), weighted)
            _require_slices(index, self.num_drawable, hint="give some of them weight in pretrain.slice_weights")
        self.index = index
        self.slice_weights = slice_weights
        self._slices_per_volume = slices_per_volume
        self._seed = seed
        self._plane_weights = np.asarray(plane_weights)
        self._shuffle = Shuffle(len(index), seed=seed)

    def draw(self, samples_seen: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Draw:
        """The batch of `batch_size` volumes that follows after `samples_seen` volumes, or one process's part of it.

        Args:
            samples_seen: The clock: volumes that all processes together have seen.
            batch_size: Volumes of all processes together.
            rank: Which part; the parts in order are the batch, so any number of processes sees one sequence.
            world_size: How many parts; must divide the batch.

        Raises:
            RefusedError: E_CONFIG, when it does not.
        """
        if batch_size % world_size:
            message = f"a batch of {batch_size} volumes cannot be shared by {world_size} processes"
            raise RefusedError("E_CONFIG", message, hint=f"make the batch size a multiple of {world_size}")
        share = batch_size // world_size
        volumes, epochs = self._shuffle.draw(samples_seen + rank * share, share)
        planes, slices = self._slices(volumes, epochs)
        return Draw(volumes, planes, slices, epochs)

    def _slices(self, volumes: Indices, epochs: Indices) -> tuple[Indices, Indices]:
        """Weighted draw without replacement: the K first arrivals of an exponential race of all valid slices.

        Where fewer take part, they arrive again in the same order.
        """
        bits = self.index.bits(volumes)
        batch, _, positions = bits.shape
        weight = self._plane_weights[:, None] / np.maximum(bits.sum(axis=-1, keepdims=True), 1)
        if self.slice_weights is not None:
            weight = weight * self.slice_weights.of(volumes)
        lane = np.arange(3 * positions, dtype=np.uint64).reshape(1, 3, positions)
        key = keyed_uniform(self._seed, epochs[:, None, None], volumes[:, None, None], lane)
        with np.errstate(divide="ignore"):
            arrival = np.where(bits & (weight > 0), -np.log(key) / weight, np.inf)
        order = np.argsort(arrival.reshape(batch, -1), axis=1, kind="stable")
        turns = np.arange(self._slices_per_volume) % self.num_drawable[volumes, None]
        first = np.take_along_axis(order, turns, axis=1)
        return first // positions, first % positions


def _require_slices(index: StoreIndex, num_drawable: Indices, *, hint: str) -> None:
    """Refuse a volume without slices."""
    poorest = int(num_drawable.argmin())
    if num_drawable[poorest] == 0:
        raise RefusedError("E_CONFIG", f"volume {index.volumes[poorest]} has no slice to draw", hint=hint)


def keyed_uniform(*key: npt.NDArray[Any] | int) -> npt.NDArray[np.float64]:
    """Uniform numbers in (0, 1), one a key; parts of the key broadcast (splitmix64 of each part in turn)."""
    state = np.zeros((), np.uint64)
    for part in key:
        state = splitmix64(np.asarray(state ^ np.asarray(part).astype(np.uint64)))
    return np.asarray((np.asarray(state >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53)
