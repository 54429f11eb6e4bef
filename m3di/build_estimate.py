"""What a build will need, from its first scans: `m3di build-store --estimate`."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import disk_usage
from tempfile import TemporaryDirectory
from typing import Any, Final

from m3di.build import build_store
from m3di.config import Config
from m3di.inspect import describe_store
from m3di.machine import nearest_folder
from m3di.plan import plan
from stores.manifest import MARKER, ROWS, TEACHERS, VOLUMES

TRIED: Final = 3  # scans
TRAINING_PASSES: Final = 3  # what a step of a tower's training costs, in forward passes


@dataclass(frozen=True)
class BuildEstimate:
    """What a build will need.

    Attributes:
        volumes: How many are to be read, resampled and described.
        slices: How many slices of how many volumes are to be embedded, about.
        reading_s: Seconds of the first, by as many workers as are asked for.
        teacher_s: Seconds to fit the teacher, but for the steps of its heads, which are some seconds.
        embedding_s: Seconds to embed the slices.
        total_s: Seconds of all.
        memory_gib: The most that this process holds; each worker holds a scan and its cube besides.
        disk_gib: What is to be written.
        free_gib: What is free where it is to be written.
    """

    volumes: int
    slices: int
    reading_s: float
    teacher_s: float
    embedding_s: float
    total_s: float
    memory_gib: float
    disk_gib: float
    free_gib: float

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.disk_gib <= self.free_gib


def estimate_build(
    sources: Sequence[Path], path: Path, config: Config, *, layout: str = "auto", limit: int | None = None,
    workers: int | None = None, device: str = "auto",
) -> BuildEstimate:  # fmt: skip
    """Build the first scans into a folder that is removed, and count on.

    The captions are the describer's, whoever the captioner is: what an endpoint costs, `m3di captions plan` says.

    Args:
        sources: Dataset roots, folders or scans.
        path: The store; of one that is there, what is up to date is not counted.
        config: All settings.
        layout: How the sources are laid out; `auto` finds out.
        limit: Take the first cases only.
        workers: Processes that read and resample, by default one a core; 0 does it in this process.
        device: Where the teacher runs.

    Raises:
        RefusedError: As `build_store`; also when none of the first scans can be used.
    """
    # Here, because they import torch.
    from m3di.training.runtime import peak_memory_gib, pick_device  # noqa: PLC0415

    settings = replace(
        config, captions=replace(config.captions, captioner="describe"), teacher=replace(config.teacher, fit_steps=0)
    )
    watch = _Watch()
    with TemporaryDirectory(prefix="m3di-") as folder:
        tried = Path(folder) / "store"
        build_store(
            sources, tried, settings, layout=layout, limit=min(TRIED, limit or TRIED), workers=0, device=device,
            report=watch,
        )  # fmt: skip
        facts = describe_store(tried)
    volumes = rows = min(watch.num_cases, limit or watch.num_cases)
    fits = bool(config.teacher.fit_steps)
    if (path / MARKER).exists():
        items = plan(sources, path, config, layout=layout, limit=limit)
        todo = Counter(item.stage for item in items if item.action == "build")
        volumes, rows, fits = todo["volume"], todo["rows"], fits and bool(todo["teacher"])
    cores = len(os.sched_getaffinity(0)) if workers is None else max(workers, 1)
    slices_each = facts["rows"] / facts["volumes"]
    reading_s = watch.seconds_each("volumes") * volumes / min(cores, max(volumes, 1))
    embedding_s = watch.seconds_each("embeddings") * rows
    teacher_s = 0.0
    if fits:
        slice_s = watch.seconds_each("embeddings") / slices_each
        teacher_s = slice_s * _passes_of_fit(config, round(slices_each * rows))
    parts = facts["bytes by part"]
    bytes_of_rows = parts[ROWS] / facts["volumes"] * rows
    bytes_of_cubes = parts[VOLUMES] / facts["volumes"] * volumes
    return BuildEstimate(
        volumes, round(slices_each * rows), reading_s, teacher_s, embedding_s,
        total_s=reading_s + teacher_s + embedding_s,
        memory_gib=peak_memory_gib(pick_device(device)),
        disk_gib=(bytes_of_cubes + bytes_of_rows + parts.get(TEACHERS, 0) * fits) / 2**30,
        free_gib=disk_usage(nearest_folder(path)).free / 2**30,
    )  # fmt: skip


def _passes_of_fit(config: Config, num_slices: int) -> int:
    """How many slices' forward passes a fit of the teacher costs, without the steps of its heads."""
    teacher = config.teacher
    drawn = min(teacher.fit_slices, num_slices)
    if teacher.fit == "heads":
        return drawn
    steps = min(teacher.fit_steps, max(1, teacher.fit_passes * drawn // teacher.fit_batch_size))
    return drawn + TRAINING_PASSES * steps * teacher.fit_batch_size


@dataclass
class _Watch:
    """Reads the clock at the events of a build.

    Attributes:
        num_cases: How many cases the sources hold.
        times: Of each stage, when it began, and when its items were committed.
    """

    num_cases: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, event: str, /, **facts: Any) -> None:
        if event == "found":
            self.num_cases += facts["cases"]
        if event in {"begin", "committed"}:
            self.times.setdefault(facts["stage"], []).append(time.perf_counter())

    def seconds_each(self, stage: str) -> float:
        """Seconds an item of a stage takes; the first one, which warms up, is not counted if there are others."""
        times = self.times[stage]
        first = 1 if len(times) > 2 else 0
        return (times[-1] - times[first]) / (len(times) - 1 - first)
