import math

import numpy as np
import pytest
import torch

from m3di.training.losses import InfoNCE, contrastive_loss, dice_cross_entropy
from tests.references import losses as literal


def embeddings(seed, s=6, e=8, dtype=torch.float64):
    return torch.randn(s, e, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def same_group(groups):
    groups = torch.tensor(groups)
    return groups[:, None] == groups[None]


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
    assert InfoNCE()(predictions.bfloat16(), targets).dtype == torch.float32


def test_contrastive_loss_is_the_sum_with_two_temperatures():
    image_loss, text_loss = InfoNCE(), InfoNCE()
    torch.nn.init.constant_(text_loss.logit_scale, math.log(5.0))
    same_text = same_group([0, 0, 0, 1, 2, 3])
    loss = contrastive_loss(
        embeddings(0),
        image=embeddings(1),
        text=embeddings(2),
        image_loss=image_loss,
        text_loss=text_loss,
        same_text=same_text,
    )
    image = literal.info_nce(embeddings(0), embeddings(1), 1 / 0.07)
    text = literal.info_nce(embeddings(0), embeddings(2), 5.0, same_text.numpy())
    assert [x.item() for x in loss] == pytest.approx([image + text, image, text], rel=1e-6)


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
