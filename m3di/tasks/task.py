"""What a downstream task is: a declaration, small and fixed, and what it finds in a dataset's folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from m3di.tasks.split import Share
from m3di.volumes.cases import Case

Kind = Literal["segmentation", "classification"]
METRICS: Final[dict[Kind, tuple[str, ...]]] = {
    "segmentation": ("dice", "surface_dice", "hd95_mm", "assd_mm", "ravd_percent"),
    "classification": ("balanced_accuracy", "accuracy", "auc", "sensitivity", "specificity", "ece"),
}
LOSSES: Final[dict[Kind, str]] = {"segmentation": "dice_cross_entropy", "classification": "cross_entropy"}


@dataclass(frozen=True)
class Diagnoses:
    """The classes of a classification task's cases.

    Attributes:
        classes: Class names; a class is its position.
        targets: Class of each case by id; cases without one have no part in the task.
    """

    classes: tuple[str, ...]
    targets: Mapping[str, int]


@dataclass(frozen=True)
class Declaration:
    """A task as it is declared.

    Attributes:
        purpose: What is told, in a few words.
        kind: What is predicted: a class a voxel, or a class a scan.
        layouts: How its data may lie on disk; the first that fits is taken.
        folder: Name of its dataset's folder below M3DI_DATA.
        modality: Only scans of this modality; empty for all.
        structures: Names of the structures that are learnt, the others are background; empty for all.
        diagnose: Finds the classes of cases, for classification; the second argument names a column.
        settings: Settings that are the task's own defaults; presets and users override them.
        metrics: What its results are told in, the first one decides in validation; empty for those of its kind.
    """

    purpose: str
    kind: Kind
    layouts: tuple[str, ...]
    folder: str
    modality: str = ""
    structures: tuple[str, ...] = ()
    diagnose: Callable[[Sequence[Case], str], Diagnoses] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task with its cases.

    Attributes:
        name: The task's name.
        kind: As declared.
        data: The dataset's folder or file.
        layout: How it lies on disk.
        cases: The cases that have a label map, or a class.
        classes: Class name by label value, background 0 among them; of classification by class. Empty when label
            maps have no names: then every value in them is a class.
        background: Label values that count as background here.
        ignored: Label values of voxels that nobody knows: neither trained on nor scored.
        targets: Class of each case by id, for classification.
        own_split: Share of each subject by (dataset, subject), where the set brings its own split.
        metrics: As declared.
    """

    name: str
    kind: Kind
    data: Path
    layout: str
    cases: tuple[Case, ...]
    classes: Mapping[int, str]
    background: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()
    targets: Mapping[str, int] = field(default_factory=dict)
    own_split: Mapping[tuple[str, str], Share] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        """The modality of its scans, `unknown` when they differ."""
        found = {case.modality for case in self.cases}
        return found.pop() if len(found) == 1 else "unknown"
