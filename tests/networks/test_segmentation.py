import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR

from m3di.networks.registry import SEGMENTATION, create_encoder, create_segmentation
from tests.networks.test_encoders import SMALL, cubes, weightless

SIZE = {"vit": 32, "unetr": 32, "swin_unetr": 64, "nnformer": 32}
ENCODER_OF = {name: network.encoder for name, network in SEGMENTATION.items()}


def small(name, num_classes=3, **options):
    torch.manual_seed(0)
    options = {**SMALL[ENCODER_OF[name]], **options}
    return create_segmentation(name, cube_size=SIZE[name], num_classes=num_classes, **options)


def monai_weights(network):
    """Our state dict under MONAI's names, as the docstring of `unetr.py` promises."""
    return {name.split(".", 1)[1]: value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "cube_size", "expected"),
    # Measured on MONAI 1.6.1's own classes and on nnFormer's reference implementation, 1 -> 14 channels.
    [
        ("unetr", 96, 92_802_478),
        ("unetr", 128, 93_029_806),
        ("swin_unetr", 128, 62_187_296),
        ("nnformer", 128, 37_602_838 + 10 * (96 * 4**3 + 1)),
    ],
)
def test_parameter_counts_at_full_size(name, cube_size, expected):
    with torch.device(weightless(name)):
        network = create_segmentation(name, cube_size=cube_size, num_classes=14)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("name", SEGMENTATION)
def test_logits_have_the_volumes_size_and_every_weight_a_gradient(name):
    network, size = small(name), SIZE[name]
    logits = network(cubes(size=size))
    assert logits.shape == (1, 3, size, size, size)
    logits.square().mean().backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", SEGMENTATION)
@torch.no_grad()
def test_a_pretrained_encoder_loads_strictly(name):
    torch.manual_seed(7)
    pretrained = create_encoder(ENCODER_OF[name], cube_size=SIZE[name], **SMALL[ENCODER_OF[name]])
    network = small(name)
    network.encoder.load_state_dict(pretrained.state_dict(), strict=True)
    volume = cubes(size=SIZE[name])
    torch.testing.assert_close(network.encoder(volume).tokens, pretrained(volume).tokens)


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
@torch.no_grad()
def test_unetr_decodes_any_power_of_two_patch(patch_size):
    network = create_segmentation(
        "unetr",
        cube_size=16,
        num_classes=2,
        patch_size=patch_size,
        hidden_size=8,
        mlp_dim=8,
        num_layers=4,
        num_heads=2,
        feature_size=2,
    )
    assert network(cubes(size=16)).shape == (1, 2, 16, 16, 16)


@torch.no_grad()
def test_unetr_is_monais_unetr():
    ours = create_segmentation(
        "unetr", cube_size=32, num_classes=3, hidden_size=24, mlp_dim=48, num_heads=2, feature_size=4
    )
    theirs = UNETR(
        in_channels=1, out_channels=3, img_size=32, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2
    )
    theirs.load_state_dict(monai_weights(ours), strict=True)
    torch.testing.assert_close(ours(cubes()), theirs(cubes()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_swin_unetr_is_monais_swin_unetr():
    ours = small("swin_unetr")
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(1,) * 4, num_heads=(1,) * 4)
    theirs.load_state_dict(monai_weights(ours), strict=True)
    torch.testing.assert_close(ours(cubes(size=64)), theirs(cubes(size=64)), rtol=1e-4, atol=1e-5)


def test_classifying_before_interpolating_changes_nothing():
    head = small("vit").decoder
    features = torch.rand(1, head.classify.in_channels, 4, 4, 4)
    up = torch.nn.Upsample(scale_factor=2, mode="trilinear")
    torch.testing.assert_close(up(head.classify(features)), head.classify(up(features)))


def test_vit_head_doubles_until_full_size():
    assert [step[0].out_channels for step in small("vit").decoder.steps] == [128, 64, 32]
    assert len(small("vit", patch_size=16).decoder.steps) == 4


def test_runs_under_bf16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(small("vit")(cubes())).all()
