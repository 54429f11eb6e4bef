"""A run as pretrained weights of nnU-Net v2: what `nnUNetv2_train -pretrained_weights` loads, and plans that match.

Our `nnunet` (encoder `dynunet`) is the function of nnU-Net's `PlainConvUNet` with two convolutions a stage, 3^3
kernels and instance norm, but for three things:

- nnU-Net's convolutions have a bias. Before an instance norm a bias does nothing, and the transposed ones are without
  one here: zeros are exact.
- nnU-Net reads scans with axes (z, y, x), ours are (x, y, z): kernels are turned.
- A scan's axes are as they are on disk; nnU-Net mirrors in training and does not turn scans to the patient's axes.

Weights stand under several names, since nnU-Net's modules know each other: `_aliases`.

Facts: nnU-Net 2.8.1 (`load_pretrained_weights.py`, `plans_handler.py`) and dynamic-network-architectures 0.4.4, both
Apache-2.0. The entry `nnssl_adaptation_plan` is what `nnUNetv2_preprocess_like_nnssl` and `nnUNetv2_train_pretrained`
read, which nnU-Net's repository has since July 2026 and no release on PyPI yet.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from m3di.config import ExportConfig
from m3di.exports.card import card
from m3di.exports.source import Source
from m3di.types import Tensor
from stores.errors import RefusedError

NETWORKS: Final = {"encoder": "dynunet", "segmentation": "nnunet"}
CLASS: Final = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
DATASET: Final = "Dataset900_m3di"  # of no data: the folder that nnU-Net looks for plans in
PLANS: Final = "m3diPlans"
CHECKPOINT: Final = "checkpoint_final.pth"
SLOPE: Final = 0.01  # of the leaky ReLU
USAGE: Final = """\
One channel; `1` stands for your dataset. nnU-Net's segmentation layers begin anew, as with any pretrained weights.
{decoder}

```sh
cp -r Dataset900_m3di "$nnUNet_preprocessed"
nnUNetv2_extract_fingerprint -d 1
nnUNetv2_plan_experiment -d 1
nnUNetv2_move_plans_between_datasets -s 900 -t 1 -sp m3diPlans
nnUNetv2_preprocess -d 1 -plans_name m3diPlans -c 3d_fullres
nnUNetv2_train 1 3d_fullres 0 -p m3diPlans -pretrained_weights checkpoint_final.pth
```

The plans resample to {spacing:.4g} mm and take patches of {cube}^3 voxels. {intensities} Scans should lie as the
training scans did, left to right, back to front, feet to head along the file's axes: nnU-Net does not turn them.

Where nnU-Net is its repository's, not yet PyPI's, the newer way takes the encoder alone:

```sh
nnUNetv2_preprocess_like_nnssl -d 1 -n m3di -pc checkpoint_final.pth -am like_pretrained
nnUNetv2_train_pretrained 1 3d_fullres 0 -p ptPlans__m3di____{identifier} -tr PretrainedTrainer
```
"""
DRAWN: Final = (
    "Pretraining has no decoder: the one here is drawn as nnU-Net draws its own, for the command wants one."
)
LEARNT: Final = "Encoder and decoder are those of the run."
RESCALED: Final = (
    "MR is scaled from its lowest to its highest value, not by percentiles: a network that begins with an instance "
    "norm does not see how wide the range is."
)


def prepare(source: Source, run: Path, settings: ExportConfig) -> Callable[[Path], None]:
    """Convert the network and make everything ready; returns what writes it into a folder.

    Raises:
        RefusedError: E_NETWORK, when nnU-Net has no such network; E_CONFIG, when nobody knows the spacing.
    """
    if source.name != NETWORKS.get(source.kind):
        message = f"nnU-Net has no network that is the {source.kind} {source.name!r}"
        hint = "it has the encoder 'dynunet' and the segmentation network 'nnunet'; --to hub takes every network"
        raise RefusedError("E_NETWORK", message, hint=hint)
    spacing = settings.spacing_mm or source.voxel_mm
    if spacing is None:
        message = "the voxels that the run was trained on are not known: its store is not at hand"
        raise RefusedError("E_CONFIG", message, hint="set their edge: --set export.spacing_mm=1.5")
    planned, weights = plans(source, spacing), network_weights(source)
    saved = {
        "network_weights": weights,
        "nnssl_adaptation_plan": adaptation_plan(source, spacing),
        "citations": [],
        "m3di": dict(source.provenance),
    }
    usage = USAGE.format(
        decoder=DRAWN if source.kind == "encoder" else LEARNT, spacing=spacing, cube=source.recipe.cube_size,
        intensities="CT is scaled by the run's window." if source.modality == "CT" else RESCALED,
        identifier=f"Spacing__{'_'.join([f'{spacing:.2f}'] * 3)}___Norm__Z",
    )  # fmt: skip

    text = card(source, run, settings, usage=usage)

    def fill(folder: Path) -> None:
        torch.save(saved, folder / CHECKPOINT)
        (folder / DATASET).mkdir()
        (folder / DATASET / f"{PLANS}.json").write_text(json.dumps(planned, indent=2) + "\n")
        (folder / "export.json").write_text(json.dumps(dict(source.provenance), indent=2) + "\n")
        (folder / "README.md").write_text(text)

    return fill


def network_weights(source: Source) -> dict[str, Tensor]:
    """The state dict of `PlainConvUNet`; without segmentation layers where the run has no classes."""
    decoder = source.network.get_submodule("decoder") if source.kind == "segmentation" else None
    found = dict(_stages(source.encoder))
    found |= dict(_decoder(decoder)) if decoder is not None else dict(_drawn_decoder(source.encoder))
    return {alias: value for name, value in found.items() for alias in _aliases(name)}


def _stages(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each stage's two convolutions with their norms, from fine to coarse."""
    parts: Any = encoder
    for number, block in enumerate([parts.input_block, *parts.downsamples, parts.bottleneck]):
        yield from _convolutions(block, f"encoder.stages.{number}.0")


def _decoder(decoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each stage from coarse to fine, and the layers of classes, of which ours has the finest at least."""
    parts: Any = decoder
    for number, up in enumerate(parts.upsamples):
        yield from _convolution(up.transp_conv.conv, f"decoder.transpconvs.{number}")
        yield from _convolutions(up.conv_block, f"decoder.stages.{number}")
    finest = len(parts.upsamples) - 1
    for level, head in enumerate([parts.output_block, *parts.deep_supervision_heads]):
        yield from _convolution(head.conv.conv, f"decoder.seg_layers.{finest - level}")


def _drawn_decoder(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A decoder as nnU-Net draws one (He et al. 2015): the same in every export of these sizes."""
    widths: Any = encoder.widths
    strides: Any = encoder.strides
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(widths[1:], widths[:-1], strides[1:], strict=True))
    for number, (below, width, stride) in enumerate(reversed(pairs)):
        up = nn.ConvTranspose3d(below, width, stride, stride, bias=False)
        yield from _convolution(_draw(up, generator), f"decoder.transpconvs.{number}")
        for place, channels in enumerate((2 * width, width)):
            name = f"decoder.stages.{number}.convs.{place}"
            convolution = nn.Conv3d(channels, width, 3, bias=False)
            yield from _convolution(_draw(convolution, generator), f"{name}.conv")
            yield f"{name}.norm.weight", torch.ones(width)
            yield f"{name}.norm.bias", torch.zeros(width)


def _draw(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    weight: Any = layer.weight
    nn.init.kaiming_normal_(weight, a=SLOPE, generator=generator)
    return layer


def _convolutions(block: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    for number in (1, 2):
        yield from _convolution(block.get_submodule(f"conv{number}.conv"), f"{name}.convs.{number - 1}.conv")
        norm = block.get_submodule(f"norm{number}")
        for kind, value in norm.state_dict().items():
            yield f"{name}.convs.{number - 1}.norm.{kind}", value.detach().clone()


def _convolution(layer: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    """Weight and bias, the axes of the kernel turned from (x, y, z) to (z, y, x)."""
    parts: Any = layer
    bias = parts.bias
    yield f"{name}.weight", parts.weight.detach().permute(0, 1, 4, 3, 2).contiguous().clone()
    yield f"{name}.bias", torch.zeros(parts.out_channels) if bias is None else bias.detach().clone()


def _aliases(name: str) -> Iterator[str]:
    """All names of a weight: blocks list their layers a second time, and the decoder holds the encoder."""
    places = {".conv.": ".all_modules.0.", ".norm.": ".all_modules.1."}
    names = [name, *(name.replace(part, place) for part, place in places.items() if part in name)]
    for one in names:
        yield one
        if one.startswith("encoder."):
            yield f"decoder.{one}"


def plans(source: Source, spacing_mm: float) -> dict[str, Any]:
    """Plans as nnU-Net's planner writes them, with this network, patches of the cube and voxels like the cube's."""
    cube, spacing = [source.recipe.cube_size] * 3, [spacing_mm] * 3
    resampling: dict[str, Any] = {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
    }
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        resampling[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None,
        }  # fmt: skip
    configuration = {
        "data_identifier": f"{PLANS}_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": cube,
        "median_image_size_in_voxels": [float(edge) for edge in cube],
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization" if source.modality == "CT" else "RescaleTo01Normalization"],
        "use_mask_for_norm": [False],
        **resampling,
        "batch_dice": False,
        "architecture": {"network_class_name": CLASS, **architecture(source.encoder)},
    }
    return {
        "dataset_name": DATASET,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": cube,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": _intensities(source)},
    }


def architecture(encoder: nn.Module) -> dict[str, Any]:
    """Arguments of `PlainConvUNet`, and those that are names of classes."""
    widths: Any = encoder.widths
    strides: Any = encoder.strides
    arguments = {
        "n_stages": len(widths),
        "features_per_stage": list(widths),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3] for _ in widths],
        "strides": [[stride] * 3 for stride in strides],
        "n_conv_per_stage": [2] * len(widths),
        "n_conv_per_stage_decoder": [2] * (len(widths) - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {"arch_kwargs": arguments, "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]}


def adaptation_plan(source: Source, spacing_mm: float) -> dict[str, Any]:
    """What the newer entry reads of the network, of pretraining and of the places of its parts."""
    built = architecture(source.encoder)
    cube = [source.recipe.cube_size] * 3
    return {
        "architecture_plans": {
            "arch_class_name": CLASS,
            "arch_kwargs": built["arch_kwargs"],
            "arch_kwargs_requiring_import": built["_kw_requires_import"],
        },
        "pretrain_plan": {"configurations": {"m3di": {"spacing": [spacing_mm] * 3, "patch_size": cube}}},
        "pretrain_num_input_channels": 1,
        "recommended_downstream_patchsize": cube,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stages.0",
        "keys_to_in_proj": ["encoder.stages.0.0.convs.0.conv", "encoder.stages.0.0.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }


def _intensities(source: Source) -> Mapping[str, float]:
    """nnU-Net clips CT to two percentiles, then subtracts a mean and divides by a deviation: our window, so put."""
    low, high = source.recipe.ct_window_hu if source.modality == "CT" else (0.0, 1.0)
    middle = (low + high) / 2
    return {
        "mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high, "min": low, "max": high,
        "median": middle,
    }  # fmt: skip
