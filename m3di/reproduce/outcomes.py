"""What a cell's run folder says when it is done: scores a case, retrieval, sizes."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from m3di.reproduce.cells import Cell
from m3di.reproduce.records import Cost
from m3di.reproduce.workspace import Workspace

DIGITS: Final = 6  # of a score
Scores = Mapping[str, Any]


def outcome_of(cell: Cell, workspace: Workspace) -> dict[str, Any]:
    """A cell's result, JSON-ready.

    Raises:
        KeyError, ValueError, OSError: When its files are not what m3di's commands write.
    """
    folder = workspace.path(cell.folder)
    if cell.kind == "store":
        return _store(last_object(workspace.notes(cell) / "info.jsonl"))
    if cell.kind == "pretrain":
        return _pretraining(folder)
    return {**scores_of(json.loads((folder / "evaluation.json").read_bytes())), "samples_seen": _clock(folder)}


def cost_of(cell: Cell, workspace: Workspace, result: Mapping[str, Any]) -> Cost:
    """What a cell took, over all its processes."""
    parts, folder = workspace.costs(cell), workspace.path(cell.folder)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    return Cost(
        encoder_passes=int(result.get("samples_seen", 0)),
        teacher_passes=int(result.get("slices", 0)),
        wall_s=round(math.fsum(part["wall_s"] for part in parts), 1),
        cpu_s=round(math.fsum(part["cpu_s"] for part in parts), 1),
        peak_memory_mib=round(max((part["peak_memory_mib"] for part in parts), default=0.0), 1),
        disk_bytes=sum(path.stat().st_size for path in files),
    )


def scores_of(evaluation: Scores) -> dict[str, Any]:
    """The scores a test case of `evaluation.json`, and the line about leaks.

    Segmentation gives Dice of each structure by its name, on the scanner's grid; classification gives the
    probabilities and the true class.
    """
    found: dict[str, Any] = {"leaks": evaluation["leaks"]}
    cases = evaluation["cases"]
    if evaluation.get("kind") == "classification":
        rows = [{**_who(case), **_classified(case)} for case in cases]
        return {**found, "kind": "classification", "classes": _names(evaluation["classes"]), "cases": rows}
    names = {str(value): name for value, name in evaluation["classes"].items()}
    rows = [{**_who(case), "dice": _dice(case["dice"], names)} for case in cases]
    values = [int(value) for value in names]
    return {**found, "kind": "segmentation", "classes": list(names.values()), "values": values, "cases": rows}


def last_object(path: Path) -> dict[str, Any]:
    """The last object that a command with `--json` wrote."""
    return json.loads(path.read_text().splitlines()[-1])


def _who(case: Scores) -> dict[str, str]:
    return {"case": case["case"], "subject": case.get("subject") or case["case"]}


def _dice(values: Mapping[str, float | None], names: Mapping[str, str]) -> dict[str, float | None]:
    return {names[value]: None if dice is None else round(dice, DIGITS) for value, dice in values.items()}


def _classified(case: Scores) -> dict[str, Any]:
    return {"probabilities": [round(value, DIGITS) for value in case["probabilities"]], "target": int(case["target"])}


def _names(classes: Mapping[str, str] | Sequence[str]) -> list[str]:
    return list(classes.values() if isinstance(classes, Mapping) else classes)


def _store(info: Scores) -> dict[str, Any]:
    return {
        "volumes": info["volumes"],
        "subjects": info["subjects"],
        "slices": info["rows"],
        "quarantined": info["quarantined"],
        "teacher": info["teacher"],
        "captioner": info["captioner"],
        "bytes": info["bytes"],
        "bytes_of_cubes": info["bytes of cubes"],
    }


def _pretraining(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "retrieval" in line]
    last = looks[-1] if looks else {}
    losses = [line for line in lines if "loss" in line]
    return {
        "samples_seen": _clock(run),
        "loss": losses[-1]["loss"] if losses else None,
        "retrieval": last.get("retrieval"),
        "localisation": last.get("localisation"),
    }


def _clock(run: Path) -> int:
    return max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
