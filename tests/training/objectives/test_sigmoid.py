import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.objectives.sigmoid import SigmoidLoss
from tests.references import losses as literal
from tests.training.objectives.rows import embeddings, same_group


@given(st.integers(0, 99), st.integers(1, 7), st.floats(0, 3), st.floats(-10, 2))
@settings(max_examples=30)
def test_sigmoid_loss_is_the_literal_sum(seed, s, logit_scale, bias):
    loss = SigmoidLoss().double()
    torch.nn.init.constant_(loss.logit_scale, logit_scale)
    torch.nn.init.constant_(loss.logit_bias, bias)
    value = loss(embeddings(seed, s), embeddings(seed + 1, s)).item()
    expected = literal.sigmoid(embeddings(seed, s), embeddings(seed + 1, s), math.exp(logit_scale), bias)
    assert value == pytest.approx(expected, rel=1e-9)


def test_duplicates_are_not_judged():
    duplicate = same_group([0, 0, 1, 2, 2, 2])
    value = SigmoidLoss().double()(embeddings(0), embeddings(1), duplicate=duplicate).item()
    assert value == pytest.approx(literal.sigmoid(embeddings(0), embeddings(1), 10, -10, duplicate), rel=1e-6)


def test_scale_and_bias_start_at_the_published_values():
    loss = SigmoidLoss()
    assert (loss.logit_scale.item(), loss.logit_bias.item()) == pytest.approx((2.302585, -10))


def test_gradients():
    duplicate = same_group([0, 0, 1])
    inputs = embeddings(0, s=3, e=4).requires_grad_(), embeddings(1, s=3, e=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: SigmoidLoss().double()(p, t, duplicate=duplicate), inputs)


def test_digits_are_kept_under_bf16_autocast():
    predictions, targets = embeddings(0, dtype=torch.float32), embeddings(1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = SigmoidLoss()(predictions, targets)
    assert inside.item() == SigmoidLoss()(predictions, targets).item()
    assert inside.item() == pytest.approx(literal.sigmoid(predictions, targets, 10, -10), rel=1e-5)
