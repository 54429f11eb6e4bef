import math

import numpy as np
import pytest

from m3di.evaluation.metrics import dice_per_class, mean_interval


def test_dice_by_hand():
    prediction = np.array([[0, 1, 1, 2], [0, 1, 0, 0]])
    reference = np.array([[0, 1, 0, 0], [0, 1, 1, 3]])
    scores = dice_per_class(prediction, reference, [1, 2, 3, 4])
    assert scores[1] == pytest.approx(2 * 2 / 6)
    assert scores[2] == 0
    assert scores[3] == 0
    assert math.isnan(scores[4]), "nobody has it"


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="differ in shape"):
        dice_per_class(np.zeros((2, 2), int), np.zeros((2, 3), int), [1])


def test_the_interval_holds_the_mean_and_ignores_what_is_not_known():
    mean, low, high = mean_interval([0.5, 0.7, float("nan"), 0.9])
    assert mean == pytest.approx(0.7)
    assert 0.5 <= low < mean < high <= 0.9
    assert mean_interval([0.4]) == pytest.approx((0.4, 0.4, 0.4))
    assert all(math.isnan(value) for value in mean_interval([]))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = mean_interval(random.normal(0.8, 0.1, 40), resamples=500)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 200 <= 0.99
