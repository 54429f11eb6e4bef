"""What a run of training will need, from a few of its own steps: `m3di pretrain` and `finetune --estimate`."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import torch

from m3di.config import Config
from m3di.events import Report
from m3di.machine import free_memory
from m3di.training import runtime
from m3di.training.pretrain import pretrain

STEPS: Final = 3  # that are watched; the first one, which fills caches, is not timed
NEVER: Final = 1 << 40  # steps
MARGIN: Final = 1.1  # what is held beside the steps watched: evaluation, checkpoints

Train = Callable[[Path, Config, Report], object]  # trains in a run folder
Section = Literal["pretrain", "finetune"]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Estimate:
    """What a run will need.

    Attributes:
        steps: Its length.
        step_s: Seconds a step of a whole batch takes, `fitting` volumes at a time; None when none fits.
        total_s: Seconds of all steps, without evaluation and checkpoints; None when none fits.
        memory_gib: Memory with the settings as they are.
        free_gib: Memory that there is, of the accelerator, else of this process; None when nobody says.
        fitting: How many volumes fit into memory at a time, at most as many as the settings ask for; None when not
            even one does.
    """

    steps: int
    step_s: float | None
    total_s: float | None
    memory_gib: float
    free_gib: float | None
    fitting: int | None


def estimate_pretraining(store: Path, config: Config, *, device: str = "auto") -> Estimate:
    """Take a few steps of one volume, of two, and of what fits; nothing is kept of them.

    A batch that does not fit whole may fit in equal parts (`pretrain.accumulation`).

    Raises:
        RefusedError, DamagedError, ResourceError: As `pretrain`.
    """
    batch, asked = config.pretrain.batch_size, config.pretrain.accumulation
    sizes = {batch // parts: {"accumulation": parts} for parts in range(asked, batch + 1) if batch % parts == 0}

    def train(run: Path, settings: Config, report: Report) -> object:
        return pretrain(store, run, settings, device=device, report=report)

    few = [{"batch_size": size, "accumulation": 1} for size in (1, 2)]
    return _estimate(train, "pretrain", config, few, sizes, device)


def estimate_finetuning(train: Train, config: Config, *, device: str = "auto") -> Estimate:
    """Take a few steps of two volumes, of three, and of what fits; nothing is kept of them but the task's cubes.

    Two at least, as a network with batch normalisation may learn of no less.

    Args:
        train: `finetune` with its task, data and network.
        config: All settings.
        device: Where it trains.

    Raises:
        RefusedError, ResourceError: As `finetune`.
    """
    batch = config.finetune.batch_size
    least = min(2, batch)
    few = [{"batch_size": size} for size in (least, least + 1)]
    return _estimate(
        train, "finetune", config, few, {size: {"batch_size": size} for size in range(batch, 0, -1)}, device
    )


def _estimate(  # noqa: PLR0917
    train: Train, section: Section, config: Config, few: Sequence[Sizes], sizes: Mapping[int, Sizes], device: str
) -> Estimate:
    """Memory by two small batches, then time by the largest that fits.

    Args:
        train: Trains.
        section: Whose settings are changed.
        config: All settings.
        few: Settings of batches of two small sizes, one volume apart.
        sizes: Volumes at a time, from as many as are asked for to few, and the settings of each.
        device: Where it trains.
    """
    free = _free_gib(runtime.pick_device(device))
    small, larger = (_watch(train, _short(config, section, one)) for one in few)
    more = max(larger.memory_gib - small.memory_gib, 0.0)

    def needed(volumes: int) -> float:
        return MARGIN * (small.memory_gib + (volumes - few[0]["batch_size"]) * more)

    asked = next(iter(sizes))
    fitting = next((volumes for volumes in sizes if free is None or needed(volumes) <= free), None)
    timed = None if fitting is None else _watch(train, _short(config, section, sizes[fitting]))
    settings = replace(getattr(config, section), **sizes[asked if fitting is None else fitting])
    steps = runtime.total_samples(settings, small.num_train) // settings.batch_size
    return Estimate(
        steps,
        step_s=timed.step_s if timed else None,
        total_s=timed.step_s * steps if timed else None,
        memory_gib=needed(asked),
        free_gib=free,
        fitting=fitting,
    )


@dataclass(frozen=True)
class _Watched:
    """What a few steps took: training volumes, seconds a step, and the most memory held."""

    num_train: int
    step_s: float
    memory_gib: float


class _Enough(Exception):  # noqa: N818
    """Ends a run that has been watched for long enough."""


def _short(config: Config, section: Section, sizes: Sizes) -> Config:
    """The same run with other batches, which looks, saves and logs nothing but steps."""
    changes: dict[str, Any] = {
        "max_steps": STEPS, "log_every": 1, "evaluate_every": NEVER, "checkpoint_every": NEVER, **sizes,
    }  # fmt: skip
    if section == "pretrain":
        changes["tensorboard"] = False
    return replace(config, **{section: replace(getattr(config, section), **changes)})


def _watch(train: Train, config: Config) -> _Watched:
    """Watch a run's first steps in a folder that is removed."""
    times: list[float] = []
    num_train, memory_gib = 0, 0.0

    def report(event: str, /, **facts: object) -> None:
        nonlocal num_train, memory_gib
        if event == "begin" and "train" in facts:
            num_train = int(str(facts["train"]))
        if event == "step":
            times.append(time.perf_counter())
            memory_gib = float(str(facts["memory_gib"]))
            if len(times) == STEPS:
                raise _Enough

    with TemporaryDirectory(prefix="m3di-") as folder, suppress(_Enough):
        train(Path(folder) / "run", config, report)
    return _Watched(num_train, (times[-1] - times[0]) / (STEPS - 1), memory_gib)


def _free_gib(device: torch.device) -> float | None:
    """Memory for a run: what is free, and what this process holds already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    free = free_memory()
    return free / 2**30 + runtime.peak_memory_gib(device) if free else None
