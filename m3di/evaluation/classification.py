"""Classification metrics of a test set, from the probabilities of each case.

A class that no test case has gives no sensitivity and no AUC, and one that every case has gives no specificity and
no AUC: these are NaN, the class is named in `absent`, and means over classes are over the others. A class with cases
that is never predicted has sensitivity 0 and counts.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_BINS: Final = 15  # of confidence, as Guo et al. 2017 have it
SUM_TOLERANCE: Final = 1e-3  # of a case's probabilities, which half precision may round


@dataclass(frozen=True)
class ClassScore:
    """One class against all others.

    Attributes:
        num_cases: Test cases of the class.
        auc: Area under the ROC curve of its probability: the chance that a case of the class gets a higher one than a
            case of another, equal ones counted half.
        sensitivity: Share of its cases that were given to it.
        specificity: Share of the other cases that were not.
    """

    num_cases: int
    auc: float
    sensitivity: float
    specificity: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases whose highest probability lies in (low, high].

    Attributes:
        low: Lower edge.
        high: Upper edge.
        num_cases: How many.
        confidence: Mean of their highest probabilities; NaN without a case.
        accuracy: Share of them that were right; NaN without a case.
    """

    low: float
    high: float
    num_cases: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScores:
    """Scores of a test set. With two classes, class 1 is the positive one.

    Attributes:
        num_cases: Test cases.
        accuracy: Share of cases whose class has the highest probability; of equal ones the first class is taken.
        balanced_accuracy: Mean sensitivity over the classes that have cases.
        auc: Of class 1 with two classes, else the mean of one against the rest.
        sensitivity: Of class 1 with two classes, else the mean of one against the rest.
        specificity: The same.
        ece: Expected calibration error: mean distance between confidence and accuracy over the bins, by their cases.
        brier: Mean squared error of the probabilities: of class 1 with two classes (0 to 1), else summed over the
            classes (0 to 2; Brier 1950).
        confusion: Number of cases by true class, then by predicted class.
        classes: One against the rest, by class index.
        absent: Classes without a test case.
        bins: Of the highest probability, 15 of equal width.
    """

    num_cases: int
    accuracy: float
    balanced_accuracy: float
    auc: float
    sensitivity: float
    specificity: float
    ece: float
    brier: float
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassScore, ...]
    absent: tuple[int, ...]
    bins: tuple[ReliabilityBin, ...]


def score_classes(probabilities: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.integer[Any]]) -> ClassScores:
    """Score the probabilities of a test set.

    Args:
        probabilities: (n, c) of each case and class, each row adding up to 1; at least two classes.
        targets: (n,) class index of each case.
    """
    given = _checked(probabilities, targets)
    num_classes = given.shape[1]
    confusion = confusion_of(given.argmax(axis=1), targets, num_classes)
    classes = tuple(_one_against_rest(given[:, c], confusion, targets == c, c) for c in range(num_classes))
    bins = reliability(given, targets)
    positive = classes[1:] if num_classes == 2 else classes
    return ClassScores(
        num_cases=len(targets),
        accuracy=float(np.trace(confusion)) / len(targets),
        balanced_accuracy=_known_mean([one.sensitivity for one in classes]),
        auc=_known_mean([one.auc for one in positive]),
        sensitivity=_known_mean([one.sensitivity for one in positive]),
        specificity=_known_mean([one.specificity for one in positive]),
        ece=sum(one.num_cases * abs(one.confidence - one.accuracy) for one in bins if one.num_cases) / len(targets),
        brier=brier_score(given, targets),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        classes=classes,
        absent=tuple(c for c, one in enumerate(classes) if not one.num_cases),
        bins=bins,
    )


def confusion_of(
    predictions: npt.NDArray[np.integer[Any]], targets: npt.NDArray[np.integer[Any]], num_classes: int
) -> npt.NDArray[np.int64]:
    """(c, c) number of cases by true class, then by predicted class."""
    pairs = targets.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def area_under_roc(scores: npt.NDArray[np.floating[Any]], is_positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney); NaN when one side has no case.

    Args:
        scores: (n,) higher for what is more likely positive; equal ones share their mean rank.
        is_positive: (n,) truth.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        return math.nan
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1; equal scores have the mean of theirs
    total = ranks[places][is_positive].sum()
    return float((total - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def brier_score(probabilities: Floats, targets: npt.NDArray[np.integer[Any]]) -> float:
    """Mean squared error of (n, c) probabilities; see `ClassScores`."""
    squared = (probabilities - np.eye(probabilities.shape[1])[targets]) ** 2
    return float(squared[:, 1].mean() if probabilities.shape[1] == 2 else squared.sum(axis=1).mean())


def reliability(
    probabilities: Floats, targets: npt.NDArray[np.integer[Any]], *, num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """Confidence beside accuracy, in bins of equal width.

    Args:
        probabilities: (n, c).
        targets: (n,) class index of each case.
        num_bins: How many bins there are from 0 to 1.
    """
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    edges = np.linspace(0, 1, num_bins + 1)
    places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, num_bins - 1)
    return tuple(
        ReliabilityBin(
            float(edges[place]),
            float(edges[place + 1]),
            int((own := places == place).sum()),
            _mean(confidences[own]),
            _mean(right[own]),
        )
        for place in range(num_bins)
    )


def _one_against_rest(
    scores: Floats, confusion: npt.NDArray[np.int64], is_class: npt.NDArray[np.bool_], number: int
) -> ClassScore:
    own, total = int(confusion[number].sum()), int(confusion.sum())
    hits, given = int(confusion[number, number]), int(confusion[:, number].sum())
    return ClassScore(
        num_cases=own,
        auc=area_under_roc(scores, is_class),
        sensitivity=hits / own if own else math.nan,
        specificity=1 - (given - hits) / (total - own) if total > own else math.nan,
    )


def _checked(probabilities: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Floats:
    given = np.asarray(probabilities, np.float64)
    if given.ndim != 2 or given.shape[1] < 2 or targets.shape != given.shape[:1] or not len(targets):
        raise ValueError(f"probabilities {given.shape} and targets {targets.shape} are not (n, c) and (n,)")
    if not (given >= 0).all() or not (np.abs(given.sum(axis=1) - 1) <= SUM_TOLERANCE).all():  # NaN is neither
        raise ValueError("the probabilities of some case do not add up to 1")
    if targets.min() < 0 or targets.max() >= given.shape[1]:
        raise ValueError(f"targets {targets.min()} to {targets.max()} do not number {given.shape[1]} classes")
    return given


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _known_mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
