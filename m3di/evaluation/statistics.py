"""How sure a mean is: bootstrap intervals over cases or subjects, paired tests between runs, several seeds.

A unit is what is drawn: a case, or a subject with all its cases where several belong to one. NaN, the mark of what
cannot be scored, is left out. Intervals are percentile intervals at levels widened for few units (Hesterberg, The
American Statistician 2015, "expanded percentile"): of the mean of five normal values they hold the truth 91 times in
a hundred where plain ones do 84 times, of ten 95 against 90. With one unit there is no interval: its ends are NaN.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, stdtrit

Floats = npt.NDArray[np.float64]
Groups = Sequence[Hashable]

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 10_000
EXACT_UNITS: Final = 16  # up to here all sign patterns are counted: 32,768
MAX_DRAWN: Final = 1 << 22  # numbers drawn at once


class Interval(NamedTuple):
    """A mean and the ends of its interval; NaN where there is none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference of two runs on the same cases, first minus second.

    Attributes:
        mean: Over cases.
        low: Lower end of its bootstrap interval.
        high: Upper end.
        p_value: Of the sign-flip test that the runs are exchangeable, two-sided; NaN without a case.
        num_cases: Cases that both runs have a score of.
        num_units: Cases, or subjects, that were drawn and flipped.
        exact: Whether all sign patterns were counted, not a sample of them.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_cases: int
    num_units: int
    exact: bool


@dataclass(frozen=True, eq=False)
class SeedScores:
    """Scores of several trainings that differ in their seed, on the same cases.

    Attributes:
        cases: (n,) mean of each case over the seeds; what intervals and tests are then made of.
        means: (s,) mean of each seed over the cases.
        spread: Standard deviation of `means` (n - 1); NaN with one seed. The interval over cases does not hold it.
    """

    cases: Floats
    means: Floats
    spread: float


def bootstrap_mean(
    values: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean over cases, and its bootstrap interval.

    Args:
        values: (n,) one a case; NaN is left out.
        groups: The subject of each case: subjects are drawn, each with all its cases. Without, cases are.
        confidence: Of the interval.
        resamples: How often units are drawn.
        seed: Of the draws.
    """
    sums, counts = _units(np.asarray(values, np.float64), groups)
    if not len(sums):
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(mean, math.nan, math.nan)
    means = _resampled_means(sums, counts, resamples=resamples, seed=seed)
    low, high = np.quantile(means, _levels(len(sums), confidence))
    return Interval(mean, float(low), float(high))


def bootstrap_statistics(
    statistics: Callable[[npt.NDArray[np.int64]], Sequence[float]],
    groups: Groups,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 1_000,
    seed: int = 0,
) -> list[Interval]:
    """Values of whatever is computed from a set of cases, for example AUC, and their bootstrap intervals.

    Args:
        statistics: Gives its values for the cases of the given numbers, some of them several times.
        groups: The subject of each case; subjects are drawn.
        confidence: Of the intervals.
        resamples: How often units are drawn; draws in which a value is NaN, as AUC is without positives, count not.
        seed: Of the draws.
    """
    members = _members(groups)
    found = np.asarray(statistics(np.arange(len(groups))), np.float64)
    if len(members) < 2:
        return [Interval(float(value), math.nan, math.nan) for value in found]
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(members), size=(resamples, len(members)))
    table = np.array([statistics(np.concatenate([members[unit] for unit in draw])) for draw in draws], np.float64)
    levels = _levels(len(members), confidence)
    return [_interval(float(value), column, levels) for value, column in zip(found, table.T, strict=True)]


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Compare two runs on the same cases.

    The test flips the signs of the units' differences: were the runs exchangeable, every pattern would be as likely.
    The p value is the share of patterns whose mean is at least as far from 0 as the one found; up to 16 units all are
    counted (so that n units can give no p below 2^(1 - n)), beyond that as many as `resamples`, the found one among
    them (Phipson and Smyth 2010).

    Args:
        first: (n,) scores of a run, one a case.
        second: (n,) scores of the other, of the same cases in the same order; where one is NaN the case is left out.
        groups: The subject of each case: subjects are drawn and flipped.
        confidence: Of the interval.
        resamples: Of the bootstrap, and of the test beyond 16 units.
        seed: Of the draws.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.shape != other.shape:
        raise ValueError(f"runs of {one.shape} and {other.shape} cases cannot be paired")
    differences = one - other
    sums, counts = _units(differences, groups)
    interval = bootstrap_mean(differences, groups, confidence=confidence, resamples=resamples, seed=seed)
    exact = len(sums) <= EXACT_UNITS
    return PairedDifference(
        *interval,
        p_value=_sign_flip(sums, exact=exact, resamples=resamples, seed=seed),
        num_cases=int(counts.sum()),
        num_units=len(sums),
        exact=exact,
    )


def over_seeds(scores: npt.ArrayLike) -> SeedScores:
    """Average each case over the seeds first: seeds are no cases, and s seeds on n cases are no s * n cases.

    Args:
        scores: (s, n) scores of s trainings on n cases. A case that some seeds cannot score has the mean of the
            others; one that none can is NaN.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"scores of shape {table.shape} are not (seeds, cases)")
    means = _known_means(table.T)
    spread = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    return SeedScores(_known_means(table), means, spread)


def _known_means(table: Floats) -> Floats:
    """Mean of each column without its NaN; NaN for a column that is nothing else."""
    counts = (~np.isnan(table)).sum(axis=0)
    sums = np.nansum(table, axis=0)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _units(values: Floats, groups: Groups | None) -> tuple[Floats, Floats]:
    """Sum and number of the known values of each unit that has any."""
    known = ~np.isnan(values)
    if groups is None:
        return values[known], np.ones(int(known.sum()))
    if len(groups) != len(values):
        raise ValueError(f"{len(groups)} subjects for {len(values)} values")
    owners = [group for group, is_known in zip(groups, known, strict=True) if is_known]
    members = _members(owners)
    found = values[known]
    return np.array([found[unit].sum() for unit in members]), np.array([float(len(unit)) for unit in members])


def _members(groups: Groups) -> list[npt.NDArray[np.int64]]:
    """Numbers of each subject's cases, subjects in the order of their first."""
    places: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        places.setdefault(group, []).append(number)
    return [np.array(numbers, np.int64) for numbers in places.values()]


def _resampled_means(sums: Floats, counts: Floats, *, resamples: int, seed: int) -> Floats:
    generator = np.random.default_rng(seed)
    means, at_once = np.empty(resamples), max(1, MAX_DRAWN // len(sums))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start), len(sums)
        draws = generator.integers(len(sums), size=size)
        means[start : start + size[0]] = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    return means


def _levels(num_units: int, confidence: float) -> tuple[float, float]:
    """Quantiles that make a percentile interval as wide as Student's, for a mean of few units."""
    student = stdtrit(num_units - 1, (1 + confidence) / 2)
    tail = float(ndtr(-math.sqrt(num_units / (num_units - 1)) * student))
    return tail, 1 - tail


def _interval(value: float, resampled: Floats, levels: tuple[float, float]) -> Interval:
    known = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(known):
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(known, levels)
    return Interval(value, float(low), float(high))


def _sign_flip(sums: Floats, *, exact: bool, resamples: int, seed: int) -> float:
    """Share of sign patterns whose sum is at least as far from 0 as that of `sums`."""
    if not len(sums):
        return math.nan
    found = abs(float(sums.sum())) - 1e-12 * float(np.abs(sums).sum())  # rounding must not tell equal ones apart
    if exact:
        patterns = np.arange(1 << (len(sums) - 1))[:, None] >> np.arange(len(sums)) & 1  # the last sign stays
        return float((np.abs((1 - 2 * patterns) @ sums) >= found).mean())
    generator = np.random.default_rng(seed)
    hits, at_once = 0, max(1, MAX_DRAWN // len(sums))
    for start in range(0, resamples, at_once):
        signs = generator.integers(2, size=(min(at_once, resamples - start), len(sums)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ sums) >= found).sum())
    return (hits + 1) / (resamples + 1)
