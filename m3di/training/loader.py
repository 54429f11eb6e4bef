"""Batches for pretraining: volumes and cached targets, read ahead by one thread into a ring of reused buffers."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from m3di.training.sampler import Draw, PlaneSliceSampler
from m3di.types import Float, Int64, Tensor
from stores.embeddings import EmbeddingStore
from stores.errors import DamagedError, RefusedError
from stores.volumes import VolumeStore

RING: Final = 3  # one batch in use, one ready, one being filled


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees.

    Attributes:
        draw: The volumes and slices by number.
        volumes: Cubes in [0, 1].
        planes: Plane number of each slice.
        slices: Position of each slice in the cube.
        targets: Cached rows: the teacher's image and text embedding of each slice, those of several side by side.
        patches: Cached dense rows: the teacher's patch features of each slice, row by row; None without.
    """

    draw: Draw
    volumes: Float[Tensor, "b 1 d h w"]
    planes: Int64[Tensor, "b k"]
    slices: Int64[Tensor, "b k"]
    targets: Float[Tensor, "b k 2 e"]
    patches: Float[Tensor, "b k p f"] | None = None


class BatchReader:
    """Reads batches of a store.

    Args:
        volumes: The cubes.
        embeddings: The targets; its index says what there is.
        dense: Dense targets, of these volumes at least; None for none.
        further: Targets of further teachers, of these volumes at least, which are put beside the first.
        pinned: Use page-locked memory, for copies to an accelerator.

    Raises:
        RefusedError: E_STORE, when a volume has no dense or further rows, naming it.
    """

    def __init__(
        self,
        volumes: VolumeStore,
        embeddings: EmbeddingStore,
        *,
        dense: EmbeddingStore | None = None,
        further: Sequence[EmbeddingStore] = (),
        pinned: bool = False,
    ) -> None:
        self._volumes = volumes
        self._embeddings = embeddings
        names = embeddings.index.volumes
        self._dense = (
            None if dense is None else _of_volumes(dense, names, what="dense rows", setting="teacher.dense_dim")
        )
        self._further = [
            _of_volumes(rows, names, what=f"rows of teacher {rows.fingerprint[:16]}", setting="that teacher")
            for rows in further
        ]
        self._pinned = pinned

    def buffer(self, batch_size: int) -> Tensor:
        """A float16 buffer for a batch of cubes: (b, 1, d, h, w)."""
        shape = self._volumes.layouts["image"].shape
        return torch.empty((batch_size, 1, *shape), dtype=torch.float16, pin_memory=self._pinned)

    def read(self, draw: Draw, buffer: Tensor) -> Batch:
        """Read one batch, its volumes into `buffer`; every checksum is verified.

        Raises:
            DamagedError: Naming the damaged or missing item.
        """
        cubes = buffer.numpy()
        for row, volume in enumerate(draw.volumes):
            self._read_cube(int(volume), cubes[row, 0])
        place = draw.volumes, draw.planes, draw.slices
        rows = [part.gather(*place) for part in (self._embeddings, *self._further)]
        targets = self._tensor(np.concatenate(rows, axis=-1) if self._further else rows[0])
        patches = None if self._dense is None else self._tensor(self._dense.gather(*place))
        return Batch(draw, buffer, self._tensor(draw.planes), self._tensor(draw.slices), targets, patches)

    def will_need(self, draw: Draw) -> None:
        """Have the volumes of a later batch brought into the system's cache meanwhile."""
        self._volumes.will_need("image", self._embeddings.index.slots[draw.volumes].tolist())

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._pinned else tensor

    def _read_cube(self, volume: int, out: npt.NDArray[Any]) -> None:
        index = self._embeddings.index
        checksum = int(index.checksums[volume])
        try:
            self._volumes.read("image", int(index.slots[volume]), out=out, checksum=checksum)
        except DamagedError as error:
            message = f"volume {index.volumes[volume]}: {error.message}"
            raise DamagedError(error.code, message, hint=error.hint) from error


def _of_volumes(rows: EmbeddingStore, volumes: Sequence[str], *, what: str, setting: str) -> EmbeddingStore:
    """The rows of some volumes, in their order: two row sets number their volumes each in its own way."""
    positions = {volume: position for position, volume in enumerate(rows.index.volumes)}
    missing = [volume for volume in volumes if volume not in positions]
    if missing:
        message = f"{len(missing)} of {len(volumes)} volumes have no {what}: {missing[0]}, ..."
        raise RefusedError("E_STORE", message, hint=f"run m3di build-store with {setting} to its end")
    return rows.select([positions[volume] for volume in volumes])


def prefetch(
    reader: BatchReader, sampler: PlaneSliceSampler, *, start: int, stop: int, batch_size: int, rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:  # fmt: skip
    """Batches from `samples_seen` = `start` to `stop`, or a rank's part of each; the next is read ahead.

    A batch's volumes are valid until the batch after it is taken. An error of the reading thread is raised here.
    """
    free: queue.Queue[Tensor] = queue.Queue()
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue()
    done = threading.Event()
    for _ in range(RING):
        free.put(reader.buffer(batch_size // world_size))

    def fill() -> None:
        try:
            draws = (
                sampler.draw(samples_seen, batch_size, rank=rank, world_size=world_size)
                for samples_seen in range(start, stop, batch_size)
            )
            following = next(draws, None)
            while (draw := following) is not None:
                following = next(draws, None)
                if following is not None:
                    reader.will_need(following)
                buffer = free.get()
                if done.is_set():
                    return
                ready.put(reader.read(draw, buffer))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=fill, name="m3di-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            free.put(item.volumes)
    finally:
        done.set()
        free.put(torch.empty(0))
        thread.join()
