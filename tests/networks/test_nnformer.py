import math

import pytest
import torch
from torch import nn

from m3di.networks.nnformer import (
    NNFormerDecoder,
    NNFormerEncoder,
    WindowBlock,
    _join,
    _split,
    relative_position_index,
)
from m3di.networks.psat import PlaneSliceAwareTransformer
from m3di.networks.registry import create_encoder, create_segmentation
from stores.errors import RefusedError
from tests.networks.test_encoders import SMALL, cubes
from tests.references import window_attention as literal

SYNAPSE = {"embed_dim": 192, "num_heads": (6, 12, 24, 48), "patch_size": (2, 4, 4)}


def count(module):
    return sum(p.numel() for p in module.parameters())


def network(num_classes=3, cube_size=32, **options):
    torch.manual_seed(0)
    return create_segmentation(
        "nnformer", cube_size=cube_size, num_classes=num_classes, **{**SMALL["nnformer"], **options}
    )


def random_block(width, grid, **options):
    torch.manual_seed(0)
    block = WindowBlock(width, num_heads=2, grid=grid, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def test_parameter_counts_of_the_tumor_configuration():
    # Measured on the reference implementation (1 channel, 4 classes, no deep supervision), total 37,602,838.
    with torch.device("meta"):
        encoder = NNFormerEncoder(cube_size=128)
        decoder = NNFormerDecoder(encoder, 4)
    assert count(encoder) == 29_835_846
    assert count(decoder) - count(decoder.heads) == 7_742_412
    assert count(decoder.heads) == 24_580


@pytest.mark.parametrize(
    ("options", "num_classes", "expected"),
    # Measured on the reference implementation. Synapse is of 64 x 128 x 128 voxels; on a cube the axis that its
    # patches halve less has more tokens, which changes no weight.
    # With 1 channel, the stem's first 3^3 convolution has 3 * 48 * 3^3 weights fewer.
    [({"in_channels": 4}, 4, 37_754_190), ({}, 4, 37_754_190 - 3 * 48 * 3**3), (SYNAPSE, 14, 150_054_210)],
)
def test_parameter_counts_with_deep_supervision(options, num_classes, expected):
    with torch.device("meta"):
        net = create_segmentation(
            "nnformer", cube_size=128, num_classes=num_classes, deep_supervision=True, **options
        )
    assert count(net) == expected


@pytest.mark.parametrize("fetch", [False, True])
@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [((4, 4, 4), 2, False), ((4, 4, 4), 2, True), ((2, 6, 4), 2, True), ((3, 3, 6), 3, True), ((2, 2, 2), 2, False)],
)
@torch.no_grad()
def test_windows_are_those_of_the_literal_form(grid, window, shift, fetch):
    block = random_block(4, grid, window=window, shift=shift, fetch=fetch)
    features, *skip = torch.randn(2 if fetch else 1, 2, *grid, 4, dtype=torch.float64)
    output = block(features, *skip)
    for volume in range(2):
        expected = literal.update(block, features[volume], *(s[volume] for s in skip))
        torch.testing.assert_close(output[volume], expected)


def test_splitting_into_windows_and_heads_is_undone():
    features = torch.arange(2 * 4 * 6 * 2 * 6.0).view(2, 4, 6, 2, 6)
    split = _split(features, window=2, num_heads=3)
    assert split.shape == (2, 2 * 3 * 1 * 3, 8, 2)
    torch.testing.assert_close(_join(split, (4, 6, 2), window=2, num_heads=3), features, rtol=0, atol=0)


def test_pairs_share_rows_of_the_table_as_in_the_reference():
    # Windows of 2: strides 5, 3, 1. The first token against the last is displaced by (-1, -1, -1), row 0; each
    # against itself is row 5 + 3 + 1. Displacements (0, 1, 0) and (1, -1, 1), rows 5 + 6 + 1 and 10 + 0 + 2, collide.
    index = relative_position_index(2)
    assert index[0, 7] == 0
    assert index.diagonal().tolist() == [9] * 8
    assert index[2, 0] == index[5, 2] == 12


def test_shifts_and_windows_follow_the_grid():
    encoder = NNFormerEncoder(cube_size=64, **SMALL["nnformer"])
    made = [[(block.window, block.shift) for block in stage] for stage in encoder.stages]
    assert made == [[(4, 0), (4, 2)], [(4, 0), (4, 2)], [(4, 0), (4, 0)], [(2, 0), (2, 0)]]


@pytest.mark.parametrize("cube_size", [32, 64])
def test_logits_have_the_volumes_size_and_every_weight_a_gradient(cube_size):
    net = network(cube_size=cube_size, deep_supervision=True)
    output = net(cubes(size=cube_size))
    levels = [output.logits, *output.auxiliary]
    assert [level.shape for level in levels] == [(1, 3, *(cube_size // step,) * 3) for step in (1, 2, 4)]
    sum(level.square().mean() for level in levels).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None]


@torch.no_grad()
def test_evaluation_gives_the_finest_logits_alone():
    net, volume = network(deep_supervision=True), cubes()
    logits, auxiliary = net.eval()(volume)
    assert auxiliary == ()
    torch.testing.assert_close(logits, net.train()(volume).logits, rtol=0, atol=0)


def test_checkpointing_the_decoder_changes_no_gradient():
    gradients = []
    for value in (False, True):
        net = network()
        net.decoder.checkpointing = value
        net(cubes()).logits.square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@torch.no_grad()
def test_weights_alone_are_its_state():
    net = network()
    assert net.state_dict().keys() == dict(net.named_parameters()).keys()
    other = network()
    nn.init.normal_(other.encoder.stages[0][0].table)
    other.load_state_dict(net.state_dict(), strict=True)
    torch.testing.assert_close(other(cubes()).logits, net(cubes()).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cube_size": 100}, "nnformer needs a cube whose edge is a multiple of 32 voxels, not 100"),
        ({"cube_size": 160}, "nnformer: windows of 8 tokens do not divide a grid of 10x10x10"),
        ({"cube_size": 128, "window_size": (5, 4, 8, 4)}, "nnformer: windows of 5 tokens do not divide a grid"),
        ({"cube_size": 64, "window_size": (4, 4)}, "nnformer has 4 stages, but depths [2, 2, 2, 2]"),
        ({"cube_size": 64, "patch_size": (4, 4, 8)}, "nnformer needs patches with three edges of 2 or 4 voxels"),
        ({"cube_size": 64, "embed_dim": 64}, "nnformer: stages of [64, 128, 256, 512] channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, told):
    with pytest.raises(RefusedError) as caught:
        create_encoder("nnformer", **options)
    assert caught.value.code == "E_NETWORK"
    assert caught.value.message.startswith(told)
    assert caught.value.hint


@pytest.mark.parametrize("heads", [(2, 2), (2, 2, 5)])
def test_decoder_heads_that_do_not_fit_are_refused(heads):
    with pytest.raises(RefusedError, match="nnformer's decoder"):
        network(decoder_heads=heads)


@pytest.mark.parametrize(
    ("cube_size", "options"),
    [(96, {}), (80, {"patch_size": (2, 2, 2), "window_size": (4, 4, 5, 5)}), (192, {"window_size": (4, 4, 6, 6)})],
)
def test_other_cubes_by_other_windows(cube_size, options):
    with torch.device("meta"):
        encoder = create_encoder("nnformer", cube_size=cube_size, **{**SMALL["nnformer"], **options})
        output = encoder(torch.empty(1, 1, *(cube_size,) * 3))
    assert output.grid == (cube_size // encoder.token_stride,) * 3
    assert output.tokens.shape[1] == math.prod(output.grid)


@pytest.mark.slow
def test_a_full_size_step_with_psat_runs_on_cpu():
    encoder = create_encoder("nnformer", cube_size=128)
    psat = PlaneSliceAwareTransformer(encoder.token_dim)
    tokens = encoder(cubes(size=128)).tokens
    assert tokens.shape == (1, 64, 768)
    place = torch.arange(8)[None]
    psat(tokens, place % 3, 16 * place).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in encoder.stages.parameters())
