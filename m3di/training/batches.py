"""Batches of labelled volumes: which ones, as a pure function of the clock; read ahead by one thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from m3di.training.sampler import Indices, Shuffle
from m3di.types import Float, Int64, Tensor

Read = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
Draw = Callable[[int, int], tuple[Indices, Indices]]  # (samples seen, batch size) -> numbers and epochs


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """What one step sees.

    Attributes:
        names: Number of each volume among the training volumes.
        epochs: How often each was drawn before.
        volumes: Cubes in [0, 1].
        labels: Class index of each voxel, or of each volume.
    """

    names: Indices
    epochs: Indices
    volumes: Float[Tensor, "b 1 d h w"]
    labels: Int64[Tensor, "b ..."]


class BalancedShuffle:
    """Endless rounds of one volume of each class, as a pure function of the clock.

    The classes come in another order each round, and each class in shuffled epochs of its own.

    Args:
        targets: Class of each volume.
        seed: Another seed is another sequence.
    """

    def __init__(self, targets: Sequence[int], *, seed: int) -> None:
        classes = np.asarray(targets)
        self._seed = seed
        self._members = [np.flatnonzero(classes == value) for value in np.unique(classes)]
        self._orders = [Shuffle(len(members), seed=seed) for members in self._members]

    def draw(self, samples_seen: int, batch_size: int) -> tuple[Indices, Indices]:
        """The volumes that follow after `samples_seen` ones, and the epoch of each: two arrays of shape (b,)."""
        pairs = [self._one(clock) for clock in range(samples_seen, samples_seen + batch_size)]
        volumes, epochs = np.array(pairs, np.int64).T
        return volumes, epochs

    def _one(self, clock: int) -> tuple[int, int]:
        turn, place = divmod(clock, len(self._members))
        generator = np.random.Generator(np.random.Philox(key=[self._seed, turn]))
        value = int(generator.permutation(len(self._members))[place])
        within, epochs = self._orders[value].draw(turn, 1)
        return int(self._members[value][within[0]]), int(epochs[0])


def read_ahead(
    read: Read, train: Sequence[int], draw: Draw, *, start: int, stop: int, batch_size: int
) -> Iterator[LabelledBatch]:
    """Batches from `samples_seen` = `start` to `stop`; the next one is read while one is in use.

    Args:
        read: Reads volumes and labels (`TaskData.read`).
        train: The training volumes.
        draw: Which of them come when.
        start: The clock of the first batch.
        stop: The clock after the last one.
        batch_size: Volumes of a batch.
    """

    def one(samples_seen: int) -> LabelledBatch:
        names, epochs = draw(samples_seen, batch_size)
        return LabelledBatch(names, epochs, *read([train[name] for name in names]))

    with ThreadPoolExecutor(1, thread_name_prefix="m3di-read-ahead") as pool:
        clocks = iter(range(start, stop, batch_size))
        pending = [pool.submit(one, clock) for clock in [next(clocks, None)] if clock is not None]
        while pending:
            batch = pending.pop().result()
            following = next(clocks, None)
            if following is not None:
                pending.append(pool.submit(one, following))
            yield batch
