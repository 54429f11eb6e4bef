import math

import pytest
import torch

from m3di.networks.encoders import Encoder, as_module, map_to_tokens, tokens_to_map
from m3di.networks.registry import create_encoder

SMALL_VIT = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_layers": 6, "num_heads": 2}
SMALL_SWIN = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
SMALL_NNFORMER = {"embed_dim": 24}
SMALL = {
    "vit": SMALL_VIT,
    "unetr": SMALL_VIT,
    "setr": {**SMALL_VIT, "num_layers": 4},
    "swin": SMALL_SWIN,
    "video_swin": {"embed_dim": 24, "depths": (1, 1, 2, 1)},
    "nnformer": SMALL_NNFORMER,
    "resnet10": {},
    "medicalnet": {"depth": 10},
    "densenet121": {},
    "unet": {"channels": (4, 8, 16)},
    "dynunet": {"filters": (4, 8, 8)},
    "attention_unet": {"channels": (4, 8, 16)},
    "transunet": {"base_channels": 4, "num_pools": 3, **{k: v for k, v in SMALL_VIT.items() if k != "patch_size"}},
}
SIZE = {"resnet10": 64, "densenet121": 64}  # the others are tried at 32
BATCH_NORM = {"resnet10", "medicalnet", "densenet121", "attention_unet"}


def cubes(b=1, size=32, seed=0):
    return torch.rand(b, 1, size, size, size, generator=torch.Generator().manual_seed(seed))


def weightless(name):
    """The device to count parameters on; MONAI's Swin reads values while it is built, so not on `meta`."""
    return "cpu" if "swin" in name else "meta"


def small(name, **options):
    torch.manual_seed(0)
    return create_encoder(name, cube_size=SIZE.get(name, 32), **{**SMALL[name], **options})


def cubes_for(encoder, b=1):
    return cubes(b, encoder.cube_size)


@pytest.mark.parametrize(
    ("name", "cube_size", "expected"),
    [
        # MONAI 1.6.1 classes with the published options. UNETR's ViT at 96^3: 128^3 less (512 - 216) * 768.
        ("vit", 128, 88_586_496),
        ("unetr", 128, 88_586_496),
        ("unetr", 96, 88_359_168),
        ("setr", 128, 88_586_496),
        ("swin", 128, 8_062_002),
        # torchvision's swin3d_t with 2 classes, less the classes and two of the stem's three channels.
        ("video_swin", 128, 27_852_008 - (768 * 2 + 2) - 2 * 96 * 2 * 4 * 4),
        # The reference implementations, less 2 classes where there are some.
        ("nnformer", 128, 29_835_846),
        ("resnet50", 128, 46_163_010 - (2048 * 2 + 2)),
        ("medicalnet", 128, 46_155_072),
        ("densenet121", 128, 11_244_674 - (1024 * 2 + 2)),
    ],
)
def test_parameter_counts_at_full_size(name, cube_size, expected):
    with torch.device(weightless(name)):
        encoder = create_encoder(name, cube_size=cube_size)
    assert sum(p.numel() for p in as_module(encoder).parameters()) == expected


LEVELS = {
    "vit": [(768, 16)],
    "unetr": [(768, 16)] * 4,
    "setr": [(768, 16)] * 5,
    "swin": [(48, 2), (96, 4), (192, 8), (384, 16), (768, 32)],
    "nnformer": [(96, 4), (192, 8), (384, 16), (768, 32)],
    "resnet18": [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)],
    "resnet50": [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)],
    "medicalnet": [(64, 2), (256, 4), (512, 8), (1024, 8), (2048, 8)],
    "densenet121": [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)],
    "unet": [(16, 2), (32, 4), (64, 8), (128, 16), (256, 16)],
    "dynunet": [(32, 1), (64, 2), (128, 4), (256, 8), (320, 16), (320, 32)],
    "attention_unet": [(16, 1), (32, 2), (64, 4), (128, 8), (256, 16)],
    "transunet": [(32, 1), (64, 2), (128, 4), (256, 8), (320, 16), (768, 32)],
}


@pytest.mark.parametrize("cube_size", [64, 128])
@pytest.mark.parametrize("name", sorted(LEVELS.keys() - {"swin"}))
def test_shapes_at_full_size(name, cube_size):
    with torch.device("meta"):
        encoder = create_encoder(name, cube_size=cube_size)
        output = encoder(torch.empty(2, 1, *(cube_size,) * 3))
    assert [level.shape for level in output.pyramid] == [
        (2, channels, *(cube_size // stride,) * 3) for channels, stride in LEVELS[name]
    ]
    assert (encoder.token_dim, encoder.token_stride) == LEVELS[name][-1]


@pytest.mark.parametrize("name", SMALL)
def test_output_keeps_the_contract(name):
    encoder = small(name)
    assert isinstance(encoder, Encoder)
    output = encoder(cubes_for(encoder, b=2))
    b, n, c = output.tokens.shape
    assert (b, n, c) == (2, math.prod(output.grid), encoder.token_dim)
    assert output.grid[:2] == (encoder.cube_size // encoder.token_stride,) * 2
    torch.testing.assert_close(map_to_tokens(output.pyramid[-1]), output.tokens, rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_its_state_dict_restores_it(name):
    encoder, other = small(name).eval(), small(name).eval()
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(encoder.state_dict(), strict=True)
    volume = cubes_for(encoder)
    torch.testing.assert_close(other(volume).tokens, encoder(volume).tokens, rtol=0, atol=0)


@torch.no_grad()
def test_video_swin_merges_within_planes_only():
    output = small("video_swin")(cubes())
    assert [f.shape[1:] for f in output.pyramid] == [(24 * 2**i, 8 >> i, 8 >> i, 16) for i in range(4)]
    assert output.grid == (1, 1, 16)


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


@pytest.mark.parametrize(("num_layers", "taps"), [(24, (5, 11, 17, 23)), (12, (2, 5, 8, 11)), (4, (0, 1, 2, 3))])
def test_setr_taps_are_those_of_the_paper(num_layers, taps):
    assert small("setr", num_layers=num_layers).taps == taps


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


@pytest.mark.parametrize("name", ["vit", "swin", "video_swin", "nnformer"])
def test_checkpointing_changes_no_gradient(name):
    gradients = []
    for value in (False, True):
        encoder = small(name)
        assert encoder.checkpointing is False
        encoder.checkpointing = value
        encoder(cubes()).tokens.square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_checkpointing_computes_blocks_twice():
    encoder, calls = small("nnformer"), []
    encoder.stages[0][0].register_forward_pre_hook(lambda *_: calls.append(1))
    encoder.checkpointing = True
    encoder(cubes()).tokens.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("name", SMALL)
def test_every_trainable_weight_gets_a_gradient_from_the_tokens(name):
    encoder = small(name)
    encoder(cubes_for(encoder)).tokens.square().mean().backward()
    unused = {"norms.0.weight", "norms.0.bias", "norms.1.weight", "norms.1.bias", "norms.2.weight", "norms.2.bias"}
    lacking = {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    assert lacking == (unused if name == "nnformer" else set())


@pytest.mark.parametrize("name", sorted(SMALL.keys() - BATCH_NORM))
@torch.no_grad()
def test_runs_under_bf16_autocast(name):
    encoder = small(name)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(cubes_for(encoder)).tokens
    torch.testing.assert_close(tokens.float(), encoder(cubes_for(encoder)).tokens, rtol=0.1, atol=0.1)
