import math

import pytest
import torch

from m3di.networks.encoders import Encoder, as_module, map_to_tokens, tokens_to_map
from m3di.networks.registry import create_encoder

SMALL_VIT = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_layers": 6, "num_heads": 2}
SMALL_SWIN = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
SMALL = {"vit": SMALL_VIT, "unetr": SMALL_VIT, "swin": SMALL_SWIN}


def cubes(b=1, size=32, seed=0):
    return torch.rand(b, 1, size, size, size, generator=torch.Generator().manual_seed(seed))


def weightless(name):
    """The device to count parameters on; MONAI's Swin reads values while it is built, so not on `meta`."""
    return "cpu" if "swin" in name else "meta"


def small(name, **options):
    torch.manual_seed(0)
    return create_encoder(name, cube_size=32, **{**SMALL[name], **options})


@pytest.mark.parametrize(
    ("name", "cube_size", "expected"),
    # MONAI 1.6.1 classes built with the published options. UNETR's ViT at 96^3: 128^3 less (512 - 216) * 768.
    [("vit", 128, 88_586_496), ("unetr", 128, 88_586_496), ("unetr", 96, 88_359_168), ("swin", 128, 8_062_002)],
)
def test_parameter_counts_at_full_size(name, cube_size, expected):
    with torch.device(weightless(name)):
        encoder = create_encoder(name, cube_size=cube_size)
    assert sum(p.numel() for p in as_module(encoder).parameters()) == expected
    assert encoder.token_dim == 768


@pytest.mark.parametrize("name", SMALL)
def test_output_keeps_the_contract(name):
    encoder = small(name)
    assert isinstance(encoder, Encoder)
    output = encoder(cubes(b=2))
    b, n, c = output.tokens.shape
    assert (b, n, c) == (2, math.prod(output.grid), encoder.token_dim)
    assert output.grid == (32 // encoder.token_stride,) * 3
    torch.testing.assert_close(map_to_tokens(output.pyramid[-1]), output.tokens, rtol=0, atol=0)


def test_pyramids():
    assert [f.shape[1:] for f in small("vit")(cubes()).pyramid] == [(24, 4, 4, 4)]
    assert [f.shape[1:] for f in small("unetr")(cubes()).pyramid] == [(24, 4, 4, 4)] * 3
    levels = [f.shape[1:] for f in small("swin")(cubes()).pyramid]
    assert levels == [(12 * 2**i, 16 >> i, 16 >> i, 16 >> i) for i in range(5)]


@pytest.mark.parametrize(
    ("patch_size", "num_layers", "taps"), [(16, 12, (3, 6, 9)), (8, 6, (2, 4)), (4, 6, (3,)), (2, 6, ())]
)
def test_unetr_taps_are_spread_over_the_layers(patch_size, num_layers, taps):
    assert small("unetr", patch_size=patch_size, num_layers=num_layers).taps == taps


def test_tapped_layers_are_those_of_monai():
    encoder = small("unetr")
    tokens, hidden = encoder.vit(cubes())
    output = encoder(cubes())
    torch.testing.assert_close(output.tokens, tokens)
    for features, layer in zip(output.pyramid, (2, 4), strict=False):
        torch.testing.assert_close(map_to_tokens(features), hidden[layer])


def test_vit_and_unetr_share_their_weights():
    small("unetr").load_state_dict(small("vit").state_dict(), strict=True)


def test_a_token_sees_its_own_patch():
    # Without layers a token is its patch's projection: changing one voxel changes one token, that of its patch.
    encoder = small("vit", num_layers=0)
    volume = cubes()
    changed = volume.clone()
    changed[0, 0, 9, 17, 25] += 1
    difference = (encoder(changed).tokens - encoder(volume).tokens).abs().sum(-1)
    assert difference.nonzero()[:, 1].tolist() == [1 * 16 + 2 * 4 + 3]


def test_tokens_and_maps_are_inverse():
    features = torch.arange(24.0).view(1, 2, 3, 2, 2)
    tokens = map_to_tokens(features)
    assert tokens[0, 1].tolist() == features[0, :, 0, 0, 1].tolist()
    torch.testing.assert_close(tokens_to_map(tokens, (3, 2, 2)), features)


@pytest.mark.parametrize(("name", "option"), [("vit", "gradient_checkpointing"), ("swin", "use_checkpoint")])
def test_checkpointing_changes_no_gradient(name, option):
    gradients = []
    for value in (False, True):
        encoder = small(name, **{option: value})
        encoder(cubes()).tokens.square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("name", SMALL)
def test_every_trainable_weight_gets_a_gradient_from_the_tokens(name):
    encoder = small(name)
    encoder(cubes()).tokens.square().mean().backward()
    assert not [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", SMALL)
def test_runs_under_bf16_autocast(name):
    encoder = small(name)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(cubes()).tokens
    torch.testing.assert_close(tokens.float(), encoder(cubes()).tokens, rtol=0.1, atol=0.1)
