"""Several processes that train one model: who they are, how rows, gradients and stop requests pass between them.

`torchrun --nproc-per-node 2 -m -- cli pretrain ...` starts them; without the `--`, torchrun takes `--run` for an
option of its own. Every process holds the whole model, reads its part of each batch and works out the loss of the
whole batch, so that the sum of all gradients is that of one process with the whole batch.
DistributedDataParallel is not used: it averages where the sum is wanted, and expects one backward pass after each
forward pass, where cached features (`m3di.training.steps`) need two forward passes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from m3di.training.meeting import store_of_round
from m3di.types import Tensor
from stores.errors import ResourceError

BUCKET: Final = 16 << 20  # gradient elements that travel together: 64 MiB of float32
# A process that dies breaks its connections, and torchrun stops the others; this is for one that hangs.
TIMEOUT: Final = timedelta(minutes=10)

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: This one's number; the first is 0, which alone writes and reports.
        size: How many there are.
        local_rank: This one's number on its machine, and so its accelerator's.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def gather(self, rows: Tensor) -> Tensor:
        """Every process's rows, in the order of ranks; all have equally many.

        Gradients reach this process's own rows. As every process works out the loss of all rows, that is the whole
        gradient of its rows; passing gradients between processes as well would count each `size` times.
        """
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.detach().contiguous())
        parts[self.rank] = rows
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the processes' gradients; one that any process has, all have afterwards."""
        if self.size == 1:
            return
        learnable = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([parameter.grad is not None for parameter in learnable], dtype=torch.int32)
        dist.all_reduce(present, dist.ReduceOp.MAX)
        wanted = [parameter for parameter, one in zip(learnable, present.tolist(), strict=True) if one]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in wanted]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))
        for parameter, gradient in zip(wanted, gradients, strict=True):
            parameter.grad = gradient

    def share_statistics(self, model: nn.Module) -> None:
        """Give every process the first one's running statistics; batch norms themselves see a process's part only."""
        if self.size > 1:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for buffer in module.buffers():
                        dist.broadcast(buffer, 0)

    def agree(self, number: int | None) -> int | None:
        """The largest number that any process has: a signal that one received stops all after the same step."""
        if self.size == 1:
            return number
        largest = torch.tensor([number or 0], dtype=torch.int32)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest) or None

    def collect(self, item: T) -> list[T]:
        """Every process's item, in the order of ranks."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a list; the shares in order are the list."""
        begin, end = (len(items) * rank // self.size for rank in (self.rank, self.rank + 1))
        return items[begin:end]


def this_process() -> World:
    """This process as torchrun numbers it; alone without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    return World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def join() -> Iterator[World]:
    """The processes that torchrun started with this one; alone without torchrun.

    Raises:
        ResourceError: E_WORKER, when another of them is gone.
    """
    world = this_process()
    if world.size == 1:
        yield world
        return
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
        backend += ",cuda:nccl"
    store = store_of_round(world.rank, world.size)
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=world.rank, world_size=world.size)
    try:
        yield world
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        message = f"process {world.rank} of {world.size}: another process of the run is gone ({error})"
        hint = "run the command again; pretraining goes on with --resume"
        raise ResourceError("E_WORKER", " ".join(message.split()), hint=hint) from error
    dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed: gloo's errors are told by their text only."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "connection"))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type in groups of at most `BUCKET` elements, a larger one alone."""
    bucket: list[Tensor] = []
    for gradient in sorted(gradients, key=lambda gradient: str(gradient.dtype)):
        full = bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET
        if full or (bucket and bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
