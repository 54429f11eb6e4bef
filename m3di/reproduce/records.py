"""Finished cells as small JSON files, fit to be committed: what was done, what came out, what it cost."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from m3di.evaluation.results import jsonable
from stores import atomic
from stores.errors import DamagedError

SCHEMA: Final = "m3di.cell/1"


@dataclass(frozen=True)
class Cost:
    """What a cell took.

    Attributes:
        encoder_passes: Volumes that a 3D encoder was trained on.
        teacher_passes: Slices that the 2D teacher embedded.
        wall_s: Seconds of its processes, one after the other.
        cpu_s: Their processor time.
        peak_memory_mib: The most memory that one of them held.
        disk_bytes: What it left on disk.
    """

    encoder_passes: int = 0
    teacher_passes: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_mib: float = 0.0
    disk_bytes: int = 0


@dataclass(frozen=True)
class Record:
    """A finished cell.

    Attributes:
        name: The cell's name.
        kind: Its kind.
        digest: Of `facts`.
        facts: Everything that determines the result.
        commands: Command lines that repeat it, where `$DATA` and `$OUT` are set.
        made_with: Versions, device and threads.
        cost: What it took.
        result: What came out, by kind.
    """

    name: str
    kind: str
    digest: str
    facts: Mapping[str, Any]
    commands: tuple[str, ...]
    made_with: Mapping[str, Any]
    cost: Cost
    result: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Keep it as `FOLDER/NAME.json`, a line a field, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        content = jsonable({"schema": SCHEMA, **asdict(self)})
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
        atomic.write_bytes(folder / f"{self.name}.json", f"{{\n{lines}\n}}\n".encode())


def read_records(folder: Path) -> dict[str, Record]:
    """The finished cells of a folder by name.

    Raises:
        DamagedError: E_CORRUPT or E_VERSION, naming a file that is no such record.
    """
    records = (_read(path) for path in sorted(folder.glob("*.json")))
    return {record.name: record for record in records}


def total_cost(records: Iterable[Record]) -> Cost:
    """Cost of several cells: sums, and the largest peak of memory."""
    costs = [record.cost for record in records]
    return Cost(
        encoder_passes=sum(one.encoder_passes for one in costs),
        teacher_passes=sum(one.teacher_passes for one in costs),
        wall_s=round(math.fsum(one.wall_s for one in costs), 1),
        cpu_s=round(math.fsum(one.cpu_s for one in costs), 1),
        peak_memory_mib=max((one.peak_memory_mib for one in costs), default=0.0),
        disk_bytes=sum(one.disk_bytes for one in costs),
    )


def _read(path: Path) -> Record:
    hint = f"remove {path.name}; the cell is then made again"
    try:
        content = json.loads(path.read_bytes())
        schema = content.pop("schema")
        if schema != SCHEMA:
            raise DamagedError("E_VERSION", f"{path} has schema {schema!r}, not {SCHEMA}", hint=hint)
        content["commands"] = tuple(content["commands"])
        return Record(**{**content, "cost": Cost(**content["cost"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("E_CORRUPT", f"{path} is no finished cell: {error}", hint=hint) from error
