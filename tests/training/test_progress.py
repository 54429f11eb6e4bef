import math
from functools import reduce

import pytest

from m3di.training.progress import Progress


def course(*ranks):
    return reduce(lambda so_far, step: so_far.after(step[1], 10 * (step[0] + 1)), enumerate(ranks), Progress())


def test_the_best_is_kept_with_its_clock():
    found = course((0.5,), (0.7,), (0.6,), (0.65,))
    assert (found.best, found.best_samples_seen, found.since) == ((0.7,), 20, 2)
    assert found.is_best_at(20)
    assert not found.is_best_at(40)


def test_what_comes_second_decides_between_equals():
    found = course((0.5, -1.0), (0.5, -0.8), (0.5, -0.9))
    assert (found.best, found.best_samples_seen) == ((0.5, -0.8), 20)


def test_of_equals_the_later_counts_but_it_is_no_progress():
    found = course((0.0,), (0.0,), (0.0,))
    assert (found.best_samples_seen, found.since) == (30, 2)


@pytest.mark.parametrize("patience, over", [(0, False), (1, True), (2, True), (3, False)])
def test_patience_counts_evaluations_without_a_better_one(patience, over):
    assert course((0.7,), (0.6,), (0.6,)).is_over(patience) == over


def test_what_is_no_number_is_worst_and_survives_json():
    found = course((math.nan, 0.0), (math.nan, 0.0))
    assert found.best == (-math.inf, 0.0)
    assert Progress.from_dict(found.to_dict()) == found
    assert found.to_dict()["best"] == [None, 0.0]
    assert found.after((0.0, -9.0), 30).best_samples_seen == 30
    assert Progress.from_dict(Progress().to_dict()) == Progress()
