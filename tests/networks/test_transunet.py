import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from m3di.networks.registry import create_encoder, create_segmentation
from m3di.networks.transunet import TransformerLayer
from m3di.networks.transunet_masks import QueryLayer, hidden_cells, positions
from stores.errors import RefusedError
from tests.networks.test_encoders import SMALL, cubes

SMALL_MASKS = {"mask_decoder": True, "num_queries": 4, "mask_dim": 24}
LEVELS = 320 + 256 + 128 + 64 + 32  # channels of the maps that deep supervision reads


def network(**options):
    torch.manual_seed(0)
    options = {"cube_size": 32, "num_classes": 3, **SMALL["transunet"], **options}
    return create_segmentation("transunet", **options)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize(
    ("options", "expected", "width"),
    # Measured on the reference implementation, which builds maps to classes for deep supervision only.
    [
        ({}, 116_809_376, 32),
        ({"transformer": False, "mask_decoder": True}, 34_077_610, 0),
        ({"mask_decoder": True}, 119_693_802, 0),
    ],
)
def test_parameter_counts_at_full_size(options, expected, width, deep_supervision):
    with torch.device("meta"):
        net = create_segmentation(
            "transunet", cube_size=128, num_classes=9, deep_supervision=deep_supervision, **options
        )
    heads = 9 * (LEVELS if deep_supervision else width)
    assert sum(p.numel() for p in net.parameters()) == expected + heads


def test_the_transformer_is_a_layer_of_pytorchs_where_nothing_is_scaled():
    torch.manual_seed(0)
    ours = TransformerLayer(8, mlp_dim=16, num_heads=2)
    theirs = nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
    )
    for own, other in (
        (ours.norm1, theirs.norm1),
        (ours.attention, theirs.self_attn),
        (ours.norm2, theirs.norm2),
        (ours.mlp[0], theirs.linear1),
        (ours.mlp[2], theirs.linear2),
    ):
        other.load_state_dict(own.state_dict(), strict=True)
    tokens = torch.rand(2, 5, 8)
    changes = [layer(tokens) - tokens for layer in (ours, theirs)]
    assert not torch.allclose(*changes)  # layer scales begin at 0.1
    nn.init.ones_(ours.scale1)
    nn.init.ones_(ours.scale2)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


@torch.no_grad()
def test_without_layers_tokens_are_the_normalised_projection():
    encoder = create_encoder("transunet", cube_size=16, **{**SMALL["transunet"], "num_layers": 0})
    features = cubes(size=16)
    for down in encoder.downs:
        features = down(features)
    bottom = encoder.transformer
    nn.init.normal_(bottom.position)
    tokens = bottom.embed(features).flatten(2).transpose(1, 2) + bottom.position
    expected = F.layer_norm(tokens, tokens.shape[2:], eps=1e-6)
    torch.testing.assert_close(encoder(cubes(size=16)).tokens, expected)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for value in (False, True):
        encoder = network(cube_size=16).encoder
        encoder.checkpointing = value
        encoder(cubes(size=16)).tokens.square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("cube_size", [16, 24, 40])
def test_cubes_that_cannot_be_halved_so_often(cube_size):
    net = network(cube_size=cube_size, num_pools=5, deep_supervision=True, **SMALL_MASKS)
    output = net(cubes(size=cube_size))
    assert output.logits.shape == (1, 3, *(cube_size,) * 3)
    assert net.encoder(cubes(size=cube_size)).grid == ({16: 2, 24: 3, 40: 5}[cube_size],) * 3


def test_deep_supervision_of_levels_and_of_masks():
    plain = network(deep_supervision=True)
    assert [level.shape[-1] for level in plain(cubes()).auxiliary] == [16, 8]
    assert plain.auxiliary_weights == (0.5, 0.25)
    masks = network(deep_supervision=True, **SMALL_MASKS)
    assert [level.shape[-1] for level in masks(cubes()).auxiliary] == [32] * 3 + [32, 16, 8]
    assert masks.auxiliary_weights == (1, 1, 1, 1, 0.5, 0.25)


@torch.no_grad()
def test_logits_are_the_references_prediction_as_a_distribution():
    decoder = network(**SMALL_MASKS).decoder.masks
    queries, finest = torch.randn(2, 4, 24), torch.randn(2, 4, 3, 4, 5)
    masks = decoder._masks(queries, finest)
    voxels = decoder.of_voxels(finest.movedim(1, -1))  # the map at full size that is never made
    literal = torch.einsum("bqe,bdhwe->bqdhw", decoder.to_mask(decoder.norm(queries)), voxels)
    torch.testing.assert_close(masks, literal, rtol=1e-4, atol=1e-5)
    classes = decoder.classify(decoder.norm(queries)).softmax(-1)[..., :3]  # without "nothing"
    scores = torch.einsum("bqk,bqdhw->bkdhw", classes, literal.sigmoid())
    expected = scores / scores.sum(dim=1, keepdim=True)
    torch.testing.assert_close(decoder._logits(queries, masks).softmax(dim=1), expected, rtol=1e-4, atol=1e-5)


def test_cells_outside_of_a_mask_are_hidden_unless_all_are():
    masks = torch.tensor([[[[[-1.0, 1.0]]], [[[-1.0, -2.0]]], [[[3.0, 0.5]]]]])
    assert hidden_cells(masks, (1, 1, 2)).tolist() == [[[True, False], [False, False], [False, False]]]
    coarse = torch.tensor([-3.0, -1.0, -1.0, 3.0]).view(1, 1, 1, 1, 4)  # means -2 and 1
    assert hidden_cells(coarse, (1, 1, 2)).tolist() == [[[True, False]]]


def test_a_query_does_not_see_hidden_cells():
    torch.manual_seed(0)
    layer = QueryLayer(24)
    hidden = torch.tensor([[[False, True, False], [False, False, True]], [[True, False, False]] * 2])
    options = {"place": torch.rand(3, 24), "position": torch.rand(2, 24), "hidden": hidden}
    memory = torch.rand(2, 3, 24, requires_grad=True)
    # Queries exchange what they saw, so only one that no other sees is without any trace: volume 1, cell 0.
    layer(torch.rand(2, 2, 24), memory, **options).square().sum().backward()
    assert memory.grad.abs().sum(-1).gt(0).tolist() == [[True, True, True], [False, True, True]]


def test_positions_are_waves_along_each_axis():
    place = positions(torch.zeros(1, 12, 2, 3, 4))
    assert place.shape == (24, 12)
    assert len(place.unique(dim=0)) == 24
    d, h, w = 1, 2, 0  # the cell 1 * 12 + 2 * 4 + 0
    expected = []
    for index, edge in ((d, 2), (h, 3), (w, 4)):
        angle = 2 * math.pi * (index + 1) / edge
        slow = angle / 10_000 ** (2 / 4)
        expected += [math.sin(angle), math.sin(slow), math.cos(angle), math.cos(slow)]
    torch.testing.assert_close(place[20], torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"transformer": False}, "transunet without transformer and without mask_decoder"),
        ({**SMALL_MASKS, "mask_dim": 20}, "transunet's mask decoder: stages of [20] channels"),
        ({**SMALL_MASKS, "mask_dim": 32}, "transunet: mask_dim 32"),
        ({**SMALL_MASKS, "mask_layers": 0}, "transunet: mask_dim 24, mask_layers 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, told):
    with pytest.raises(RefusedError) as caught:
        network(**options)
    assert caught.value.code == "E_NETWORK"
    assert caught.value.message.startswith(told)
    assert caught.value.hint
