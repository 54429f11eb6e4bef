"""Two runs on the same test cases: differences, case by case, with intervals and tests over subjects.

Of one comparison each p value is right by itself; where many are made, some are small by chance.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.evaluation.classification import score_classes
from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.results import jsonable
from m3di.evaluation.scoring import ClassificationCase, SegmentationCase
from m3di.evaluation.segmentation import METRICS
from m3di.evaluation.statistics import Interval, PairedDifference, bootstrap_statistics, paired_difference
from m3di.evaluation.summaries import GRIDS, columns, people_in
from stores.errors import RefusedError

OF_A_SET = ("balanced_accuracy", "auc")  # no mean over cases: an interval, but no sign-flip test


@dataclass(frozen=True)
class Comparison:
    """How a run differs from another, first minus second.

    Attributes:
        first: Run of the first.
        second: Run of the second.
        num_cases: Test cases that both have scores of; others are left out.
        differences: Of means over cases: of a segmentation by `grid/class` and metric, of a classification by
            `all` and metric (`accuracy`, `brier`).
        of_a_set: Of AUC and balanced accuracy, which no case has by itself: with intervals alone.
        leaks: What is known of leaks of the second run.
        warnings: Its leaks, one by one.
    """

    first: str
    second: str
    num_cases: int
    differences: dict[str, dict[str, PairedDifference]]
    of_a_set: dict[str, Interval]
    leaks: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the differences as JSON-ready values."""
        return jsonable(asdict(self))


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """Compare two evaluations of one task.

    Raises:
        RefusedError: E_CONFIG, when their tasks differ, or they have no test case in common.
    """
    runs = [_runs(one) for one in (first, second)]
    if (first.task, first.classes) != (second.task, second.classes):
        message = f"{runs[0]} and {runs[1]} are runs of different tasks"
        raise RefusedError("E_CONFIG", message, hint="compare runs of one task")
    names = {case.case for case in first.cases} & {case.case for case in second.cases}
    if not names:
        message = f"{runs[0]} and {runs[1]} have no test case in common"
        raise RefusedError("E_CONFIG", message, hint="train both with the same split settings")
    pair = [
        sorted((case for case in one.cases if case.case in names), key=lambda c: c.case) for one in (first, second)
    ]
    differences, of_a_set = _masks(first, pair) if first.kind == "segmentation" else _classes(pair)
    return Comparison(runs[0], runs[1], len(names), differences, of_a_set, second.leaks, second.warnings)


def _runs(evaluation: Evaluation) -> str:
    return ", ".join(weights.run for weights in evaluation.runs)


def _masks(
    evaluation: Evaluation, pair: Sequence[Sequence[Any]]
) -> tuple[dict[str, dict[str, PairedDifference]], dict[str, Interval]]:
    sides: list[list[SegmentationCase]] = [list(side) for side in pair]
    people = people_in(sides[0])
    found: dict[str, dict[str, PairedDifference]] = {}
    for grid in GRIDS:
        for metric in METRICS:
            one, other = (columns([side], evaluation.classes, grid=grid, metric=metric) for side in sides)
            for name in one:
                difference = paired_difference(one[name][0], other[name][0], people)
                found.setdefault(f"{grid}/{name}", {})[metric] = difference
    return found, {}


def _classes(
    pair: Sequence[Sequence[Any]],
) -> tuple[dict[str, dict[str, PairedDifference]], dict[str, Interval]]:
    sides: list[list[ClassificationCase]] = [list(side) for side in pair]
    people, targets = people_in(sides[0]), np.array([case.target for case in sides[0]])
    tables = [np.array([case.by_seed or (case.probabilities,) for case in side], np.float64) for side in sides]

    def differences(drawn: npt.NDArray[np.int64]) -> list[float]:
        means = [
            np.mean([_of_a_set(table[drawn, seed], targets[drawn]) for seed in range(table.shape[1])], axis=0)
            for table in tables
        ]
        return list(means[0] - means[1])

    by_case = [_by_case(table, targets) for table in tables]
    paired = {name: paired_difference(by_case[0][name], by_case[1][name], people) for name in by_case[0]}
    intervals = bootstrap_statistics(differences, people)
    return {"all": paired}, dict(zip(OF_A_SET, intervals, strict=True))


def _by_case(table: npt.NDArray[np.float64], targets: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Accuracy and Brier score of each case, the mean over seeds; `table` is (n, s, c)."""
    squared = (table - np.eye(table.shape[2])[targets][:, None]) ** 2
    brier = squared[..., 1] if table.shape[2] == 2 else squared.sum(axis=2)
    return {"accuracy": (table.argmax(axis=2) == targets[:, None]).mean(axis=1), "brier": brier.mean(axis=1)}


def _of_a_set(probabilities: npt.NDArray[np.float64], targets: npt.NDArray[Any]) -> list[float]:
    scores = score_classes(probabilities, targets)
    return [getattr(scores, metric) for metric in OF_A_SET]
