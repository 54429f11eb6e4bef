import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from m3di.evaluation.statistics import bootstrap_mean, bootstrap_statistics, over_seeds, paired_difference
from tests.references.permutation import all_bootstrap_means, sign_flip_p

NAN = float("nan")


def test_the_interval_holds_the_mean_and_ignores_what_is_not_known():
    mean, low, high = bootstrap_mean([0.5, 0.7, NAN, 0.9])
    assert mean == pytest.approx(0.7)
    assert 0.5 <= low < mean < high <= 0.9
    assert all(math.isnan(value) for value in bootstrap_mean([]))
    assert all(math.isnan(value) for value in bootstrap_mean([NAN]))


@pytest.mark.parametrize("values, groups", [([0.4], None), ([0.3, 0.5], ["a", "a"])])
def test_one_unit_has_a_mean_but_no_interval(values, groups):
    mean, low, high = bootstrap_mean(values, groups)
    assert mean == pytest.approx(0.4)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("size, least", [(5, 0.87), (10, 0.91), (40, 0.91)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(size, least):
    """At 84 and 90% plain percentile intervals of 5 and 10 cases do not."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        _, low, high = bootstrap_mean(random.normal(0.8, 0.1, size), resamples=500)
        hits += low <= 0.8 <= high
    assert least <= hits / 500 <= 0.985


def test_for_many_cases_the_interval_is_that_of_student():
    values = np.random.default_rng(1).normal(size=400)
    expected = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    np.testing.assert_allclose(bootstrap_mean(values)[1:], expected, atol=0.01)


def test_subjects_are_drawn_with_all_their_cases():
    values, groups = [0.1, 0.2, 0.9, 0.4, 0.5, 0.6], ["a", "a", "b", "c", "c", "c"]
    expected = all_bootstrap_means(values, groups)
    tail = stats.norm.cdf(-math.sqrt(3 / 2) * stats.t.ppf(0.75, 2))
    found = bootstrap_mean(values, groups, confidence=0.5, resamples=200_000)
    assert found.mean == pytest.approx(np.mean(values))
    ordered = np.sort(expected)
    for end, level in ((found.low, tail), (found.high, 1 - tail)):
        share_below, share_up_to = (ordered < end - 1e-9).mean(), (ordered <= end + 1e-9).mean()
        assert share_below <= level <= share_up_to


def test_copies_of_a_subjects_scan_do_not_make_the_interval_narrower():
    values = np.random.default_rng(2).normal(size=12)
    many, groups = np.repeat(values, 5), np.repeat(np.arange(12), 5).tolist()
    assert bootstrap_mean(many, groups) == pytest.approx(bootstrap_mean(values))
    naive, honest = bootstrap_mean(many), bootstrap_mean(many, groups)
    assert naive.high - naive.low < 0.6 * (honest.high - honest.low)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(3).normal(size=20)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_draws_in_pieces_fill_every_mean(monkeypatch):
    values = np.random.default_rng(4).normal(size=30)
    monkeypatch.setattr("m3di.evaluation.statistics.MAX_DRAWN", 30 * 7)
    assert bootstrap_mean(values, resamples=2_000)[1:] == pytest.approx(bootstrap_mean(values)[1:], abs=0.05)


@settings(max_examples=50)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_exact_test_counts_all_sign_patterns(differences):
    found = paired_difference(np.array(differences) / 10, np.zeros(len(differences)), resamples=10)
    assert found.exact
    assert found.p_value == pytest.approx(sign_flip_p(differences))


@pytest.mark.parametrize("size", [6, 16])
def test_the_exact_test_is_scipys(size):
    first, second = np.random.default_rng(size).normal(0.3, 1, (2, size))
    expected = stats.permutation_test(
        (first, second), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_difference(first, second, resamples=10).p_value == pytest.approx(expected.pvalue)


def test_beyond_16_units_the_test_samples_patterns_and_agrees():
    random = np.random.default_rng(6)
    differences = random.normal(0.35, 1, 30)
    found = paired_difference(differences, np.zeros(30), resamples=50_000)
    assert not found.exact
    assert found.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert paired_difference(np.full(40, 0.1), np.zeros(40), resamples=999).p_value == pytest.approx(1 / 1000)


def test_subjects_flip_as_one():
    """Three subjects of four like cases: 2^3 patterns, two of them as far out, not two of 2^12."""
    first, groups = np.full(12, 0.5), np.repeat(["a", "b", "c"], 4).tolist()
    found = paired_difference(first, np.zeros(12), groups)
    assert (found.num_cases, found.num_units, found.p_value) == (12, 3, pytest.approx(2 / 8))
    assert paired_difference(first, np.zeros(12)).p_value == pytest.approx(2 / 2**12)


def test_cases_that_one_run_cannot_score_are_left_out():
    found = paired_difference([0.9, NAN, 0.8, 0.7], [0.7, 0.2, NAN, 0.6], resamples=100)
    assert (found.num_cases, found.mean) == (2, pytest.approx(0.15))
    assert math.isnan(paired_difference([NAN], [1.0]).p_value)


def test_equal_runs_do_not_differ():
    found = paired_difference([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.slow
def test_the_test_rejects_what_is_true_as_often_as_it_says():
    random = np.random.default_rng(7)
    values = [paired_difference(*random.normal(size=(2, 12)), resamples=100).p_value for _ in range(600)]
    assert 0.03 <= np.mean(np.array(values) <= 0.05) <= 0.075


def test_cases_are_averaged_over_seeds_first():
    scores = np.array([[0.2, 0.8, NAN], [0.4, NAN, NAN], [0.6, 0.6, NAN]])
    found = over_seeds(scores)
    np.testing.assert_allclose(found.cases, [0.4, 0.7, NAN])
    np.testing.assert_allclose(found.means, [0.5, 0.4, 0.6])
    assert found.spread == pytest.approx(0.1)
    assert math.isnan(over_seeds(scores[:1]).spread)


def test_more_seeds_do_not_stand_for_more_cases():
    case = np.random.default_rng(8).normal(size=15)
    repeated = over_seeds(np.tile(case, (10, 1)))
    assert bootstrap_mean(repeated.cases) == pytest.approx(bootstrap_mean(case))


@pytest.mark.parametrize("groups", [list(range(25)), ["a", "b", "c", "d", "e"] * 5])
def test_any_statistic_has_the_interval_that_its_mean_has(groups):
    values = np.random.default_rng(9).normal(size=25)
    (found,) = bootstrap_statistics(lambda chosen: [values[chosen].mean()], groups, resamples=4_000)
    expected = bootstrap_mean(values, groups)
    assert found.mean == pytest.approx(expected.mean)
    assert found[1:] == pytest.approx(expected[1:], abs=0.04)


def test_draws_without_a_value_do_not_count():
    positive = np.array([True] + [False] * 9)
    (found,) = bootstrap_statistics(lambda chosen: [1.0 if positive[chosen].any() else NAN], list(range(10)))
    assert found == (1, 1, 1)
    (nothing,) = bootstrap_statistics(lambda chosen: [NAN], list(range(3)))
    assert all(math.isnan(value) for value in nothing)


@pytest.mark.parametrize(
    "call", [lambda: paired_difference([1.0], [1.0, 2.0]), lambda: bootstrap_mean([1.0, 2.0], ["a"]),
             lambda: over_seeds([1.0])]
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(call):
    with pytest.raises(ValueError, match=r"cannot be paired|subjects for|are not"):
        call()
