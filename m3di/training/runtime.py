"""The process around a training loop: device, threads, precision, the run folder's log."""

import ctypes
import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from m3di.config import Config, FinetuneConfig, PretrainConfig
from stores import atomic
from stores.errors import RefusedError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pick_device(name: str) -> torch.device:
    """Device by name; `auto` takes the accelerator when there is one.

    Raises:
        RefusedError: E_CONFIG, for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RefusedError("E_CONFIG", f"no device {name!r}", hint="use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RefusedError("E_CONFIG", f"device {name!r}: no CUDA device is visible", hint="use --device cpu")
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


class MetricsLog:
    """`metrics.jsonl` of a run: one object a line, ordered by samples_seen.

    Args:
        path: The file.
        samples_seen: Where the run continues; lines from beyond it are dropped, as those steps will come again.
    """

    def __init__(self, path: Path, *, samples_seen: int) -> None:
        kept = [line for line in read_metrics(path) if line["samples_seen"] <= samples_seen]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._path = path

    def write(self, **facts: Any) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps(facts) + "\n")


def begin_run(run: Path, config: Config, *, samples_seen: int) -> MetricsLog:
    """Make the run's folder, keep its settings, and open its log at `samples_seen`."""
    run.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(run / "config.json", json.dumps(config.to_dict(), indent=2).encode())
    return MetricsLog(run / "metrics.jsonl", samples_seen=samples_seen)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the log of a run; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
