import math

import numpy as np
import pytest
import torch

from m3di.training.losses import dice_cross_entropy
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
