"""Means over test cases with intervals over subjects, of one seed or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from m3di.evaluation.classification import ClassScores, score_classes
from m3di.evaluation.scoring import ClassificationCase, SegmentationCase, mean_case
from m3di.evaluation.segmentation import METRICS
from m3di.evaluation.statistics import Groups, Interval, bootstrap_mean, bootstrap_statistics, over_seeds

GRIDS: Final = ("scanner", "cube")
ALL: Final = "all"  # the mean over a case's classes
CLASS_METRICS: Final = ("balanced_accuracy", "accuracy", "auc", "sensitivity", "specificity", "ece", "brier")

Table = dict[str, dict[str, Interval]]  # by class name and metric
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How far seeds lie apart.

    Attributes:
        means: Of each seed over the cases.
        spread: Their standard deviation; NaN with one seed.
    """

    means: tuple[float, ...]
    spread: float


@dataclass(frozen=True)
class MaskSummary:
    """Segmentation scores of a test set.

    Attributes:
        cases: Of several seeds their means.
        mean: By grid (`scanner`, `cube`), class name (`all` is the mean over a case's classes) and metric: the mean
            over cases with its 95% interval over subjects.
        seeds: By grid, class name and metric, how far seeds lie apart; empty with one seed.
    """

    cases: tuple[SegmentationCase, ...]
    mean: dict[str, Table]
    seeds: dict[str, dict[str, dict[str, Spread]]]


@dataclass(frozen=True)
class ClassSummary:
    """Classification scores of a test set.

    Attributes:
        cases: Of several seeds their means.
        mean: By metric, with its 95% interval over subjects; of several seeds their mean.
        seeds: By metric, how far seeds lie apart; empty with one seed.
        scores: Of all cases of all seeds together: confusion, calibration, one class against the rest.
    """

    cases: tuple[ClassificationCase, ...]
    mean: dict[str, Interval]
    seeds: dict[str, Spread]
    scores: ClassScores


def people_in(cases: Sequence[SegmentationCase | ClassificationCase]) -> Groups:
    """Who each case is of: equal subject names of different datasets are different people."""
    return [(case.dataset, case.subject) for case in cases]


def summarise_masks(seeds: Sequence[Sequence[SegmentationCase]], classes: Mapping[int, str]) -> MaskSummary:
    """Summarise segmentation scores.

    Args:
        seeds: Of each seed, the scores of the same cases in the same order.
        classes: Class name by label value, background left out.
    """
    people = people_in(seeds[0])
    mean: dict[str, Table] = {}
    spreads: dict[str, dict[str, dict[str, Spread]]] = {}
    for grid in GRIDS:
        mean[grid] = {name: {} for name in (*classes.values(), ALL)}
        spreads[grid] = {name: {} for name in mean[grid]}
        for metric in METRICS:
            for name, table in columns(seeds, classes, grid=grid, metric=metric).items():
                found = over_seeds(table)
                mean[grid][name][metric] = bootstrap_mean(found.cases, people)
                spreads[grid][name][metric] = Spread(tuple(found.means.tolist()), found.spread)
    cases = tuple(mean_case([seed[number] for seed in seeds]) for number in range(len(people)))
    return MaskSummary(cases, mean, spreads if len(seeds) > 1 else {})


def columns(
    seeds: Sequence[Sequence[SegmentationCase]], classes: Mapping[int, str], *, grid: str, metric: str
) -> dict[str, Floats]:
    """(s, n) scores by seed and case of each class by its name, and of `all`."""
    values = [[[getattr(getattr(case, grid)[value], metric) for value in classes] for case in seed] for seed in seeds]
    table = np.array(values, np.float64)
    found = {name: table[:, :, position] for position, name in enumerate(classes.values())}
    known = ~np.isnan(table)
    sums, counts = np.nansum(table, axis=2), known.sum(axis=2)
    return {**found, ALL: np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)}


def summarise_classes(seeds: Sequence[Sequence[ClassificationCase]]) -> ClassSummary:
    """Summarise classification scores.

    Args:
        seeds: Of each seed, the probabilities of the same cases in the same order.
    """
    tables = [np.array([case.probabilities for case in seed], np.float64) for seed in seeds]
    targets = np.array([case.target for case in seeds[0]])

    def by_seed(drawn: npt.NDArray[np.int64]) -> Floats:
        scored = [score_classes(table[drawn], targets[drawn]) for table in tables]
        return np.array([[getattr(one, metric) for metric in CLASS_METRICS] for one in scored], np.float64)

    intervals = bootstrap_statistics(lambda drawn: list(by_seed(drawn).mean(axis=0)), people_in(seeds[0]))
    every = by_seed(np.arange(len(targets)))
    spreads = {
        metric: Spread(tuple(column.tolist()), float(column.std(ddof=1)))
        for metric, column in zip(CLASS_METRICS, every.T, strict=True)
        if len(seeds) > 1
    }
    cases = tuple(_mean_case([seed[number] for seed in seeds]) for number in range(len(targets)))
    pooled = score_classes(np.concatenate(tables), np.tile(targets, len(tables)))
    return ClassSummary(cases, dict(zip(CLASS_METRICS, intervals, strict=True)), spreads, pooled)


def _mean_case(cases: Sequence[ClassificationCase]) -> ClassificationCase:
    if len(cases) == 1:
        return cases[0]
    by_seed = tuple(case.probabilities for case in cases)
    mean = tuple(np.mean(by_seed, axis=0).tolist())
    return replace(cases[0], probabilities=mean, by_seed=by_seed)
