import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.objectives.infonce import InfoNCE
from m3di.training.objectives.soft import SoftInfoNCE
from tests.references import losses as literal
from tests.training.objectives.rows import embeddings, same_group


@given(st.integers(0, 99), st.lists(st.integers(0, 3), min_size=1, max_size=7), st.floats(0, 1), st.floats(0.02, 2))
@settings(max_examples=30)
def test_soft_info_nce_is_the_literal_sum(seed, groups, share, temperature):
    predictions, targets = embeddings(seed, len(groups)), embeddings(seed + 1, len(groups))
    duplicate = same_group(groups)
    value = SoftInfoNCE(share=share, temperature=temperature)(predictions, targets, duplicate=duplicate).item()
    expected = literal.soft_info_nce(
        predictions, targets, 1 / 0.07, share=share, temperature=temperature, duplicate=duplicate
    )
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("loss", [SoftInfoNCE(share=0.0, temperature=0.1), SoftInfoNCE(share=1.0, temperature=1e-3)])
def test_without_a_soft_share_or_at_a_low_temperature_it_is_info_nce(loss):
    value = loss(embeddings(0), embeddings(1)).item()
    assert value == pytest.approx(InfoNCE()(embeddings(0), embeddings(1)).item(), rel=1e-6)


def test_a_prediction_between_two_like_targets_costs_less_than_with_hard_targets():
    targets = torch.eye(4, dtype=torch.float64)
    targets[1] = torch.tensor([1.0, 0.1, 0, 0])
    between = targets.clone()
    between[0] = between[1] = targets[0] + targets[1]
    soft = SoftInfoNCE(share=1.0, temperature=0.1)
    # Relative to what perfect predictions cost, as the soft cross-entropy is never 0.
    assert soft(between, targets) - soft(targets, targets) < InfoNCE()(between, targets) - InfoNCE()(targets, targets)


def test_gradients():
    loss = SoftInfoNCE(share=0.5, temperature=0.2).double()
    predictions = embeddings(0, s=3, e=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, embeddings(1, s=3, e=4)), predictions)


def test_digits_are_kept_under_bf16_autocast():
    predictions, targets = embeddings(0, dtype=torch.float32), embeddings(1, dtype=torch.float32)
    loss = SoftInfoNCE(share=0.5, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(predictions, targets)
    assert inside.item() == loss(predictions, targets).item()
    expected = literal.soft_info_nce(predictions, targets, 1 / 0.07, share=0.5, temperature=0.1)
    assert inside.item() == pytest.approx(expected, rel=1e-5)
