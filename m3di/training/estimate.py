"""What a pretraining run will need, from a few of its own steps: `m3di pretrain --dry-run`."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from m3di.config import Config
from m3di.machine import free_memory
from m3di.training import runtime
from m3di.training.pretrain import pretrain

STEPS: Final = 3  # that are watched; the first one, which fills caches, is not timed
NEVER: Final = 1 << 40  # steps
MARGIN: Final = 1.1  # what is held beside the steps watched: evaluation, checkpoints


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        steps: Its length.
        step_s: Seconds a step takes with `accumulation`.
        total_s: Seconds of all steps, without evaluation and checkpoints.
        memory_gib: Memory with the accumulation that is set.
        free_gib: Memory that there is, of the accelerator, else of this process; None when nobody says.
        accumulation: The smallest `pretrain.accumulation` that fits, from the one set on; None when none does.
    """

    steps: int
    step_s: float | None
    total_s: float | None
    memory_gib: float
    free_gib: float | None
    accumulation: int | None

    @property
    def fits(self) -> bool:
        """Whether any accumulation fits."""
        return self.accumulation is not None


def estimate_pretraining(store: Path, config: Config, *, device: str = "auto") -> Estimate:
    """Take a few steps of one volume, of two, and of what fits; nothing is kept of them.

    Raises:
        RefusedError, DamagedError, ResourceError: As `pretrain`.
    """
    batch, asked = config.pretrain.batch_size, config.pretrain.accumulation
    place = runtime.pick_device(device)
    free = _free_gib(place)
    single = _watch(store, _sized(config, 1, 1), device)
    double = _watch(store, _sized(config, 2, 1), device)
    more = max(double.memory_gib - single.memory_gib, 0.0)

    def needed(accumulation: int) -> float:
        return MARGIN * (single.memory_gib + (batch // accumulation - 1) * more)

    choices = [parts for parts in range(asked, batch + 1) if batch % parts == 0]
    fitting = next((parts for parts in choices if free is None or needed(parts) <= free), None)
    timed = None if fitting is None else _watch(store, _sized(config, batch, fitting), device)
    steps = runtime.total_samples(config.pretrain, single.num_train) // batch
    return Estimate(
        steps,
        step_s=timed.step_s if timed else None,
        total_s=timed.step_s * steps if timed else None,
        memory_gib=needed(asked),
        free_gib=free,
        accumulation=fitting,
    )


@dataclass(frozen=True)
class _Watched:
    """What a few steps took: training volumes, seconds a step, and the most memory held."""

    num_train: int
    step_s: float
    memory_gib: float


class _Enough(Exception):  # noqa: N818
    """Ends a run that has been watched for long enough."""


def _sized(config: Config, batch_size: int, accumulation: int) -> Config:
    """The same run with other batches, which looks, saves and logs nothing but steps."""
    settings = replace(
        config.pretrain, batch_size=batch_size, accumulation=accumulation, max_steps=STEPS, log_every=1,
        evaluate_every=NEVER, checkpoint_every=NEVER, tensorboard=False,
    )  # fmt: skip
    return replace(config, pretrain=settings)


def _watch(store: Path, config: Config, device: str) -> _Watched:
    """Watch a run's first steps in a folder that is removed."""
    times: list[float] = []
    num_train, memory_gib = 0, 0.0

    def report(event: str, /, **facts: object) -> None:
        nonlocal num_train, memory_gib
        if event == "begin":
            num_train = int(str(facts["train"]))
        if event == "step":
            times.append(time.perf_counter())
            memory_gib = float(str(facts["memory_gib"]))
            if len(times) == STEPS:
                raise _Enough

    with TemporaryDirectory(prefix="m3di-") as folder, suppress(_Enough):
        pretrain(store, Path(folder) / "run", config, device=device, report=report)
    return _Watched(num_train, (times[-1] - times[0]) / (STEPS - 1), memory_gib)


def _free_gib(device: torch.device) -> float | None:
    """Memory for a run: what is free, and what this process holds already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    free = free_memory()
    return free / 2**30 + runtime.peak_memory_gib(device) if free else None
