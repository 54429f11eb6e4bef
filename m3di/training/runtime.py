"""The process around a training loop: device, threads, precision, memory, the run folder's log."""

import ctypes
import json
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch

from m3di.config import Config, FinetuneConfig, PretrainConfig
from stores import atomic
from stores.errors import RefusedError, ResourceError
from stores.locking import only_holder

METRICS: Final = "metrics.jsonl"
LOCK: Final = "run.lock"
PRETRAINING_HINT: Final = "raise pretrain.accumulation, or set pretrain.gradient_checkpointing=true; then --resume"
CPU_ALLOCATOR: Final = "alloc_cpu"  # in its errors of memory, whose text at times ends right after it
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pick_device(name: str, *, local_rank: int = 0) -> torch.device:
    """Device by name; `auto` takes the accelerator when there is one.

    Args:
        name: `auto`, `cpu`, `cuda` or `cuda:N`.
        local_rank: Number of the process on its machine: each takes its own accelerator, unless N is given.

    Raises:
        RefusedError: E_CONFIG, for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RefusedError("E_CONFIG", f"no device {name!r}", hint="use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RefusedError("E_CONFIG", f"device {name!r}: no CUDA device is visible", hint="use --device cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return device


def prepare_process() -> None:
    """Use every core this process may run on, unless OMP_NUM_THREADS says otherwise, and keep freed memory.

    glibc gives each large tensor's memory back to the system and gets it again, page fault by page fault: at 64^3 on
    two CPU cores a UNETR step spent half of its time there (4.0 s, 1.5 s without).
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def total_samples(settings: PretrainConfig | FinetuneConfig, num_volumes: int) -> int:
    """Length of a run in volumes seen: a whole number of batches."""
    batch = settings.batch_size
    if settings.max_steps is not None:
        return settings.max_steps * batch
    return -(-settings.epochs * num_volumes // batch) * batch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The mixed-precision context of a forward pass; none for float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that was held so far: the accelerator's, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


@contextmanager
def memory_named(hint: str = PRETRAINING_HINT) -> Iterator[None]:
    """Turn torch's errors of memory, which have no class of their own on the CPU, into E_MEMORY.

    Args:
        hint: What to do about it.

    Raises:
        ResourceError: E_MEMORY.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and CPU_ALLOCATOR not in str(error):
            raise
        raise ResourceError("E_MEMORY", str(error).splitlines()[0], hint=hint) from error


@contextmanager
def run_locked(run: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if there is none, so that no two processes write into one.

    Raises:
        LockedError: E_LOCKED, when another process holds it.
        RefusedError: E_PATH, when it cannot be made.
    """
    with atomic.disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    with only_holder(
        run / LOCK, busy=f"another process writes to {run}", hint="wait for it, or choose another --run"
    ):
        yield


class MetricsLog:
    """`metrics.jsonl` of a run: one object a line, ordered by samples_seen; and the same for TensorBoard if asked.

    Args:
        run: The run's folder.
        samples_seen: Where the run continues; lines from beyond it are dropped, as those steps will come again.
        tensorboard: Write events into `run/tensorboard` too.

    Raises:
        RefusedError: E_CONFIG, when TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Path, *, samples_seen: int, tensorboard: bool = False) -> None:
        self._events = _event_writer(run / "tensorboard", samples_seen) if tensorboard else None
        self._path = run / METRICS
        kept = [line for line in read_metrics(self._path) if line["samples_seen"] <= samples_seen]
        atomic.write_bytes(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def write(self, *, samples_seen: int, **facts: Any) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"samples_seen": samples_seen, **facts}) + "\n")
        if self._events is not None:
            for name, value in _numbers(facts, ""):
                self._events.add_scalar(name, value, samples_seen)
            self._events.flush()


def begin_run(run: Path, config: Config, *, samples_seen: int, tensorboard: bool = False) -> MetricsLog:
    """Make the run's folder, keep its settings, and open its log at `samples_seen`."""
    run.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(run / "config.json", json.dumps(config.to_dict(), indent=2).encode())
    return MetricsLog(run, samples_seen=samples_seen, tensorboard=tensorboard)


def _event_writer(folder: Path, samples_seen: int) -> Any:
    """A writer whose readers forget what an earlier process wrote beyond `samples_seen`."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        message = "pretrain.tensorboard is set, and TensorBoard is not installed"
        raise RefusedError("E_CONFIG", message, hint="pip install 'm3di[tensorboard]'") from error
    return SummaryWriter(str(folder), purge_step=samples_seen + 1)


def _numbers(facts: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the log of a run; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
