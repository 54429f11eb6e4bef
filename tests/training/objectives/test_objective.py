from dataclasses import replace

import pytest
import torch

from m3di.config import ObjectiveConfig
from m3di.networks.encoders import EncoderOutput
from m3di.training.objectives import DenseSpec, LocalObjective, PooledObjective, TeachersObjective
from stores.errors import RefusedError
from tests.references import losses as literal
from tests.training.objectives.rows import embeddings, same_group

KINDS = ["infonce", "sigmoid", "soft", "transport"]
S, E = 6, 8


def batch(texts=(0, 1, 2, 3, 4, 5), slices=(0, 1, 2, 3, 4, 5)):
    """Vectors, targets and places of six slices of two volumes; equal numbers are equal captions, or slices."""
    image, text = embeddings(1)[list(slices)], embeddings(2)[list(texts)]
    targets = torch.nn.functional.normalize(torch.stack([image, text], dim=1), dim=-1)
    places = {"planes": torch.tensor([0, 1, 2, 0, 1, 2]), "volumes": torch.tensor([0, 0, 0, 1, 1, 1])}
    places = {name: fact[list(slices)] for name, fact in places.items()}
    return embeddings(0), targets, {**places, "slices": torch.tensor(slices)}


def test_terms_are_info_nce_against_image_and_text_by_their_weights():
    vectors, targets, places = batch(texts=(0, 0, 0, 3, 4, 5), slices=(0, 1, 2, 3, 2, 5))
    terms = PooledObjective(ObjectiveConfig(image_weight=2.0, text_weight=0.5), E)(vectors, targets, **places)
    image = literal.info_nce(vectors, targets[:, 0], 1 / 0.07, same_group([0, 1, 2, 3, 2, 5]))
    text = literal.info_nce(vectors, targets[:, 1], 1 / 0.07, same_group([0, 0, 0, 3, 4, 5]))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"image_loss": 2 * image, "text_loss": 0.5 * text}, rel=1e-6
    )


@pytest.mark.parametrize("place", ["planes", "slices", "volumes"])
def test_slices_that_differ_in_one_fact_are_negatives_of_each_other(place):
    vectors, targets, places = batch(slices=(0, 1, 2, 3, 2, 5))
    objective = PooledObjective(ObjectiveConfig(text_weight=0.0), E)
    same = objective(vectors, targets, **places)["image_loss"]
    places[place] = places[place].clone()
    places[place][4] += 7
    assert objective(vectors, targets, **places)["image_loss"] > same


def test_captions_kept_in_half_precision_are_still_equal():
    vectors, targets, places = batch(texts=(0, 0, 2, 3, 4, 5))
    kept = targets.half().float()
    kept[1, 1] += 2e-4  # as another batch of the teacher may round
    objective = PooledObjective(ObjectiveConfig(image_weight=0.0), E)
    exact = objective(vectors, targets, **places)["text_loss"].item()
    assert objective(vectors.float(), kept, **places)["text_loss"].item() == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    vectors, targets, places = batch(texts=(0, 0, 2, 3, 4, 5))
    targets[2, 1] = targets[0, 1] + 0.05 * targets[3, 1]  # another caption, and the same in bf16
    objective = PooledObjective(ObjectiveConfig(kind=kind), E)
    outside = objective(vectors.float(), targets.float(), **places)
    with torch.autocast("cpu", torch.bfloat16):
        inside = objective(vectors.float(), targets.float(), **places)
    assert {name: term.item() for name, term in inside.items()} == {n: t.item() for n, t in outside.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_all_of_its_weights(kind):
    vectors, targets, places = batch()
    objective = PooledObjective(ObjectiveConfig(kind=kind), E).double()
    terms = objective(vectors.requires_grad_(), targets, **places)
    sum(terms.values()).backward()
    assert set(terms) == {"image_loss", "text_loss"}
    assert vectors.grad.abs().min() > 0
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_terms_without_weight_have_no_weights_of_their_own():
    objective = PooledObjective(ObjectiveConfig(text_weight=0.0), E)
    assert [name for name, _ in objective.named_parameters()] == ["image.logit_scale"]
    local = LocalObjective(ObjectiveConfig(), 3, 4, None, token_stride=2)
    assert list(local.parameters()) == []


def test_several_teachers_weigh_as_much_as_one_and_each_has_its_own_map_and_temperatures():
    vectors, targets, places = batch(texts=(0, 0, 2, 3, 4, 5))
    other = embeddings(5)[:, : E - 3]
    further = torch.nn.functional.normalize(torch.stack([other, other.flip(0)], dim=1), dim=-1)
    both = TeachersObjective(ObjectiveConfig(text_weight=0.5), [E, E - 3]).double()
    terms = both(vectors, torch.cat([targets, further], dim=-1), **places)
    alone = PooledObjective(ObjectiveConfig(text_weight=0.5), E).double()(vectors, targets, **places)
    second = PooledObjective(ObjectiveConfig(text_weight=0.5), E - 3).double()
    mapped = vectors @ both.maps[1].weight.T + both.maps[1].bias
    expected = {name: loss / 2 for name, loss in alone.items()}
    expected |= {f"{name}_2": loss / 2 for name, loss in second(mapped, further, **places).items()}
    torch.testing.assert_close(terms, expected)
    sum(terms.values()).backward()
    assert not [name for name, parameter in both.named_parameters() if parameter.grad is None]


def encoded():
    tokens = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    return EncoderOutput(tokens, (2, 2, 2), [])


def local_batch():
    volumes = torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    patches = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(2))
    return volumes, torch.tensor([[0, 1, 2]] * 2), torch.tensor([[0, 3, 2]] * 2), patches


def test_local_terms_are_weighted_and_only_those_asked_for():
    config = ObjectiveConfig(dense_weight=1.0, reconstruction_weight=1.0)
    whole = LocalObjective(config, 3, 4, DenseSpec((2, 3), 5), token_stride=2)
    terms = whole(encoded(), *local_batch())
    assert set(terms) == {"dense_loss", "reconstruction_loss"}
    halved = replace(config, dense_weight=0.5, reconstruction_weight=0.25)
    lighter = LocalObjective(halved, 3, 4, DenseSpec((2, 3), 5), token_stride=2)
    lighter.load_state_dict(whole.state_dict())
    expected = {"dense_loss": terms["dense_loss"] / 2, "reconstruction_loss": terms["reconstruction_loss"] / 4}
    torch.testing.assert_close(lighter(encoded(), *local_batch()), expected)
    nothing = LocalObjective(ObjectiveConfig(), 3, 4, None, token_stride=2)
    assert nothing(encoded(), *local_batch()[:3], None) == {}


def test_dense_targets_of_a_store_without_dense_rows_are_refused():
    with pytest.raises(RefusedError, match=r"dense_weight=0\.3, but the store has no dense rows"):
        LocalObjective(ObjectiveConfig(dense_weight=0.3), 3, 4, None, token_stride=2)
