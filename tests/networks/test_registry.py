import subprocess
import sys

import pytest
import torch
from torch import nn

from m3di.networks.encoders import EncoderOutput, map_to_tokens
from m3di.networks.registry import ENCODERS, SEGMENTATION, check_outputs, create_encoder, create_segmentation
from stores.errors import RefusedError

HERE = __name__


def refusal(build, *args, **options):
    with pytest.raises(RefusedError) as caught:
        build(*args, **options)
    assert caught.value.code == "E_NETWORK"
    return caught.value.message, caught.value.hint


def test_unknown_names_get_a_guess_and_the_list():
    message, hint = refusal(create_encoder, "unter", cube_size=32)
    assert message == "unknown encoder: 'unter'"
    assert hint.startswith("did you mean 'unetr'? known are attention_unet, densenet121, dynunet, medicalnet")
    message, hint = refusal(create_segmentation, "gan", cube_size=32, num_classes=2)
    assert message == "unknown segmentation network: 'gan'"
    assert hint == (
        "known are attention_unet, med3d, nnformer, nnunet, setr_mla, setr_naive, setr_pup, swin_unetr, transunet, "
        "unet, unetr, vit"
    )


def test_unknown_options_get_a_guess_and_the_list():
    message, hint = refusal(create_encoder, "vit", cube_size=32, patchsize=8)
    assert message == "unknown option of encoder vit: 'patchsize'"
    assert hint == "did you mean 'patch_size'? known are hidden_size, mlp_dim, num_heads, num_layers, patch_size"
    message, hint = refusal(create_encoder, "resnet50", cube_size=64, depth=18)
    assert (message, hint) == ("unknown option of encoder resnet50: 'depth'", "known are stem_stride")
    message, _ = refusal(create_segmentation, "swin_unetr", cube_size=32, num_classes=2, patch_size=8)
    assert message == "unknown option of network swin_unetr: 'patch_size'"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("vit", {"cube_size": 100}, "vit needs a cube whose edge is a multiple of 16 voxels, not 100"),
        (
            "unetr",
            {"cube_size": 20, "patch_size": 8},
            "unetr needs a cube whose edge is a multiple of 8 voxels, not 20",
        ),
        ("swin", {"cube_size": 48}, "swin needs a cube whose edge is a multiple of 32 voxels, not 48"),
        ("unetr", {"cube_size": 48, "patch_size": 12}, "unetr needs patches of a power of two voxels, not 12"),
        ("vit", {"cube_size": 32, "num_heads": 7}, "vit: hidden_size 768 is not a multiple of num_heads 7"),
        ("swin", {"cube_size": 32, "depths": (2, 2, 2)}, "swin has 4 stages, but depths [2, 2, 2]"),
        ("video_swin", {"cube_size": 48}, "video_swin needs a cube whose edge is a multiple of 32 voxels, not 48"),
        ("video_swin", {"cube_size": 32, "num_heads": (3, 6)}, "video_swin has 4 stages, but depths [2, 2, 6, 2]"),
        ("setr", {"cube_size": 32, "num_layers": 6}, "setr needs a number of layers that is a multiple of 4, not 6"),
        ("resnet50", {"cube_size": 80}, "resnet50 needs a cube whose edge is a multiple of 32 voxels, not 80"),
        ("resnet50", {"cube_size": 32}, "resnet50 needs a cube of at least 64 voxels, not 32"),
        ("resnet50", {"cube_size": 64, "stem_stride": 3}, "resnet: stem_stride 3"),
        ("medicalnet", {"cube_size": 20}, "medicalnet needs a cube whose edge is a multiple of 8 voxels, not 20"),
        ("medicalnet", {"cube_size": 64, "depth": 20}, "medicalnet has no depth 20"),
        ("medicalnet", {"cube_size": 64, "shortcut": "C"}, "medicalnet: unknown shortcut 'C'"),
        ("densenet121", {"cube_size": 32}, "densenet121 needs a cube of at least 64 voxels, not 32"),
        ("unet", {"cube_size": 16}, "unet needs a cube of at least 32 voxels, not 16"),
        ("dynunet", {"cube_size": 8}, "dynunet needs a cube of at least 16 voxels, not 8"),
        ("dynunet", {"cube_size": 44}, "dynunet needs a cube whose edge is a multiple of 8 voxels, not 44"),
        ("dynunet", {"cube_size": 64, "filters": (4, 8)}, "dynunet: filters [4, 8]"),
        ("attention_unet", {"cube_size": 16}, "attention_unet needs a cube of at least 32 voxels, not 16"),
        ("attention_unet", {"cube_size": 40}, "attention_unet needs a cube whose edge is a multiple of 16 voxels"),
        ("transunet", {"cube_size": 20}, "transunet needs a cube whose edge is a multiple of 8 voxels, not 20"),
        ("transunet", {"cube_size": 64, "num_heads": 7}, "transunet: stages of [768] channels"),
        ("transunet", {"cube_size": 64, "num_pools": 0}, "transunet: num_pools 0"),
        ("swin", {"cube_size": 32, "feature_size": 16}, "swin: stages of [16, 32, 64, 128] channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, options, told):
    message, hint = refusal(create_encoder, name, **options)
    assert message.startswith(told)
    assert hint


def test_nearest_cube_sizes_are_offered():
    assert refusal(create_encoder, "swin", cube_size=100)[1].startswith("use a cube of 96 or 128 voxels")
    assert refusal(create_encoder, "swin", cube_size=10)[1].startswith("use a cube of 32 or 64 voxels")


def test_swin_unetr_refuses_a_cube_that_leaves_one_cell():
    message, _ = refusal(create_segmentation, "swin_unetr", cube_size=32, num_classes=2)
    assert message == "swin_unetr needs a cube of at least 64 voxels, not 32"


def test_one_class_is_refused():
    message, _ = refusal(create_segmentation, "vit", cube_size=32, num_classes=1)
    assert message == "vit needs at least 2 classes, not 1"


def test_every_segmentation_network_names_a_known_encoder():
    assert {network.encoder for network in SEGMENTATION.values()} <= ENCODERS.keys()


def test_the_registry_alone_does_not_import_monai():
    code = "import sys, m3di.networks.registry, m3di.networks.psat; sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Own(nn.Module):
    """A user's encoder: one token for each block of 8^3 voxels."""

    token_stride = 8

    def __init__(self, cube_size, width=4):
        super().__init__()
        self.cube_size = cube_size
        self.token_dim = width
        self.embed = nn.Conv3d(1, width, kernel_size=8, stride=8)

    def forward(self, volume):
        features = self.embed(volume)
        return EncoderOutput(map_to_tokens(features), tuple(features.shape[2:]), [features])


class Lying(Own):
    def __init__(self, cube_size, edge=None, **changes):
        super().__init__(edge or cube_size)
        vars(self).update(changes)


class Bare(Own):
    def forward(self, volume):
        return self.embed(volume)


def no_module(*, cube_size):
    return cube_size


def no_cube():
    return Own(16)


def test_a_users_module_plugs_in_by_its_place():
    encoder = create_encoder(f"{HERE}:Own", cube_size=16, width=6)
    assert isinstance(encoder, Own)
    assert encoder(torch.zeros(2, 1, 16, 16, 16)).tokens.shape == (2, 8, 6)
    check_outputs(encoder)
    assert encoder.training
    message, hint = refusal(create_encoder, f"{HERE}:Own", cube_size=16, widht=6)
    assert message == f"unknown option of encoder {HERE}:Own: 'widht'"
    assert hint.startswith("did you mean 'width'?")


def test_a_package_declares_an_encoder(tmp_path, monkeypatch):
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[m3di.encoders]\ntheirs = {HERE}:Own\nbroken = {HERE}:Gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(create_encoder("theirs", cube_size=16), Own)
    assert refusal(create_encoder, "their", cube_size=16)[1].startswith("did you mean 'theirs'?")
    assert refusal(create_encoder, "broken", cube_size=16)[0].startswith("encoder 'broken' cannot be imported")


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (
            "no_such_module:Own",
            {},
            "encoder 'no_such_module:Own' cannot be imported: No module named 'no_such_module'",
        ),
        (f"{HERE}:Gone", {}, f"encoder '{HERE}:Gone' cannot be imported"),
        (f"{HERE}:no_module", {}, f"encoder '{HERE}:no_module' is a int, not an nn.Module"),
        (f"{HERE}:no_cube", {}, f"encoder '{HERE}:no_cube' takes no cube_size"),
        (f"{HERE}:Lying", {"token_dim": 0}, f"encoder '{HERE}:Lying' has token_dim 0, not a positive int"),
        (f"{HERE}:Lying", {"token_stride": None}, f"encoder '{HERE}:Lying' has token_stride None"),
        (f"{HERE}:Lying", {"edge": 8}, f"encoder '{HERE}:Lying' has cube_size 8, but was built for 16"),
    ],
)
def test_foreign_encoders_that_break_the_protocol_are_refused(name, options, told):
    assert refusal(create_encoder, name, cube_size=16, **options)[0].startswith(told)


def test_outputs_that_differ_from_what_is_promised_are_refused():
    wide = create_encoder(f"{HERE}:Lying", cube_size=16, token_dim=5)
    assert "tokens (1, 8, 4), but grid and token_dim say (1, 8, 5)" in refusal(check_outputs, wide)[0]
    assert (
        "gives Tensor, not an EncoderOutput"
        in refusal(check_outputs, create_encoder(f"{HERE}:Bare", cube_size=16))[0]
    )
