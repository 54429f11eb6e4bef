import math

import pytest
import torch

from m3di.training.objectives.infonce import InfoNCE, pair_losses
from tests.references import losses as literal
from tests.training.objectives.rows import embeddings, same_group


def test_info_nce_is_the_literal_sum():
    loss = InfoNCE()
    value = loss(embeddings(0), embeddings(1)).item()
    assert value == pytest.approx(literal.info_nce(embeddings(0), embeddings(1), 1 / 0.07), rel=1e-6)


def test_duplicates_are_no_negatives():
    duplicate = same_group([0, 0, 1, 2, 2, 2])
    value = InfoNCE()(embeddings(0), embeddings(1), duplicate=duplicate).item()
    expected = literal.info_nce(embeddings(0), embeddings(1), 1 / 0.07, duplicate.numpy())
    assert value == pytest.approx(expected, rel=1e-6)
    assert value < InfoNCE()(embeddings(0), embeddings(1)).item()


def test_duplicates_that_count_in_one_direction_only_are_masked_in_their_place():
    duplicate = torch.zeros(6, 6, dtype=torch.bool)
    duplicate[0, 3] = True
    value = InfoNCE()(embeddings(0), embeddings(1), duplicate=duplicate).item()
    expected = literal.info_nce(embeddings(0), embeddings(1), 1 / 0.07, duplicate.numpy())
    assert value == pytest.approx(expected, rel=1e-6)


def test_rows_that_are_all_duplicates_cost_nothing():
    everything = torch.ones(6, 6, dtype=torch.bool)
    predictions = embeddings(0).requires_grad_()
    loss = InfoNCE()(predictions, embeddings(1), duplicate=everything)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(predictions.grad, torch.zeros_like(predictions))


def test_equal_rows_have_the_loss_of_a_blind_guess():
    constant = torch.ones(5, 3)
    assert InfoNCE()(constant, constant).item() == pytest.approx(math.log(5))


def test_length_of_the_embeddings_does_not_matter():
    near, far = embeddings(0), embeddings(0) * torch.arange(1, 7)[:, None]
    assert InfoNCE()(near, embeddings(1)).item() == pytest.approx(InfoNCE()(far, embeddings(1)).item())


def test_logit_scale_starts_at_the_published_value_and_stops_at_100():
    loss = InfoNCE()
    assert loss.logit_scale.item() == pytest.approx(2.6592600369327783)
    torch.nn.init.constant_(loss.logit_scale, 10.0)
    value = loss(embeddings(0), embeddings(1))
    assert value.item() == pytest.approx(literal.info_nce(embeddings(0), embeddings(1), 100), rel=1e-5)


def test_logit_scale_above_the_limit_finds_its_way_back():
    loss = InfoNCE()
    torch.nn.init.constant_(loss.logit_scale, 5.0)
    loss(embeddings(0), embeddings(1)).backward()
    assert loss.logit_scale.grad.item() > 0


def test_info_nce_gradients():
    predictions, targets = embeddings(0, s=3, e=4).requires_grad_(), embeddings(1, s=3, e=4).requires_grad_()
    duplicate = same_group([0, 0, 1])
    assert torch.autograd.gradcheck(
        lambda p, t: InfoNCE().double()(p, t, duplicate=duplicate), (predictions, targets)
    )


def test_info_nce_keeps_its_digits_under_bf16_autocast():
    predictions, targets = embeddings(0, dtype=torch.float32), embeddings(1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = InfoNCE()(predictions, targets)
    assert inside.dtype == torch.float32
    assert inside.item() == InfoNCE()(predictions, targets).item()
    assert inside.item() == pytest.approx(literal.info_nce(predictions, targets, 1 / 0.07), rel=1e-5)
    assert InfoNCE()(predictions.bfloat16(), targets).dtype == torch.float32


def test_batches_of_logits_are_judged_one_by_one():
    logits = torch.stack([embeddings(0, 5, 5), embeddings(1, 5, 5)])
    duplicate = torch.stack([same_group([0, 0, 1, 2, 3]), same_group([0, 1, 1, 1, 2])])
    both = pair_losses(logits, duplicate=duplicate)
    one_by_one = [pair_losses(logits[i], duplicate=duplicate[i]) for i in range(2)]
    torch.testing.assert_close(both, torch.stack(one_by_one))
