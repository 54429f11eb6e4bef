"""Classification from a table: one line a scan, its class in a column; or from what a layout knows of its cases.

The table has the columns of `m3di.volumes.layouts.table` (`image`, `subject` and so on), the class, and perhaps
`split`. MedMNIST's files bring their classes (named as in its package, github.com/MedMNIST/MedMNIST, Apache-2.0) and
their split.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from m3di.tasks.task import Diagnoses
from m3di.volumes.cases import ATTRIBUTES, Case
from m3di.volumes.layouts.table import COLUMNS, has_images
from m3di.volumes.manifests import read_table
from stores.errors import RefusedError

CLASS_COLUMNS: Final = ("class", "target", "diagnosis", "group")  # in the order in which they are looked for
SPLIT_COLUMN: Final = "split"
MAX_CLASSES: Final = 100
MEDMNIST: Final = {
    "organmnist3d": ("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart",
                     "lung-right", "lung-left", "spleen", "pancreas"),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}  # fmt: skip


def table_in(data: Path) -> Path | None:
    """The table of scans that a path names or that lies in a folder; None when there is none.

    Raises:
        RefusedError: E_MANIFEST, when there are several.
    """
    if not data.is_dir():
        return data if data.suffix.lower() in (".csv", ".tsv") else None
    found = [path for path in sorted(data.iterdir()) if path.suffix.lower() in (".csv", ".tsv") and has_images(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise RefusedError("E_MANIFEST", f"{data} holds several tables of scans: {names}", hint="name one by --data")
    return found[0] if found else None


def with_columns(cases: Sequence[Case], table: Path) -> list[Case]:
    """The cases of a table, each with all that its line says as attributes."""
    rows = [{name.lower(): value for name, value in row.items()} for row in read_table(table)]
    return [
        replace(case, attributes={name: value for name, value in row.items() if value})
        for case, row in zip(cases, rows, strict=True)
    ]


def diagnose(cases: Sequence[Case], column: str = "") -> Diagnoses:
    """The classes in a column of the cases' attributes; cases without a value have none.

    Args:
        cases: The cases.
        column: Its name; empty to take the first of `CLASS_COLUMNS` that there is, or the only one left.

    Raises:
        RefusedError: E_CONFIG, when the column is not there; E_LABEL_VALUES, when its values are no classes.
    """
    name = _column(cases, column.lower())
    values = {case.id: case.attributes[name] for case in cases if case.attributes.get(name)}
    classes = sorted(set(values.values()), key=_order)
    if len(classes) > MAX_CLASSES or (len(classes) > 2 and len(classes) == len(values)):
        message = f"column {name!r} has {len(classes)} different values in {len(values)} lines: these are no classes"
        raise RefusedError("E_LABEL_VALUES", message, hint="name another by --set finetune.class_column=NAME")
    index = {value: position for position, value in enumerate(classes)}
    return Diagnoses(_names(cases, classes), {case: index[value] for case, value in values.items()})


def _column(cases: Sequence[Case], given: str) -> str:
    present = {name for case in cases for name in case.attributes}
    if given:
        if given in present:
            return given
        hint = f"there are: {', '.join(sorted(present))}" if present else "check --data"
        raise RefusedError("E_CONFIG", f"no column {given!r} has a value", hint=hint)
    for name in CLASS_COLUMNS:
        if name in present:
            return name
    others = sorted(present - set(COLUMNS) - set(ATTRIBUTES) - {SPLIT_COLUMN})
    if len(others) == 1:
        return others[0]
    message = f"which column holds the class? There are {', '.join(others)}" if others else "no column holds a class"
    raise RefusedError("E_CONFIG", message, hint="name it by --set finetune.class_column=NAME")


def _order(value: str) -> tuple[int, int, str]:
    """Whole numbers by size, before words by letters."""
    return (0, int(value), "") if value.isascii() and value.isdigit() else (1, 0, value)


def _names(cases: Sequence[Case], classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes: MedMNIST's are known by number."""
    datasets = {case.dataset for case in cases if case.image.suffix == ".npz"}
    known = next((names for stem, names in MEDMNIST.items() if any(one.startswith(stem) for one in datasets)), ())
    if all(value.isdigit() and int(value) < len(known) for value in classes):
        return tuple(known[int(value)] for value in classes)
    return tuple(classes)
