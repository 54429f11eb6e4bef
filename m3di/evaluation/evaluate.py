"""Scores of a fine-tuning run on its test subjects, with what could make them too good reported first."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3di.evaluation.inference import load_predictor
from m3di.evaluation.metrics import dice_per_class, mean_interval
from m3di.events import Report
from m3di.tasks.registry import load_task
from m3di.training import checkpoint
from m3di.volumes import readers
from m3di.volumes.cases import Case
from stores import atomic
from stores.errors import RefusedError


@dataclass(frozen=True)
class CaseScores:
    """Dice of one test case by label value; NaN where neither mask has the class."""

    case: str
    dice: dict[int, float]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run.

    Attributes:
        classes: Foreground class name by label value.
        cases: Scores a test case, on the scanner's grid.
        mean: Mean and 95% bootstrap interval over cases: a class by its name, and `all`, the mean over classes.
        warnings: Leaks between training and test that were found.
    """

    classes: dict[int, str]
    cases: tuple[CaseScores, ...]
    mean: dict[str, tuple[float, float, float]]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values."""
        return asdict(self)


def evaluate(run: Path, *, data: Path | None = None, device: str = "auto", report: Report) -> Evaluation:
    """Score a run on its test subjects, and keep the scores in `RUN/evaluation.json`.

    Args:
        run: A fine-tuning run.
        data: The task's dataset; by default where the run found it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        report: Receives the events.

    Raises:
        RefusedError: When run and data do not fit together.
        CaseError: When a test case cannot be read.
    """
    found = checkpoint.load(run, kind="finetune")
    task = load_task(found.facts["task"], data or Path(found.facts["data"]))
    tested = set(found.facts["split"]["test"])
    cases = [case for case in task.cases if case.id in tested]
    if len(cases) != len(tested):
        missing = sorted(tested - {case.id for case in cases})[0]
        message = f"test case {missing} of {run} is not in {task.data}"
        raise RefusedError("E_MISSING", message, hint="give the dataset of the run by --data")
    warnings = find_leaks(found, cases)
    for warning in warnings:
        report("warning", message=warning)
    predictor = load_predictor(found, device=device)
    report("begin", stage="evaluate", cases=len(cases))
    scores = []
    for case in cases:
        volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
        assert case.label is not None
        reference = readers.read_label(case.label, like=volume.geometry)
        scores.append(
            CaseScores(case.id, dice_per_class(predictor.mask(volume), reference, predictor.class_values[1:]))
        )
        report("committed", volume=case.id, stage="evaluate")
    result = _summarise(found, scores, warnings)
    atomic.write_bytes(run / "evaluation.json", json.dumps(result.to_dict(), indent=2).encode())
    return result


def find_leaks(found: checkpoint.Checkpoint, cases: list[Case]) -> tuple[str, ...]:
    """Test scans whose bytes are among those that the network, or its encoder, was trained on."""
    trained = {digest: (name, "trained") for name, digest in found.facts["trained_on"].items()}
    pretrained = {digest: (name, "pretrained") for name, digest in found.facts["pretrained_on"].items()}
    seen = pretrained | trained
    digests = [(case.id, readers.content_digest(case.image, case.member)) for case in cases]
    return tuple(
        f"test case {case} has the same bytes as {seen[digest][0]}, on which was {seen[digest][1]}"
        for case, digest in digests
        if digest in seen
    )


def _summarise(found: checkpoint.Checkpoint, scores: list[CaseScores], warnings: tuple[str, ...]) -> Evaluation:
    classes = {int(value): name for value, name in found.facts["classes"].items() if int(value)}
    mean = {name: mean_interval([case.dice[value] for case in scores]) for value, name in classes.items()}
    with np.errstate(invalid="ignore"):
        per_case = [np.nanmean(list(case.dice.values())) for case in scores]
    return Evaluation(classes, tuple(scores), mean | {"all": mean_interval(per_case)}, warnings)
