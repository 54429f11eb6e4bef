import subprocess
import sys

import pytest

from m3di.networks.registry import ENCODERS, SEGMENTATION, create_encoder, create_segmentation
from stores.errors import RefusedError


def refusal(build, *args, **options):
    with pytest.raises(RefusedError) as caught:
        build(*args, **options)
    assert caught.value.code == "E_NETWORK"
    return caught.value.message, caught.value.hint


def test_unknown_names_get_a_guess_and_the_list():
    message, hint = refusal(create_encoder, "unter", cube_size=32)
    assert message == "unknown encoder: 'unter'"
    assert hint == "did you mean 'unetr'? known are swin, unetr, vit"
    message, hint = refusal(create_segmentation, "resnet", cube_size=32, num_classes=2)
    assert message == "unknown segmentation network: 'resnet'"
    assert hint == "known are swin_unetr, unetr, vit"


def test_unknown_options_get_a_guess_and_the_list():
    message, hint = refusal(create_encoder, "vit", cube_size=32, patchsize=8)
    assert message == "unknown option of encoder vit: 'patchsize'"
    assert hint.startswith("did you mean 'patch_size'? known are gradient_checkpointing, hidden_size")
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
