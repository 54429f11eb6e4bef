"""Scores of two ways to begin, paired: the same test cases, averaged over the same seeds; subjects are resampled."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m3di.evaluation.classification import area_under_roc
from m3di.evaluation.statistics import (
    Interval,
    SeedScores,
    bootstrap_mean,
    bootstrap_statistics,
    over_seeds,
    paired_difference,
)
from m3di.reproduce.records import Record

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]
Case = Mapping[str, Any]
Statistic = Callable[[Floats, Classes], float]  # of (n, c) probabilities and (n,) true classes

PERCENT: Final = 100.0


@dataclass(frozen=True)
class Summary:
    """Scores of one way to begin.

    Attributes:
        interval: Mean over test cases and its 95% interval over subjects.
        spread: Standard deviation of the seeds' means; NaN with one seed.
    """

    interval: Interval
    spread: float


@dataclass(frozen=True)
class Gain:
    """Second way minus first, on the same cases, in points (hundredths).

    Attributes:
        mean: Over test cases.
        low: Lower end of its 95% interval over subjects.
        high: Upper end.
        p_value: Of the sign-flip test; NaN where there is none.
    """

    mean: float
    low: float
    high: float
    p_value: float = math.nan


@dataclass(frozen=True)
class Measure:
    """One metric of both ways to begin.

    Attributes:
        scratch: Of the first; None where it is not there.
        pretrained: Of the second; None where it is not there.
        gain: Their difference; None where one is missing.
        num_cases: Test cases that have a score.
    """

    scratch: Summary | None = None
    pretrained: Summary | None = None
    gain: Gain | None = None
    num_cases: int = 0


@dataclass(frozen=True, eq=False)
class Runs:
    """Fine-tunings that differ in their seed alone.

    Attributes:
        results: Result of each.
        cases: Names of all test cases, in order.
    """

    results: Sequence[Mapping[str, Any]]
    cases: Sequence[str]

    def table(self, score: Callable[[Case], float]) -> Floats:
        """(s, n) scores; NaN where a seed did not test a case."""
        places = {name: column for column, name in enumerate(self.cases)}
        table = np.full((len(self.results), len(self.cases)), np.nan)
        for row, result in zip(table, self.results, strict=True):
            for case in result["cases"]:
                row[places[case["case"]]] = score(case)
        return table

    def seeds(self, score: Callable[[Case], float]) -> SeedScores:
        """Scores of every case, averaged over the seeds."""
        return over_seeds(self.table(score))


def runs_of(records: Sequence[Record], cases: Sequence[str]) -> Runs:
    """View finished fine-tunings as runs on some test cases."""
    return Runs([record.result for record in records], cases)


def subjects_of(records: Sequence[Record]) -> dict[str, str]:
    """Subject of every test case by its name, in order of the names."""
    found = {case["case"]: case["subject"] for record in records for case in record.result["cases"]}
    return dict(sorted(found.items()))


def compare(
    scratch: Runs | None, pretrained: Runs | None, score: Callable[[Case], float], subjects: Sequence[str]
) -> Measure:  # fmt: skip
    """Compare the mean of a score over test cases."""
    first = None if scratch is None else scratch.seeds(score)
    second = None if pretrained is None else pretrained.seeds(score)
    gain = None
    if first is not None and second is not None:
        found = paired_difference(second.cases, first.cases, subjects)
        gain = Gain(PERCENT * found.mean, PERCENT * found.low, PERCENT * found.high, found.p_value)
    num_cases = max(0 if side is None else int((~np.isnan(side.cases)).sum()) for side in (first, second))
    return Measure(_summary(first, subjects), _summary(second, subjects), gain, num_cases)


def compare_statistic(
    scratch: Runs | None, pretrained: Runs | None, statistic: Statistic, subjects: Sequence[str]
) -> Measure:  # fmt: skip
    """Compare what only a set of cases has, such as AUC, over seeds; subjects are resampled for both at once."""
    sides = [None if runs is None else _ranked(runs) for runs in (scratch, pretrained)]
    known = [side for side in sides if side is not None]

    def statistics(indices: npt.NDArray[np.int64]) -> list[float]:
        means = [
            float(np.mean([statistic(table[indices], targets[indices]) for table, targets in one])) for one in known
        ]
        return [*means, means[1] - means[0]] if len(known) == 2 else means

    intervals = bootstrap_statistics(statistics, subjects)
    found = iter(intervals)
    summaries = [None if side is None else Summary(next(found), _spread(side, statistic)) for side in sides]
    gain = Gain(*(PERCENT * value for value in intervals[2])) if len(known) == 2 else None
    return Measure(summaries[0], summaries[1], gain, len(subjects))


def auc(probabilities: Floats, targets: Classes) -> float:
    """Area under the ROC curve: of class 1 of two, else the mean of one against the rest over those with cases."""
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [area_under_roc(probabilities[:, one], targets == one) for one in classes]
    known = [area for area in areas if not math.isnan(area)]
    return sum(known) / len(known) if known else math.nan


def balanced_accuracy(probabilities: Floats, targets: Classes) -> float:
    """Mean recall over the classes that have cases."""
    is_found = probabilities.argmax(axis=1) == targets
    return float(np.mean([is_found[targets == one].mean() for one in np.unique(targets)]))


def mean_dice(case: Case) -> float:
    """Mean Dice of a test case over the structures that it has; NaN without any."""
    known = [value for value in case["dice"].values() if value is not None]
    return sum(known) / len(known) if known else math.nan


def dice_of(structure: str) -> Callable[[Case], float]:
    """Dice of one structure of a test case."""
    return lambda case: math.nan if case["dice"].get(structure) is None else float(case["dice"][structure])


def is_right(case: Case) -> float:
    """1 where the class with the highest probability is the true one, else 0."""
    return float(int(np.argmax(case["probabilities"])) == case["target"])


def recall_of(number: int) -> Callable[[Case], float]:
    """Whether a test case of one class is taken for it; NaN for the other cases."""
    return lambda case: is_right(case) if case["target"] == number else math.nan


def _summary(seeds: SeedScores | None, subjects: Sequence[str]) -> Summary | None:
    return None if seeds is None else Summary(bootstrap_mean(seeds.cases, subjects), seeds.spread)


def _ranked(runs: Runs) -> list[tuple[Floats, Classes]]:
    """(n, c) probabilities and (n,) classes of every seed, in the order of the test cases."""
    found = []
    for result in runs.results:
        by_name = {case["case"]: case for case in result["cases"]}
        ordered = [by_name[name] for name in runs.cases]
        probabilities = np.array([case["probabilities"] for case in ordered], np.float64)
        found.append((probabilities, np.array([case["target"] for case in ordered], np.int64)))
    return found


def _spread(side: Sequence[tuple[Floats, Classes]], statistic: Statistic) -> float:
    values = [statistic(*one) for one in side]
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
