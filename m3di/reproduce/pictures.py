"""One slice of one test case as several networks segment it, small enough to be kept in a cell's record (figure 2).

Nobody chooses the case: it is the one in the middle when the test cases are ordered by the Dice of the first method.
The slice is the axial one with the most labelled voxels.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from m3di.reproduce.cells import Cell, Command
from m3di.reproduce.datasets import DATASETS
from m3di.reproduce.records import Record, read_records
from m3di.reproduce.workspace import Workspace
from m3di.volumes import readers
from m3di.volumes.cases import Case, LabelMap
from m3di.volumes.layouts import discover
from stores.geometry import CubeChain

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

SHOWN_PERCENTILES: Final = (1.0, 99.0)  # of the slice's intensities, from black to white
RUN: Final = "$OUT/work/runs/"


def commands_of(cell: Cell, workspace: Workspace) -> list[Command]:
    """The command lines that predict the case by every method."""
    root = workspace.data[cell.datasets[0]]
    scan = _case(cell, workspace).image.relative_to(root)
    place = f"{DATASETS[cell.datasets[0]].place}/{scan.as_posix()}"
    return [("predict", place, "--run", RUN + method, "--out", f"{cell.folder}/{method}") for method in cell.needs]


def outcome_of(cell: Cell, workspace: Workspace) -> dict[str, Any]:
    """The slice, its label and every method's mask, as PNG in base 64.

    Raises:
        ValueError: When the case has no label, or a method did not write one mask.
    """
    records = _methods(cell, workspace)
    case = _case(cell, workspace)
    if case.label is None:
        raise ValueError(f"{case.id} has no label map")
    volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
    chain = CubeChain(volume.geometry, 1)
    label = chain.to_canonical(readers.read_label(case.label, like=volume.geometry))
    values = records[0].result["values"]
    number = int(np.isin(label, values).sum(axis=(0, 1)).argmax())
    folder = workspace.path(cell.folder)
    masks = {
        method: chain.to_canonical(readers.read_label(LabelMap(_mask(folder / method)), like=volume.geometry))
        for method in cell.needs
    }
    return {
        "case": case.id,
        "slice": number,
        "classes": records[0].result["classes"],
        "dice": {record.name: _mean_dice(_score(record, case.id)) for record in records},
        "image": encode_png(_grey(upright(chain.to_canonical(volume.data)[:, :, number]))),
        "label": encode_png(_numbered(upright(label[:, :, number]), values)),
        "masks": {
            method: encode_png(_numbered(upright(mask[:, :, number]), values)) for method, mask in masks.items()
        },
    }


def middle_case(record: Record) -> str:
    """The test case in the middle when they are ordered by mean Dice, and by name where that is equal."""
    known = [(_mean_dice(case), case["case"]) for case in record.result["cases"]]
    ordered = sorted((dice, name) for dice, name in known if dice is not None)
    return ordered[len(ordered) // 2][1]


def upright(stack: Array) -> Array:
    """An axial slice [x, y] along right and anterior as a picture [y, x]: anterior up, the patient's right left."""
    return stack.T[::-1, ::-1]


def encode_png(picture: Pixels) -> str:
    """A picture [y, x] or [y, x, 3] as PNG in base 64."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_png(text: str) -> Pixels:
    """Undo `encode_png`."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def _methods(cell: Cell, workspace: Workspace) -> list[Record]:
    records = read_records(workspace.records)
    return [records[name] for name in cell.needs]


def _case(cell: Cell, workspace: Workspace) -> Case:
    name = middle_case(_methods(cell, workspace)[0])
    cases = discover(workspace.data[cell.datasets[0]])
    return next(case for case in cases if case.id == name)


def _score(record: Record, name: str) -> Mapping[str, Any]:
    return next(case for case in record.result["cases"] if case["case"] == name)


def _mean_dice(case: Mapping[str, Any]) -> float | None:
    known = [dice for dice in case["dice"].values() if dice is not None]
    return sum(known) / len(known) if known else None


def _mask(folder: Path) -> Path:
    found = sorted(folder.glob("*.nii.gz"))
    if len(found) != 1:
        raise ValueError(f"{folder.name} wrote {len(found)} masks, not 1")
    return found[0]


def _grey(picture: Array) -> Pixels:
    low, high = np.percentile(picture, SHOWN_PERCENTILES)
    return np.rint(255 * np.clip((picture - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _numbered(labels: Array, values: Sequence[int]) -> Pixels:
    """Labels by their position in `values`, from 1; others are background."""
    numbered = np.zeros(labels.shape, np.uint8)
    for position, value in enumerate(values, start=1):
        numbered[labels == value] = position
    return numbered
