import inspect

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR

from m3di.networks.convolutional import halving_strides
from m3di.networks.registry import SEGMENTATION, create_encoder, create_segmentation
from stores.errors import RefusedError
from tests.networks.test_encoders import SMALL, cubes, weightless

SIZE = {"swin_unetr": 64}  # the others are tried at 32
ENCODER_OF = {name: network.encoder for name, network in SEGMENTATION.items()}
SUPERVISED = [name for name, network in SEGMENTATION.items() if network.supervises]
ALL_WAYS = [(name, {}) for name in SEGMENTATION] + [(name, {"deep_supervision": True}) for name in SUPERVISED]
DECODER = {
    "setr_naive": {"head_size": 8},
    "setr_pup": {"head_size": 8},
    "setr_mla": {"mla_size": 8, "head_size": 4},
    "transunet": {"num_queries": 4, "mask_dim": 24},
}
MASKS = ("transunet", {"mask_decoder": True})
MASKS_ONLY = ("transunet", {"mask_decoder": True, "transformer": False})
ALL_WAYS += [MASKS, MASKS_ONLY, ("transunet", {"mask_decoder": True, "deep_supervision": True})]


def count(module):
    return sum(p.numel() for p in module.parameters())


def small(name, num_classes=3, **options):
    torch.manual_seed(0)
    options = {"cube_size": SIZE.get(name, 32), **SMALL[ENCODER_OF[name]], **DECODER.get(name, {}), **options}
    return create_segmentation(name, num_classes=num_classes, **options)


def cubes_for(network, b=1):
    return cubes(b, network.encoder.cube_size)


def monai_weights(network):
    """Our state dict under MONAI's names, as the docstring of `unetr.py` promises."""
    return {name.split(".", 1)[1]: value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "cube_size", "num_classes", "options", "expected"),
    # Measured on MONAI 1.6.1's own classes and on the reference implementations, 1 channel. SETR by hand (test_setr).
    [
        ("unet", 128, 14, {}, 4_822_057),
        ("attention_unet", 128, 14, {}, 5_909_334),
        ("med3d", 128, 2, {}, 46_707_232),
        ("nnunet", 128, 14, {}, 31_189_806),
        ("nnunet", 128, 14, {"deep_supervision": True}, 31_196_120),
        ("unetr", 96, 14, {}, 92_802_478),
        ("unetr", 128, 14, {}, 93_029_806),
        ("swin_unetr", 128, 14, {}, 62_187_296),
        ("nnformer", 128, 4, {}, 37_602_838),
        ("nnformer", 128, 14, {}, 37_602_838 + 10 * (96 * 4**3 + 1)),
    ],
)
def test_parameter_counts_at_full_size(name, cube_size, num_classes, options, expected):
    with torch.device(weightless(name)):
        network = create_segmentation(name, cube_size=cube_size, num_classes=num_classes, **options)
    assert count(network) == expected


@pytest.mark.parametrize(("name", "options"), ALL_WAYS)
def test_logits_have_the_volumes_size_and_every_weight_a_gradient(name, options):
    network = small(name, **options)
    volume = cubes_for(network)
    logits, auxiliary = network(volume)
    assert logits.shape == (1, 3, *volume.shape[2:])
    assert all(level.shape[:2] == (1, 3) and level.shape[2] <= volume.shape[2] for level in auxiliary)
    assert len(auxiliary) == len(network.auxiliary_weights)
    assert bool(auxiliary) == options.get("deep_supervision", False)
    sum(level.square().mean() for level in (logits, *auxiliary)).backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in SUPERVISED), MASKS])
@torch.no_grad()
def test_deep_supervision_ends_with_training(name, options):
    network = small(name, deep_supervision=True, **options)
    volume = cubes_for(network)
    trained = network(volume)
    evaluated = network.eval()(volume)
    assert evaluated.auxiliary == ()
    torch.testing.assert_close(evaluated.logits, trained.logits)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_the_table_says_who_can_be_supervised_deeply(name):
    decoder = type(small(name).decoder)
    assert ("deep_supervision" in inspect.signature(decoder).parameters) == SEGMENTATION[name].supervises


@pytest.mark.parametrize("name", SEGMENTATION)
@torch.no_grad()
def test_a_pretrained_encoder_loads_strictly(name):
    network = small(name).eval()
    torch.manual_seed(7)
    pretrained = create_encoder(
        ENCODER_OF[name], cube_size=network.encoder.cube_size, **SMALL[ENCODER_OF[name]]
    ).eval()
    volume = cubes_for(network)
    assert not torch.allclose(network.encoder(volume).tokens, pretrained(volume).tokens)
    network.encoder.load_state_dict(pretrained.state_dict(), strict=True)
    torch.testing.assert_close(network.encoder(volume).tokens, pretrained(volume).tokens)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_cube_that_does_not_fit_is_refused_with_a_remedy(name):
    with pytest.raises(RefusedError) as caught:
        create_segmentation(name, cube_size=20, num_classes=2)
    assert caught.value.code == "E_NETWORK"
    assert "20" in caught.value.message
    assert "voxels" in caught.value.hint


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in SEGMENTATION), MASKS])
def test_runs_under_bf16_autocast(name, options):
    network = small(name, **options)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(cubes_for(network)).logits
    assert torch.isfinite(logits).all()
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


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
    assert network(cubes(size=16)).logits.shape == (1, 2, 16, 16, 16)


@pytest.mark.parametrize("num_res_units", [1, 2])
@torch.no_grad()
def test_unet_is_monais_unet(num_res_units):
    ours = small("unet", channels=(4, 6, 8, 10), num_res_units=num_res_units)
    theirs = UNet(3, 1, 3, (4, 6, 8, 10), (2, 2, 2), num_res_units=num_res_units)
    nested = "model." + "1.submodule." * 3
    names = {"encoder.downs.3.": nested}
    for level in range(3):
        nested = "model." + "1.submodule." * level
        names |= {f"encoder.downs.{level}.": f"{nested}0.", f"decoder.ups.{level}.": f"{nested}2."}
    theirs.load_state_dict(renamed(ours.state_dict(), names), strict=True)
    torch.testing.assert_close(ours(cubes()).logits, theirs(cubes()))


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_attention_unet_is_monais_attention_unet(training):
    ours = small("attention_unet", channels=(4, 6, 8)).train(training)
    theirs = AttentionUnet(3, 1, 3, (4, 6, 8), (2, 2)).train(training)
    names = {
        "encoder.downs.0.": "model.0.",
        "encoder.downs.1.": "model.1.submodule.0.",
        "encoder.downs.2.": "model.1.submodule.1.submodule.",
        "decoder.classify.": "model.2.",
    }
    for level, nested in enumerate(("model.1.", "model.1.submodule.1.")):
        for part, theirs_part in (("ups", "upconv"), ("gates", "attention"), ("merges", "merge")):
            names[f"decoder.{part}.{level}."] = f"{nested}{theirs_part}."
    theirs.load_state_dict(renamed(ours.state_dict(), names), strict=True)
    torch.testing.assert_close(ours(cubes(2)).logits, theirs(cubes(2)))


def renamed(state, names):
    """Replace the prefix of each name, which must be among `names`."""
    prefix = {name: next(p for p in names if name.startswith(p)) for name in state}
    return {names[prefix[name]] + name.removeprefix(prefix[name]): value for name, value in state.items()}


@pytest.mark.parametrize("cube_size", [32, 24])
@torch.no_grad()
def test_nnunet_is_monais_dynunet(cube_size):
    filters = (4, 6, 8, 10, 10)
    ours = small("nnunet", filters=filters, cube_size=cube_size, deep_supervision=True)
    strides = {32: [1, 2, 2, 2, 2], 24: [1, 2, 2, 2, 1]}[cube_size]
    theirs = DynUNet(3, 1, 3, [3] * 5, strides, strides[1:], filters=filters, deep_supervision=True, deep_supr_num=3)
    missing, unexpected = theirs.load_state_dict(monai_weights(ours), strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {"skip_layers"}  # the same blocks under a second name
    logits, *auxiliary = theirs(cubes(size=cube_size)).unbind(dim=1)
    output = ours(cubes(size=cube_size))
    torch.testing.assert_close(output.logits, logits)
    assert [level.shape[-1] for level in output.auxiliary] == [cube_size // 2, cube_size // 4, cube_size // 8]
    for own, other in zip(output.auxiliary, auxiliary, strict=True):
        torch.testing.assert_close(F.interpolate(own, size=logits.shape[2:]), other)
    torch.testing.assert_close(ours.eval()(cubes(size=cube_size)).logits, theirs.eval()(cubes(size=cube_size)))


def test_nnunets_weights_are_halved_from_level_to_level():
    assert small("nnunet", filters=(4,) * 6, cube_size=64, deep_supervision=True).auxiliary_weights == (
        0.5,
        0.25,
        0.125,
    )
    assert small("nnunet", deep_supervision=True).auxiliary_weights == (0.5,)


@pytest.mark.parametrize(
    ("cube_size", "strides"),
    [
        (128, [1, 2, 2, 2, 2, 2]),
        (96, [1, 2, 2, 2, 2, 2]),  # leaves 3 cells
        (64, [1, 2, 2, 2, 2, 2]),
        (80, [1, 2, 2, 2, 2, 1]),  # 5 cells cannot be halved
        (40, [1, 2, 2, 2, 1, 1]),
        (32, [1, 2, 2, 2, 2, 1]),  # 2 cells are the least
    ],
)
def test_levels_are_halved_while_they_can(cube_size, strides):
    assert halving_strides("dynunet", cube_size=cube_size, num_levels=6) == strides


@pytest.mark.parametrize("name", ["nnunet", "transunet"])
def test_a_u_net_has_the_same_convolutions_at_every_cube(name):
    with torch.device("meta"):
        pair = [create_encoder(ENCODER_OF[name], cube_size=size) for size in (40, 128)]
    shapes = [{n: p.shape for n, p in encoder.named_parameters() if "position" not in n} for encoder in pair]
    assert shapes[0] == shapes[1]


@torch.no_grad()
def test_med3d_enlarges_a_quarter():
    network = small("med3d").eval()
    coarsest = network.encoder(cubes()).pyramid[-1]
    assert coarsest.shape[2:] == (4, 4, 4)
    quarter = network.decoder.conv_seg(coarsest)
    assert quarter.shape == (1, 3, 8, 8, 8)
    expected = F.interpolate(quarter, scale_factor=4, mode="trilinear")
    torch.testing.assert_close(network(cubes()).logits, expected)


@torch.no_grad()
def test_unetr_is_monais_unetr():
    ours = create_segmentation(
        "unetr", cube_size=32, num_classes=3, hidden_size=24, mlp_dim=48, num_heads=2, feature_size=4
    )
    theirs = UNETR(
        in_channels=1, out_channels=3, img_size=32, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2
    )
    theirs.load_state_dict(monai_weights(ours), strict=True)
    torch.testing.assert_close(ours(cubes()).logits, theirs(cubes()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_swin_unetr_is_monais_swin_unetr():
    ours = small("swin_unetr")
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, depths=(1,) * 4, num_heads=(1,) * 4)
    theirs.load_state_dict(monai_weights(ours), strict=True)
    torch.testing.assert_close(ours(cubes(size=64)).logits, theirs(cubes(size=64)), rtol=1e-4, atol=1e-5)


def test_classifying_before_interpolating_changes_nothing():
    head = small("vit").decoder
    features = torch.rand(1, head.classify.in_channels, 4, 4, 4)
    up = torch.nn.Upsample(scale_factor=2, mode="trilinear")
    torch.testing.assert_close(up(head.classify(features)), head.classify(up(features)))


def test_vit_head_doubles_until_full_size():
    assert [step[0].out_channels for step in small("vit").decoder.steps] == [128, 64, 32]
    assert len(small("vit", patch_size=16).decoder.steps) == 4
