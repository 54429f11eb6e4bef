"""Segmentation metrics per case, and their mean with a confidence interval."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def dice_per_class(
    prediction: npt.NDArray[np.integer], reference: npt.NDArray[np.integer], values: Sequence[int]
) -> dict[int, float]:
    """Dice coefficient of each label value: 2 |P and R| / (|P| + |R|).

    A value that neither map holds has no Dice: NaN, left out of means. One that only one map holds has 0.

    Args:
        prediction: Label map.
        reference: Label map of the same shape.
        values: Label values to score, background not among them.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    return {value: _dice(prediction == value, reference == value) for value in values}


def mean_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of per-case values and its percentile bootstrap interval over cases; NaN values are left out.

    Returns:
        Mean, lower and upper end; all NaN when there is no value. With one value the ends equal it.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return float("nan"), float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = generator.choice(known, (resamples, known.size)).mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(known.mean()), float(low), float(high)


def _dice(prediction: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> float:
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else float("nan")
