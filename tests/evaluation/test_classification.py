import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from m3di.evaluation.classification import area_under_roc, reliability, score_classes
from tests.references.calibration import auc_of, calibration_error


def draw(num_cases, num_classes, *, seed=0, steps=None):
    """Random probabilities, rounded to few steps where there shall be ties, and targets that agree a little."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, num_classes, num_cases)
    logits = random.normal(size=(num_cases, num_classes)) + np.eye(num_classes)[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if steps:
        counts = np.floor(probabilities * steps)
        counts[:, 0] += steps - counts.sum(axis=1)
        probabilities = counts / steps
    return probabilities, targets


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [None, 4])
def test_two_classes_give_scikit_learns_figures(seed, steps):
    probabilities, targets = draw(57, 2, seed=seed, steps=steps)
    scores = score_classes(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted))
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(targets, predicted))
    assert scores.auc == pytest.approx(metrics.roc_auc_score(targets, probabilities[:, 1]))
    assert scores.sensitivity == pytest.approx(metrics.recall_score(targets, predicted))
    assert scores.specificity == pytest.approx(metrics.recall_score(targets, predicted, pos_label=0))
    assert scores.brier == pytest.approx(metrics.brier_score_loss(targets, probabilities[:, 1]))
    np.testing.assert_array_equal(scores.confusion, metrics.confusion_matrix(targets, predicted))


@pytest.mark.parametrize("steps", [None, 5])
def test_several_classes_give_scikit_learns_figures(steps):
    probabilities, targets = draw(80, 5, steps=steps)
    scores = score_classes(probabilities, targets)
    predicted = probabilities.argmax(axis=1)
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(targets, predicted))
    assert scores.sensitivity == pytest.approx(metrics.recall_score(targets, predicted, average="macro"))
    assert scores.auc == pytest.approx(metrics.roc_auc_score(targets, probabilities, multi_class="ovr"))
    assert scores.brier == pytest.approx(((probabilities - np.eye(5)[targets]) ** 2).sum() / 80)
    np.testing.assert_array_equal(scores.confusion, metrics.confusion_matrix(targets, predicted))
    tables = metrics.multilabel_confusion_matrix(targets, predicted)
    expected = [true_negative / (true_negative + false_positive) for (true_negative, false_positive), _ in tables]
    assert [one.specificity for one in scores.classes] == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.25, 0.3, 1.0)), st.booleans()), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs_in_order_whatever_the_ties(cases):
    scores, positives = (np.array(column) for column in zip(*cases, strict=True))
    assert area_under_roc(scores, positives) == pytest.approx(auc_of(scores, positives), nan_ok=True)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_the_calibration_error_is_the_literal_one(num_classes):
    probabilities, targets = draw(90, num_classes)
    expected = calibration_error(probabilities, targets, 15)
    assert score_classes(probabilities, targets).ece == pytest.approx(expected)


def test_calibration_by_hand():
    """Two cases at 0.9, one right: off by 0.4; two at 0.6, both right: off by 0.4; so 0.4 in the mean."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    targets = np.array([0, 1, 1, 1])
    assert score_classes(probabilities, targets).ece == pytest.approx(0.4)
    filled = [
        (one.num_cases, one.accuracy) for one in reliability(probabilities, targets, num_bins=10) if one.num_cases
    ]
    assert filled == [(2, 1.0), (2, 0.5)]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = reliability(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 0]), num_bins=2)
    assert [one.num_cases for one in bins] == [1, 1]
    assert (bins[0].low, bins[0].high, bins[0].confidence) == (0, 0.5, 0.5)


def test_a_class_without_a_case_is_named_and_left_out_of_means():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1]])
    scores = score_classes(probabilities, np.array([0, 1, 1, 0]))
    assert scores.absent == (2,)
    assert [one.num_cases for one in scores.classes] == [2, 2, 0]
    assert math.isnan(scores.classes[2].sensitivity)
    assert math.isnan(scores.classes[2].auc)
    assert scores.classes[2].specificity == pytest.approx(3 / 4)
    assert scores.balanced_accuracy == pytest.approx((1 + 1 / 2) / 2)
    assert scores.auc == pytest.approx((4 / 4 + 2.5 / 4) / 2), "of class 1, 0.3 has a tie and is below 0.4"


def test_a_test_set_of_one_class_has_no_auc_and_no_specificity():
    scores = score_classes(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1]))
    assert (scores.accuracy, scores.sensitivity, scores.absent) == (0.5, 0.5, (0,))
    assert math.isnan(scores.auc)
    assert math.isnan(scores.specificity)
    assert scores.balanced_accuracy == 0.5


def test_a_class_that_is_never_predicted_has_sensitivity_0():
    scores = score_classes(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]))
    assert (scores.sensitivity, scores.specificity, scores.balanced_accuracy) == (0, 1, 0.5)


@pytest.mark.parametrize(
    "probabilities, targets, problem",
    [
        ([[0.5, 0.6]], [0], "add up to 1"),
        ([[1.5, -0.5]], [0], "add up to 1"),
        ([[math.nan, 0.5]], [0], "add up to 1"),
        ([[0.5, 0.5]], [2], "do not number 2 classes"),
        ([[0.5, 0.5]], [-1], "do not number 2 classes"),
        ([[0.5, 0.5]], [0, 1], "are not"),
        ([[1.0]], [0], "are not"),
    ],
)
def test_what_is_no_probability_or_class_is_refused(probabilities, targets, problem):
    with pytest.raises(ValueError, match=problem):
        score_classes(np.array(probabilities), np.array(targets))
