"""Scores of fine-tuning runs on their test subjects, with what could make them too good beside them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from m3di.evaluation.inference import Predictor, Weights, load_predictor, run_folder, weights_of
from m3di.evaluation.leaks import LeakReport
from m3di.evaluation.members import Members, members_of
from m3di.evaluation.results import Refusal, jsonable
from m3di.evaluation.scoring import ClassificationCase, SegmentationCase, score_classification, score_segmentation
from m3di.evaluation.seen import look_for_leaks
from m3di.evaluation.segmentation import TOLERANCE_MM
from m3di.evaluation.statistics import Interval
from m3di.evaluation.summaries import ClassSummary, MaskSummary, summarise_classes, summarise_masks
from m3di.events import Report
from stores import atomic
from stores.errors import CaseError, RefusedError

SCHEMA: Final = "m3di.evaluate/1"
FILE: Final = "evaluation.json"
MAX_TOLD: Final = 5  # leaks that are events; a cohort that looks alike has one for every pair

CaseScores = SegmentationCase | ClassificationCase


@dataclass(frozen=True)
class RunScores:
    """What came of one run: scores, refusals, and what is known of leaks."""

    cases: list[CaseScores]
    refused: list[Refusal]
    leaks: LeakReport


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run, or of several seeds or folds together.

    Attributes:
        task: Name of the task.
        kind: `segmentation` or `classification`.
        classes: Class name by value; of a segmentation without background.
        metrics: The task's own, the first one first.
        runs: The weights that were used.
        num_seeds: Runs that each case was tested with.
        num_folds: Groups of test cases.
        tolerance_mm: Of surface Dice.
        summary: Cases and means.
        refused: Cases that were not scored.
        warnings: Leaks between training and test that were found.
        leaks: What was looked for and found, in one line, for each fold.
    """

    task: str
    kind: str
    classes: dict[int, str]
    metrics: tuple[str, ...]
    runs: tuple[Weights, ...]
    num_seeds: int
    num_folds: int
    tolerance_mm: float
    summary: MaskSummary | ClassSummary
    refused: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    leaks: str

    @property
    def cases(self) -> tuple[CaseScores, ...]:
        """Scores of each test case."""
        return self.summary.cases

    @property
    def dice(self) -> dict[str, Interval]:
        """Mean Dice on the scanner's grid by class name, and `all`; of a segmentation."""
        assert isinstance(self.summary, MaskSummary)
        return {name: metrics["dice"] for name, metrics in self.summary.mean["scanner"].items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values: what is not known is null."""
        fields = asdict(self)
        summary = fields.pop("summary")
        if isinstance(self.summary, MaskSummary):
            for case, scored in zip(summary["cases"], self.summary.cases, strict=True):
                case["dice"] = scored.dice
        return jsonable({**fields, **summary})


def evaluate(
    runs: Path | Sequence[Path],
    *,
    data: Path | None = None,
    device: str = "auto",
    tolerance_mm: float = TOLERANCE_MM,
    named: str = "",
    report: Report,
) -> Evaluation:
    """Score runs on their test subjects, and keep the scores of each in its `evaluation.json`.

    The repeats in one folder, or several seeds of one split, are averaged over each case first; folds of a
    cross-validation are put together. The scores of repeats together are kept in the folder that holds them.

    Args:
        runs: Fine-tuning runs of one task, or folders of repeats.
        data: The task's dataset; by default where the run found it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tolerance_mm: Of surface Dice.
        named: As for `load_network`.
        report: Receives the events.

    Raises:
        RefusedError: When runs and data do not fit together; the first case's error, when none could be scored.
        DamagedError: E_WEIGHTS, when weights are damaged.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    members = members_of(folders, data)
    results = []
    for number, found in enumerate(members.checkpoints):
        leaks = look_for_leaks(found, members.tested(number), members.task.cases)
        _warn(leaks, report)
        predictor = load_predictor(found, device=device, named=named)
        results.append(RunScores(*_score_run(members, number, predictor, tolerance_mm, report), leaks))
        one = _together(members, {number: results[-1]}, tolerance_mm)
        _keep(run_folder(found), one)
    if len(results) == 1:
        return one
    every = _together(members, dict(enumerate(results)), tolerance_mm)
    if len(folders) == 1:
        _keep(folders[0], every)
    return every


def _warn(leaks: LeakReport, report: Report) -> None:
    """Tell of the first leaks, the strongest, and how many more there are."""
    for leak in leaks.leaks[:MAX_TOLD]:
        report("warning", message=str(leak))
    if len(leaks.leaks) > MAX_TOLD:
        report("warning", message=f"{len(leaks.leaks) - MAX_TOLD} more leaks are named in {FILE}")


def _score_run(
    members: Members, number: int, predictor: Predictor, tolerance_mm: float, report: Report
) -> tuple[list[CaseScores], list[Refusal]]:
    """Scores of one run's test cases."""
    cases, facts = members.tested(number), members.checkpoints[number].facts
    report("begin", stage="evaluate", cases=len(cases))
    report("weights", used=str(predictor.weights[0]))
    scored: list[CaseScores] = []
    refused: list[Refusal] = []
    for case in cases:
        try:
            if predictor.kind == "segmentation":
                scored.append(score_segmentation(case, predictor, facts, tolerance_mm=tolerance_mm))
            else:
                scored.append(score_classification(case, predictor, members.task))
        except CaseError as error:
            refused.append(Refusal(case.id, error.code, error.message))
            report("quarantined", volume=case.id, code=error.code, message=error.message)
        else:
            report("committed", volume=case.id, stage="evaluate")
    if not scored:
        first = refused[0]
        raise RefusedError(first.code, f"no test case could be scored: {first.message}", hint="check --data")
    return scored, refused


def _together(members: Members, results: dict[int, RunScores], tolerance_mm: float) -> Evaluation:
    """Put the results of one run, or of all, together."""
    folds = [numbers for fold in members.folds if (numbers := [number for number in fold if number in results])]
    seeds = [[case for fold in folds for case in results[fold[seed]].cases] for seed in range(len(folds[0]))]
    facts = members.checkpoints[folds[0][0]].facts
    found = [results[number] for fold in folds for number in fold]
    kind = facts.get("task_kind", "segmentation")
    names = {int(value): name for value, name in facts["classes"].items()}
    classes = names if kind == "classification" else {value: name for value, name in names.items() if value}
    summary = summarise_classes(seeds) if kind == "classification" else summarise_masks(seeds, classes)  # type: ignore[arg-type]
    return Evaluation(
        facts["task"], kind, classes, tuple(facts.get("metrics", members.task.metrics)),
        runs=tuple(weights_of(members.checkpoints[number]) for number in results),
        num_seeds=len(seeds), num_folds=len(folds), tolerance_mm=tolerance_mm, summary=summary,
        refused=tuple({refusal.case: refusal for one in found for refusal in one.refused}.values()),
        warnings=tuple(dict.fromkeys(str(leak) for one in found for leak in one.leaks.leaks)),
        leaks="; ".join(dict.fromkeys(one.leaks.line for one in found)),
    )  # fmt: skip


def _keep(run: Path, evaluation: Evaluation) -> None:
    content = {"schema": SCHEMA, **evaluation.to_dict()}
    atomic.write_bytes(run / FILE, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
