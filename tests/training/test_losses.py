import math

import numpy as np
import pytest
import torch

from m3di.networks.segmentation import SegmentationOutput
from m3di.training.losses import (
    balancing_weights,
    class_cross_entropy,
    deeply_supervised,
    dice_cross_entropy,
    nearest_labels,
)
from tests.references import losses as literal


def scores(c, shape=(2, 3, 2, 4), seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(shape[0], c, *shape[1:]))
    return torch.from_numpy(logits), torch.from_numpy(random.integers(0, c, shape))


@pytest.mark.parametrize("c", [2, 5])
def test_dice_cross_entropy_is_the_literal_sum(c):
    logits, labels = scores(c)
    value = dice_cross_entropy(logits, labels).item()
    assert value == pytest.approx(literal.dice_cross_entropy(logits.numpy(), labels.numpy()), rel=1e-12)


@pytest.mark.parametrize("present", [[0, 2], [1], [0]])
def test_classes_that_do_not_occur_are_left_to_the_cross_entropy(present):
    logits, labels = scores(4)
    labels = torch.tensor(present)[labels % len(present)]
    value = dice_cross_entropy(logits, labels).item()
    assert value == pytest.approx(literal.dice_cross_entropy(logits.numpy(), labels.numpy()), rel=1e-12)


def test_dice_cross_entropy_by_hand():
    # Two voxels, labels 1 and 0, both p(1) = 1/2: Dice 2 * 0.5 / (1 + 1) = 1/2, cross-entropy ln 2.
    labels = torch.tensor([1, 0]).view(1, 2, 1, 1)
    assert dice_cross_entropy(torch.zeros(1, 2, 2, 1, 1), labels).item() == pytest.approx((0.5 + math.log(2)) / 2)


def test_sure_and_right_costs_nothing():
    _, labels = scores(3)
    logits = 100.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert dice_cross_entropy(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_dice_cross_entropy_gradients():
    logits, labels = scores(3, shape=(1, 2, 1, 2))
    assert torch.autograd.gradcheck(lambda x: dice_cross_entropy(x, labels), logits.requires_grad_())


def test_dice_cross_entropy_runs_wide_on_half_precision():
    logits, labels = scores(3)
    with torch.autocast("cpu", torch.bfloat16):
        value = dice_cross_entropy(logits.bfloat16(), labels)
    assert value.dtype == torch.float32
    expected = literal.dice_cross_entropy(logits.bfloat16().double().numpy(), labels.numpy())
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_voxels_of_unknown_class_have_no_part():
    logits, labels = scores(3, shape=(1, 4, 3, 5))
    unknown = labels.clone()
    unknown[:, 2:] = -1
    expected = dice_cross_entropy(logits[:, :, :2], labels[:, :2]).item()
    assert dice_cross_entropy(logits, unknown).item() == pytest.approx(expected, rel=1e-12)
    logits.requires_grad_()
    dice_cross_entropy(logits, unknown).backward()
    assert not logits.grad[:, :, 2:].any()
    nothing = dice_cross_entropy(logits, torch.full_like(labels, -1))
    assert nothing.item() == 0


def test_deep_supervision_is_the_weighted_mean_of_its_maps():
    logits, labels = scores(3, shape=(2, 4, 4, 4))
    coarse, _ = scores(3, shape=(2, 2, 2, 2), seed=1)
    output = SegmentationOutput(logits, (logits * 2, coarse))
    parts = [literal.dice_cross_entropy(one.numpy(), labels.numpy()) for one in (logits, 2 * logits)]
    parts.append(literal.dice_cross_entropy(coarse.numpy(), labels.numpy()[:, 1::2, 1::2, 1::2]))
    expected = (parts[0] + 0.5 * parts[1] + 0.25 * parts[2]) / 1.75
    assert deeply_supervised(output, labels, (0.5, 0.25)).item() == pytest.approx(expected, rel=1e-9)
    plain = deeply_supervised(SegmentationOutput(logits), labels, (0.5, 0.25))
    assert plain.item() == pytest.approx(parts[0], rel=1e-9), "without maps, as in evaluation"


def test_maps_and_weights_that_do_not_pair_are_a_mistake_of_the_caller():
    logits, labels = scores(3)
    output = SegmentationOutput(logits, (logits, logits))
    for weights in ((0.5,), (0.5, 0.25, 0.1)):
        with pytest.raises(ValueError, match="zip"):
            deeply_supervised(output, labels, weights)


def test_coarser_labels_are_the_nearest_ones():
    labels = torch.arange(27).view(1, 3, 3, 3)
    assert nearest_labels(labels, (1, 1, 1)).item() == 13, "the centre"
    assert nearest_labels(labels, (3, 3, 3)) is labels


def test_class_weights_by_hand():
    targets = [0, 0, 0, 1]
    weights = balancing_weights(targets, 3)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 4 / 2, 0.0]))
    assert weights[targets].mean() == pytest.approx(1)
    # Both classes equally probable: each case costs its weight times ln 2, also in a batch of one class.
    logits = torch.zeros(2, 2)
    cost = class_cross_entropy(logits, torch.tensor([1, 1]), weights[:2])
    assert cost.item() == pytest.approx(2 * math.log(2))


def test_equal_weights_are_cross_entropy():
    random = np.random.default_rng(0)
    logits, targets = torch.from_numpy(random.normal(size=(5, 4))), torch.from_numpy(random.integers(0, 4, 5))
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(class_cross_entropy(logits, targets, torch.ones(4).double()), expected)
