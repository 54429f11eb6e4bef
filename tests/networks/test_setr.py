import pytest
import torch
import torch.nn.functional as F

from m3di.networks.registry import create_segmentation
from tests.networks.test_encoders import SMALL, cubes

HEADS = ("setr_naive", "setr_pup", "setr_mla")
ENCODER = 88_586_496  # MONAI's ViT at 128^3


def network(name, **options):
    torch.manual_seed(0)
    return create_segmentation(name, cube_size=32, num_classes=3, **{**SMALL["setr"], **options})


def conv(before, after, edge):
    """Weights of a convolution without bias and the group norm after it."""
    return before * after * edge**3 + 2 * after


CLASSES = {width: width * 14 + 14 for width in (32, 256)}
COUNTS = {
    "setr_naive": conv(768, 256, 1) + CLASSES[256],
    "setr_pup": conv(768, 256, 3) + conv(256, 128, 3) + conv(128, 64, 3) + conv(64, 32, 3) + CLASSES[32],
    "setr_mla": 3 * 2 * 768
    + 4 * (conv(768, 256, 1) + conv(256, 256, 3) + conv(256, 128, 3) + conv(128, 128, 3))
    + 27 * 512 * 14
    + 14,
}
OF_TAPS = 3 * (2 * 768 + conv(768, 256, 1) + CLASSES[256])
AUXILIARY = {"setr_naive": OF_TAPS, "setr_pup": OF_TAPS, "setr_mla": 4 * 256 * 14}


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_parameter_counts_at_full_size(name, deep_supervision):
    with torch.device("meta"):
        net = create_segmentation(name, cube_size=128, num_classes=14, deep_supervision=deep_supervision)
    expected = ENCODER + COUNTS[name] + (AUXILIARY[name] if deep_supervision else 0)
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("name", HEADS)
def test_auxiliary_logits_are_on_the_token_grid(name):
    net = network(name, deep_supervision=True)
    auxiliary = net(cubes()).auxiliary
    assert {level.shape for level in auxiliary} == {(1, 3, 4, 4, 4)}
    assert net.auxiliary_weights == (0.4,) * len(auxiliary)
    assert len(auxiliary) == (4 if name == "setr_mla" else 3)


@torch.no_grad()
def test_the_naive_head_sees_each_token_by_itself_but_for_the_norm():
    net = network("setr_naive").eval()
    first, classify = net.decoder.head
    tokens = net.encoder(cubes()).tokens
    hidden = tokens @ first[0].weight.flatten(1).T
    normed = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + first[1].eps).sqrt()
    grid = (F.gelu(normed) @ classify.weight.flatten(1).T + classify.bias).transpose(1, 2).view(1, 3, 4, 4, 4)
    torch.testing.assert_close(net(cubes()).logits, F.interpolate(grid, size=(32, 32, 32), mode="trilinear"))


@pytest.mark.parametrize("number", range(4))
def test_a_stream_of_mla_sees_its_own_layers_and_all_deeper_ones(number):
    net = network("setr_mla", mla_size=8, head_size=4)
    encoded = net.encoder(cubes())
    levels = [level.detach().requires_grad_() for level in (*encoded.pyramid[:3], encoded.pyramid[-1])]
    streams = net.decoder._aggregate(encoded._replace(pyramid=[*levels[:3], encoded.pyramid[3], levels[3]]))
    gradients = torch.autograd.grad(streams[number].square().sum(), levels, allow_unused=True)
    assert [g is not None for g in gradients] == [level >= number for level in range(4)]


def test_mla_joins_streams_of_four_times_the_grid():
    net = network("setr_mla", mla_size=8, head_size=4)
    shapes = []
    net.decoder.classify.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    assert net(cubes()).logits.shape == (1, 3, 32, 32, 32)
    assert shapes == [(1, 4 * 4, 16, 16, 16)]


def test_pup_halves_its_channels():
    assert [step[0].out_channels for step in network("setr_pup", patch_size=16).decoder.head.steps] == [
        256,
        128,
        64,
        32,
    ]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("patch_size", [2, 4, 12])
@torch.no_grad()
def test_other_patches(name, patch_size):
    net = create_segmentation(
        name,
        cube_size=12,
        num_classes=2,
        patch_size=patch_size,
        hidden_size=8,
        mlp_dim=8,
        num_layers=4,
        num_heads=2,
        head_size=4,
        deep_supervision=True,
    )
    assert net(cubes(size=12)).logits.shape == (1, 2, 12, 12, 12)
