"""The downstream tasks by name, each a declaration; and a task's cases in a dataset's folder."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from m3di.tasks import oasis, table
from m3di.tasks.split import Share, own_share
from m3di.tasks.task import METRICS, Declaration, Diagnoses, Task
from m3di.volumes.cases import Case
from m3di.volumes.layouts import discover
from m3di.volumes.layouts.discovery import LAYOUTS, detect
from stores.errors import RefusedError

# Windows in HU, as abdominal and cardiac CT are read and as the challenges' papers cut them; the paper names none.
LIVER: Final = {"volumes": {"ct_window_hu": [-160.0, 240.0]}}
HEART: Final = {"volumes": {"ct_window_hu": [-200.0, 600.0]}}  # contrast-enhanced blood lies between 200 and 500
# A mirrored brain is a brain, and no class here tells left from right.
MIRRORED: Final = {"finetune": {"flip_axes": ["x"]}}
FIVE: Final = ("left ventricle", "right ventricle", "left atrium", "right atrium", "ascending aorta")
CHAOS_METRICS: Final = ("dice", "ravd_percent", "assd_mm", "mssd_mm", "surface_dice", "hd95_mm")  # its own first

_LIVER_CT: Final = Declaration(
    "the liver in CT, as in the paper", "segmentation", ("chaos",), "chaos", modality="CT", structures=("liver",),
    settings=LIVER, metrics=CHAOS_METRICS,
)  # fmt: skip
_HEART_CT: Final = Declaration(
    "five structures of the heart in CT, as in the paper", "segmentation", ("mmwhs",), "mmwhs", modality="CT",
    structures=FIVE, settings=HEART,
)  # fmt: skip
TASKS: Final[dict[str, Declaration]] = {
    "chaos": _LIVER_CT,
    "chaos-ct": _LIVER_CT,
    "chaos-mr": Declaration(
        "liver, kidneys and spleen in MR (T1 in and out of phase, T2)", "segmentation", ("chaos",), "chaos",
        modality="MR", metrics=CHAOS_METRICS,
    ),
    "mmwhs": _HEART_CT,
    "mmwhs-ct": _HEART_CT,
    "mmwhs-mr": Declaration(
        "five structures of the heart in MR", "segmentation", ("mmwhs",), "mmwhs", modality="MR", structures=FIVE
    ),
    "mmwhs-both": Declaration(
        "five structures of the heart in CT and MR", "segmentation", ("mmwhs",), "mmwhs", structures=FIVE,
        settings=HEART,
    ),
    "oasis-seg": Declaration(
        "cortex, grey matter, white matter and fluid in OASIS-1", "segmentation", ("oasis",), "oasis",
        settings=MIRRORED,
    ),
    "oasis-ad": Declaration(
        "Alzheimer's disease against normal control in OASIS", "classification", ("oasis",), "oasis",
        diagnose=oasis.diagnose, settings=MIRRORED,
    ),
    "msd": Declaration("the structures of an MSD or nnU-Net set", "segmentation", ("nnunet", "msd"), "msd"),
    "labelled": Declaration("every value of the label maps of any set", "segmentation", ("auto",), "labelled"),
    "table": Declaration(
        "the classes in a table's column, or of a MedMNIST file", "classification", ("auto",), "table",
        diagnose=table.diagnose,
    ),
}  # fmt: skip


def declared(name: str) -> Declaration:
    """A task's declaration.

    Raises:
        RefusedError: E_CONFIG, for a task that nobody declared.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise RefusedError("E_CONFIG", f"no task is called {name!r}", hint=f"{guess}known: {', '.join(TASKS)}")


def task_settings(name: str) -> Mapping[str, Any]:
    """The settings that are a task's own defaults, below every preset."""
    return declared(name).settings


def load_task(name: str, data: Path, *, class_column: str = "") -> Task:
    """Find the cases of a task.

    Args:
        name: A name in `TASKS`.
        data: The dataset's folder or file.
        class_column: Column of the classes, for `table`.

    Raises:
        RefusedError: E_CONFIG for an unknown task, E_MISSING, E_FORMAT or E_MANIFEST for data that does not fit it.
    """
    declaration = declared(name)
    layout, found = _discover(declaration, data)
    cases = [case for case in found if declaration.modality in ("", case.modality)]
    if declaration.diagnose is not None:
        return _classification(name, declaration, data, layout, cases, declaration.diagnose(cases, class_column))
    labelled = tuple(case for case in cases if case.label is not None)
    if not labelled:
        raise _without_labels(name, declaration, data, found)
    return _segmentation(name, declaration, data, layout, labelled)


def _discover(declaration: Declaration, data: Path) -> tuple[str, Sequence[Case]]:
    """The data's layout and cases; those of a table with all its columns."""
    if declaration.diagnose is table.diagnose and data.exists() and (path := table.table_in(data)) is not None:
        return "csv", table.with_columns(discover(path, layout="csv"), path)
    if declaration.layouts == ("auto",):
        return (detect(data) if data.exists() else "auto"), discover(data)
    if not data.exists():
        raise RefusedError("E_MISSING", f"{data} does not exist", hint="check --data")
    fits = [name for name in declaration.layouts if LAYOUTS[name][0](data)]
    if not fits:
        message = f"{data} is not laid out as {' or '.join(declaration.layouts)}"
        raise RefusedError("E_FORMAT", message, hint="check --data; --task labelled takes any scans with label maps")
    return fits[0], discover(data, layout=fits[0])


def _segmentation(
    name: str, declaration: Declaration, data: Path, layout: str, cases: tuple[Case, ...]
) -> Task:  # fmt: skip
    maps = [case.label for case in cases if case.label is not None]
    names = {value: structure for one in maps for value, structure in sorted(one.names.items())}
    wanted = declaration.structures or tuple(names.values())
    learnt = {value: structure for value, structure in names.items() if structure in wanted}
    if not names and declaration.layouts != ("auto",):
        message = f"{data} names no structure in its dataset.json"
        raise RefusedError("E_MANIFEST", message, hint="write its 'labels', or use --task labelled")
    return Task(
        name, declaration.kind, data, layout, cases,
        classes={0: "background", **dict(sorted(learnt.items()))} if names else {},
        background=frozenset(names.keys() - learnt.keys()),
        ignored=frozenset(value for one in maps for value in one.ignored),
        metrics=declaration.metrics or METRICS[declaration.kind],
    )  # fmt: skip


def _classification(  # noqa: PLR0917
    name: str, declaration: Declaration, data: Path, layout: str, cases: Sequence[Case], found: Diagnoses
) -> Task:
    known = tuple(case for case in cases if case.id in found.targets)
    if not known:
        hint = "oasis-ad reads Group and CDR of the clinical table, which must lie in the folder"
        raise RefusedError("E_MISSING", f"no scan in {data} has a class", hint=hint)
    if len(set(found.targets.values())) < 2:
        message = f"all {len(known)} scans in {data} are of class {found.classes[found.targets[known[0].id]]!r}"
        raise RefusedError("E_LABEL_VALUES", message, hint="a task has at least two classes")
    return Task(
        name, declaration.kind, data, layout, known,
        classes=dict(enumerate(found.classes)),
        targets=found.targets,
        own_split=_own_split(known),
        metrics=declaration.metrics or METRICS[declaration.kind],
    )  # fmt: skip


def _own_split(cases: Sequence[Case]) -> dict[tuple[str, str], Share]:
    """The split that a set brings along; empty when it brings none.

    Raises:
        RefusedError: E_SPLIT, when it leaves cases out, or puts a subject into two shares.
    """
    words = {case.id: case.attributes.get(table.SPLIT_COLUMN, "") for case in cases}
    if not any(words.values()):
        return {}
    shares: dict[tuple[str, str], Share] = {}
    for case in cases:
        share = own_share(words[case.id], of=case.id)
        if shares.setdefault((case.dataset, case.subject), share) != share:
            message = f"the set's own split has subject {case.subject} in two shares"
            raise RefusedError("E_SPLIT", message, hint="correct it, or make a new split by --set split.own=false")
    return shares


def _without_labels(name: str, declaration: Declaration, data: Path, found: Sequence[Case]) -> RefusedError:
    """Say what is missing: label maps, or scans of the task's modality."""
    others = sorted({case.modality for case in found if case.label is not None})
    if others:
        message = f"{data} has label maps of {' and '.join(others)} only, and {name} is about {declaration.modality}"
        same = [other for other, one in TASKS.items() if one.folder == declaration.folder and one.modality in others]
        return RefusedError("E_MISSING", message, hint=f"use --task {same[0]}" if same else "check --data")
    hint = "a label map of X.nii.gz is X_seg, X_label, X_mask or X_gt beside it, or a table's column 'label'"
    return RefusedError("E_MISSING", f"{data} has no case with a label map", hint=f"check --data; {hint}")
