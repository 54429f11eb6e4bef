"""Downstream tasks by name: a layout, the classes, and the cases of a dataset folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case
from m3di.volumes.layouts import discover
from stores.errors import RefusedError

LAYOUTS: Final = {"msd": "msd"}  # task name -> layout of its data


@dataclass(frozen=True)
class SegmentationTask:
    """A labelled dataset.

    Attributes:
        name: The task's name.
        data: The dataset's folder.
        classes: Class name by label value; background is 0.
        cases: The cases that have a label map.
    """

    name: str
    data: Path
    classes: Mapping[int, str]
    cases: tuple[Case, ...]

    @property
    def modality(self) -> str:
        """The modality of its scans, `unknown` when they differ."""
        found = {case.modality for case in self.cases}
        return found.pop() if len(found) == 1 else "unknown"


def load_task(name: str, data: Path) -> SegmentationTask:
    """Find the labelled cases of a task.

    Raises:
        RefusedError: E_CONFIG for an unknown task, E_MISSING or E_MANIFEST for a folder that does not fit it.
    """
    if name not in LAYOUTS:
        known = ", ".join(sorted(LAYOUTS))
        raise RefusedError("E_CONFIG", f"no task is called {name!r}", hint=f"this version knows: {known}")
    cases = tuple(case for case in discover(data, layout=LAYOUTS[name]) if case.label is not None)
    if not cases:
        raise RefusedError("E_MISSING", f"{data} has no case with a label map", hint="check --data")
    names = {value: structure for case in cases if case.label for value, structure in case.label.names.items()}
    return SegmentationTask(name, data, {0: "background", **names}, cases)
