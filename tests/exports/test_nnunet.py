import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from m3di.config import ExportConfig
from m3di.exports.nnunet import CHECKPOINT, DATASET, PLANS, architecture, network_weights, plans, prepare
from stores.errors import RefusedError
from tests.exports.made import source

FILTERS = {"filters": (4, 6, 8, 10)}


def turned(volume):
    """From (x, y, z) to the (z, y, x) of nnU-Net, and back."""
    return volume.permute(0, 1, 4, 3, 2)


def plain_conv_unet(weights, strides, x):
    """nnU-Net's network, literally, by the names of its weights (dynamic-network-architectures 0.4.4)."""

    def block(x, name, stride=1):
        x = F.conv3d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], stride=stride, padding=1)
        x = F.instance_norm(x, weight=weights[f"{name}.norm.weight"], bias=weights[f"{name}.norm.bias"], eps=1e-5)
        return F.leaky_relu(x, 0.01)

    skips = []
    for stage, stride in enumerate(strides):
        x = block(x, f"encoder.stages.{stage}.0.convs.0", stride)
        x = block(x, f"encoder.stages.{stage}.0.convs.1")
        skips.append(x)
    for stage in range(len(strides) - 1):
        up = f"decoder.transpconvs.{stage}"
        x = F.conv_transpose3d(x, weights[f"{up}.weight"], weights[f"{up}.bias"], stride=strides[-1 - stage])
        x = torch.cat([x, skips[-2 - stage]], dim=1)
        x = block(block(x, f"decoder.stages.{stage}.convs.0"), f"decoder.stages.{stage}.convs.1")
    last = f"decoder.seg_layers.{len(strides) - 2}"
    return F.conv3d(x, weights[f"{last}.weight"], weights[f"{last}.bias"]), skips[-1]


@pytest.mark.parametrize("cube_size", [32, 24])
@torch.no_grad()
def test_it_is_nnunets_network(cube_size):
    found = source("segmentation", "nnunet", cube_size=cube_size, deep_supervision=True, **FILTERS)
    volume = torch.rand(1, 1, *(cube_size,) * 3)
    logits, coarsest = plain_conv_unet(network_weights(found), found.encoder.strides, turned(volume))
    torch.testing.assert_close(turned(logits), found.network(volume).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turned(coarsest), found.encoder(volume).pyramid[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nnunets_own_class_takes_it_strictly():
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet", reason="nnU-Net is not installed")
    found = source("segmentation", "nnunet", deep_supervision=True, **FILTERS)
    kwargs = architecture(found.encoder)["arch_kwargs"] | {
        "conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU,
    }  # fmt: skip
    theirs = unet.PlainConvUNet(1, num_classes=3, **kwargs).eval()
    theirs.load_state_dict(network_weights(found), strict=True)
    volume = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(turned(theirs(turned(volume))), found.network(volume).logits, rtol=1e-4, atol=1e-4)


def test_a_weight_is_the_same_under_all_its_names():
    weights = network_weights(source("segmentation", "nnunet", **FILTERS))
    for name in ("conv", "all_modules.0"):
        for place in ("encoder.", "decoder.encoder."):
            torch.testing.assert_close(
                weights[f"{place}stages.1.0.convs.1.{name}.weight"], weights["encoder.stages.1.0.convs.1.conv.weight"]
            )
    assert len({value.data_ptr() for value in weights.values()}) == 4 * 8 + 3 * (2 + 8) + 2  # stored once


def test_pretraining_has_a_decoder_drawn_and_no_segmentation_layers():
    encoder = network_weights(source("encoder", "dynunet", **FILTERS))
    whole = network_weights(source("segmentation", "nnunet", **FILTERS))
    assert {name: value.shape for name, value in encoder.items()} == {
        name: value.shape for name, value in whole.items() if ".seg_layers." not in name
    }
    drawn = encoder["decoder.stages.0.convs.0.conv.weight"]
    assert drawn.std() == pytest.approx((2 / (1 + 0.01**2) / (16 * 27)) ** 0.5, rel=0.1)  # He et al., fan in


def test_plans_say_what_the_cube_is():
    found = plans(source("encoder", "dynunet", voxel_mm=1.25, **FILTERS), 1.25)["configurations"]["3d_fullres"]
    assert (found["spacing"], found["patch_size"]) == ([1.25] * 3, [32] * 3)
    assert found["normalization_schemes"] == ["RescaleTo01Normalization"]
    assert found["architecture"]["arch_kwargs"]["strides"] == [[1] * 3, [2] * 3, [2] * 3, [2] * 3]


def test_ct_is_scaled_by_the_window_of_the_run():
    found = plans(source("encoder", "dynunet", modality="CT", **FILTERS), 1.0)
    assert found["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]
    told = found["foreground_intensity_properties_per_channel"]["0"]
    hu = np.array([-2000.0, -1000.0, 0.0, 1000.0, 3000.0])
    scaled = (hu.clip(told["percentile_00_5"], told["percentile_99_5"]) - told["mean"]) / told["std"]
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])


def test_files_hold_plain_tensors_alone(tmp_path):
    prepare(source("segmentation", "nnunet", **FILTERS), tmp_path / "run", ExportConfig())(tmp_path)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"]["m3di"]["spacing"] == [1.5] * 3
    written = json.loads((tmp_path / DATASET / f"{PLANS}.json").read_text())
    assert written["plans_name"] == PLANS
    assert "nnUNetv2_train 1 3d_fullres 0 -p m3diPlans -pretrained_weights" in (tmp_path / "README.md").read_text()


def test_unknown_voxels_must_be_set(tmp_path):
    found = source("encoder", "dynunet", voxel_mm=None, **FILTERS)
    with pytest.raises(RefusedError, match="voxels") as caught:
        prepare(found, tmp_path, ExportConfig())
    assert caught.value.code == "E_CONFIG"
    prepare(found, tmp_path, ExportConfig(spacing_mm=2.0))


@pytest.mark.parametrize(("kind", "name", "options"), [
    ("encoder", "unet", {"channels": (4, 6, 8)}), ("classification", "dynunet", FILTERS),
])  # fmt: skip
def test_other_networks_are_refused(tmp_path, kind, name, options):
    with pytest.raises(RefusedError) as caught:
        prepare(source(kind, name, **options), tmp_path, ExportConfig())
    assert caught.value.code == "E_NETWORK"
    assert "'nnunet'" in caught.value.hint
