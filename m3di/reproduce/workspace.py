"""The folder of a programme: finished cells, and below `work` what is too large to commit."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m3di.reproduce.cells import Cell, Command
from m3di.reproduce.datasets import DATASETS
from stores import atomic
from stores.locking import only_holder

ERROR: Final = "error.json"
COSTS: Final = "costs.jsonl"


@dataclass(frozen=True)
class Workspace:
    """Where things are.

    Attributes:
        out: The folder of the programme.
        data: Where each dataset is, by name.
    """

    out: Path
    data: Mapping[str, Path]

    @property
    def records(self) -> Path:
        """Where finished cells are kept."""
        return self.out / "cells"

    def path(self, text: str) -> Path:
        """A place as command lines write it."""
        return Path(self.resolve(text))

    def resolve(self, argument: str) -> str:
        """An argument of a command line with `$OUT` and `$DATA/FOLDER` replaced."""
        if argument.startswith("$OUT"):
            return str(self.out.resolve()) + argument.removeprefix("$OUT")
        for name, path in self.data.items():
            if argument == DATASETS[name].place or argument.startswith(f"{DATASETS[name].place}/"):
                return str(path) + argument.removeprefix(DATASETS[name].place)
        return argument

    def command(self, command: Command) -> list[str]:
        """The arguments of a command line with its places."""
        return [self.resolve(argument) for argument in command]

    def notes(self, cell: Cell) -> Path:
        """Folder of what a cell's processes said, and cost."""
        return self.out / "work/logs" / cell.name

    def begin(self, cell: Cell, digest: str) -> None:
        """Make room for a cell; what an earlier try left stays if it was made in the same way."""
        notes = self.notes(cell)
        marker = notes / "digest"
        if not marker.exists() or marker.read_text() != digest:
            for folder in (self.path(cell.folder), notes):
                shutil.rmtree(folder, ignore_errors=True)
            notes.mkdir(parents=True)
            atomic.write_bytes(marker, digest.encode())
        for name in (ERROR, "finished"):
            (notes / name).unlink(missing_ok=True)

    def finish(self, cell: Cell) -> None:
        """Remember that what a cell leaves on disk is complete."""
        atomic.write_bytes(self.notes(cell) / "finished", b"")

    def holds(self, cell: Cell, digest: str) -> bool:
        """Whether what a cell leaves on disk is there, made in this way."""
        notes = self.notes(cell)
        marker = notes / "digest"
        made = (notes / "finished").exists() and marker.exists() and marker.read_text() == digest
        return made and self.path(cell.folder).is_dir()

    def add_cost(self, cell: Cell, **cost: float) -> None:
        """Note what one process took; a cell that is cut off and goes on has several."""
        with (self.notes(cell) / COSTS).open("a") as file:
            file.write(json.dumps(cost) + "\n")

    def costs(self, cell: Cell) -> list[dict[str, float]]:
        """What each of a cell's processes took."""
        path = self.notes(cell) / COSTS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def fail(self, cell: Cell, error: Mapping[str, Any]) -> None:
        """Note why a cell failed."""
        atomic.write_bytes(self.notes(cell) / ERROR, json.dumps(error, indent=1).encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no two programmes work in it.

        Raises:
            LockedError: E_LOCKED, when another process does.
        """
        work = self.out / "work"
        with atomic.disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
            (work / ".gitignore").write_text("*\n")
        busy, hint = f"another m3di reproduce works in {self.out}", "wait for it, or choose another --out"
        with only_holder(work / "reproduce.lock", busy=busy, hint=hint):
            yield
