"""Our networks as MONAI's own classes: the class, its arguments, and the weights under MONAI's names.

Each conversion is checked when it is made: the class takes the weights strictly, and gives what ours gives.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import monai
import torch
from torch import nn

from m3di.exports.source import Source
from m3di.networks.convolutional import RESNET_LAYERS, WIDTHS
from m3di.networks.encoders import EncoderOutput
from m3di.networks.segmentation import SegmentationOutput
from m3di.types import Float, Tensor
from stores.errors import RefusedError

UNETR_PATCH: Final = 16  # MONAI's UNETR is fixed at these
UNETR_LAYERS: Final = 12
WINDOW: Final = (7, 7, 7)
TOLERANCE: Final = 1e-4  # of the largest value that a network gives

Arguments = dict[str, Any]
Rename = Mapping[str, str]  # beginning of our names -> of theirs


@dataclass(frozen=True, eq=False)
class MonaiNetwork:
    """A network of MONAI's that equals ours.

    Attributes:
        target: Its class, as a bundle names it.
        arguments: Of the class, as JSON knows them.
        part: The part of it that the weights are of; empty for all.
        state: Weights by MONAI's names.
        output: What to make of what it gives, as a Python expression of `y`: logits, or one vector a volume.
        num_channels: Of that.
        network: Built, with the weights, in evaluation mode.
    """

    target: str
    arguments: Arguments
    part: str
    state: dict[str, Tensor]
    output: str
    num_channels: int
    network: nn.Module


@dataclass(frozen=True)
class _Plan:
    """How a network is written for MONAI; see `MonaiNetwork`."""

    target: str
    arguments: Arguments
    names: Rename
    part: str = ""
    output: str = "y"


def monai_network(source: Source) -> MonaiNetwork:
    """Convert a network, and check that the conversion is exact.

    Raises:
        RefusedError: E_NETWORK, when MONAI has no such network, or not with these options.
    """
    plans = PLANS[source.kind]
    if source.name not in plans:
        hint = f"MONAI has {', '.join(plans)}; --to hub takes every network"
        if source.kind == "encoder":
            hint = f"of encoders alone {hint}; fine-tune it first, and export that run"
        raise RefusedError("E_NETWORK", f"MONAI has no class that is the {source.kind} {source.name!r}", hint=hint)
    plan = plans[source.name](source)
    module, _, name = plan.target.rpartition(".")
    network = getattr(importlib.import_module(module), name)(**plan.arguments)
    network = network.get_submodule(plan.part) if plan.part else network
    state = _with_second_names(_renamed(source.network.state_dict(), plan.names), network)
    network.load_state_dict(state, strict=True)
    network.eval()
    theirs = _require_equal(source, network, plan.output)
    return MonaiNetwork(plan.target, plan.arguments, plan.part, state, plan.output, theirs.shape[1], network)


def _renamed(state: Mapping[str, Tensor], names: Rename) -> dict[str, Tensor]:
    """Replace the beginning of each name, by the longest one that is known."""
    longest_first = sorted(names, key=len, reverse=True)
    found = {}
    for name, value in state.items():
        begin = next(begin for begin in longest_first if name.startswith(begin))
        found[names[begin] + name.removeprefix(begin)] = value.detach().clone()
    return found


def _with_second_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Add the names under which a network knows a weight a second time (`skip_layers` of DynUNet)."""
    places = {value.data_ptr(): name for name, value in network.state_dict().items() if name in state}
    second = {name: places.get(value.data_ptr()) for name, value in network.state_dict().items() if name not in state}
    return {**state, **{name: state[first] for name, first in second.items() if first is not None}}


@torch.no_grad()
def _require_equal(source: Source, network: nn.Module, output: str) -> Float[Tensor, "b _ ..."]:
    """Refuse a conversion whose output differs, as it might with another version of MONAI; returns the output.

    Raises:
        RefusedError: E_NETWORK.
    """
    generator = torch.Generator().manual_seed(0)
    cube = torch.rand(1, 1, *(source.recipe.cube_size,) * 3, generator=generator)
    ours, theirs = _plain(source.network(cube)), _evaluate(output, network(cube))
    apart = float((ours - theirs).abs().max())
    if not apart <= TOLERANCE * max(1.0, float(ours.abs().max())):
        message = f"{type(network).__name__} of MONAI {monai.__version__} differs from {source.name} by {apart:.3g}"
        raise RefusedError("E_NETWORK", message, hint="use MONAI 1.5 or 1.6")
    return theirs


def _plain(output: EncoderOutput | SegmentationOutput | Tensor) -> Tensor:
    """What an encoder, or a network, of ours gives, as one tensor: logits, or the mean token."""
    if isinstance(output, EncoderOutput):
        return output.tokens.mean(dim=1)
    return output.logits if isinstance(output, SegmentationOutput) else output


def _evaluate(expression: str, y: Any) -> Tensor:
    """One of the expressions below, of what a network gives."""
    return {
        "y": lambda: y,
        FIRST: lambda: y[0],
        MEAN_TOKEN: lambda: y[0].mean(1),
        MEAN_DEEPEST: lambda: y[-1].mean((2, 3, 4)),
        MEAN_ACTIVE: lambda: y.relu().mean((2, 3, 4)),
    }[expression]()


FIRST: Final = "y[0]"
MEAN_TOKEN: Final = "y[0].mean(1)"
MEAN_DEEPEST: Final = "y[-1].mean((2, 3, 4))"
MEAN_ACTIVE: Final = "y.relu().mean((2, 3, 4))"


def _unet(source: Source) -> _Plan:
    """MONAI nests each level in the one above: `1.submodule` goes one down."""
    encoder = source.encoder
    if encoder.num_res_units < 1:  # type: ignore[operator]
        raise _no_such(source, "num_res_units", encoder.num_res_units, "1 or more")
    depth = len(encoder.widths) - 1  # type: ignore[arg-type]
    names = {f"encoder.downs.{depth}.": "model." + "1.submodule." * depth}
    for level in range(depth):
        nested = "model." + "1.submodule." * level
        names |= {f"encoder.downs.{level}.": f"{nested}0.", f"decoder.ups.{level}.": f"{nested}2."}
    arguments = {
        **_segmenting(source), "channels": list(encoder.widths), "strides": [2] * depth,  # type: ignore[arg-type]
        "num_res_units": encoder.num_res_units,
    }  # fmt: skip
    return _Plan("monai.networks.nets.UNet", arguments, names)


def _attention_unet(source: Source) -> _Plan:
    widths: list[int] = source.encoder.widths  # type: ignore[assignment]
    depth = len(widths) - 1
    nested = ["model." + "1.submodule." * (level - 1) + "1." for level in range(1, depth + 1)]
    names = {"encoder.downs.0.": "model.0.", "decoder.classify.": "model.2."}
    for level, place in enumerate(nested):
        last = level == depth - 1
        names[f"encoder.downs.{level + 1}."] = f"{place}submodule." if last else f"{place}submodule.0."
        for part, theirs in (("ups", "upconv"), ("gates", "attention"), ("merges", "merge")):
            names[f"decoder.{part}.{level}."] = f"{place}{theirs}."
    arguments = {**_segmenting(source), "channels": widths, "strides": [2] * depth}
    return _Plan("monai.networks.nets.AttentionUnet", arguments, names)


def _dynunet(source: Source) -> _Plan:
    encoder = source.encoder
    widths, strides = list(encoder.widths), list(encoder.strides)  # type: ignore[arg-type]
    num_heads = len(source.network.get_submodule("decoder.deep_supervision_heads"))  # type: ignore[arg-type]
    supervision = {"deep_supervision": True, "deep_supr_num": num_heads} if num_heads else {}
    arguments = {
        **_segmenting(source), "kernel_size": [3] * len(widths), "strides": strides,
        "upsample_kernel_size": strides[1:], "filters": widths, **supervision,
    }  # fmt: skip
    return _Plan("monai.networks.nets.DynUNet", arguments, {"encoder.": "", "decoder.": ""})


def _unetr(source: Source) -> _Plan:
    options = _vit_arguments(source.encoder)
    for name, fixed in (("patch_size", UNETR_PATCH), ("num_layers", UNETR_LAYERS)):
        if options[name] != fixed:
            raise _no_such(source, name, options[name], str(fixed))
    shared = {name: options[name] for name in ("img_size", "hidden_size", "mlp_dim", "num_heads")}
    first = source.network.get_submodule("decoder.out.conv.conv")
    arguments = {**_segmenting(source), **shared, "feature_size": first.in_channels}
    return _Plan("monai.networks.nets.UNETR", arguments, {"encoder.": "", "decoder.": ""})


def _swin_unetr(source: Source) -> _Plan:
    options = _swin_arguments(source.encoder)
    shared = {name: options[name] for name in ("depths", "num_heads")}
    arguments = {**_segmenting(source), **shared, "feature_size": options["embed_dim"]}
    return _Plan("monai.networks.nets.SwinUNETR", arguments, {"encoder.": "", "decoder.": ""})


def _vit(source: Source) -> _Plan:
    """The encoder alone, whichever layers are tapped, or with the class token of its head."""
    options = {"in_channels": 1, **_vit_arguments(source.encoder)}
    target = "monai.networks.nets.ViT"
    if source.kind == "encoder":
        return _Plan(target, options, {"vit.": ""}, output=MEAN_TOKEN)
    if not hasattr(source.network.head, "class_token"):
        raise _no_such(source, "pooling", "mean", "class_token")
    names = {
        "encoder.vit.": "", "head.class_token": "cls_token", "head.classify.": "classification_head.",
    }  # fmt: skip
    classes = {"classification": True, "num_classes": len(source.classes), "post_activation": ""}
    return _Plan(target, {**options, **classes}, names, output=FIRST)


def _swin(source: Source) -> _Plan:
    return _Plan(
        "monai.networks.nets.swin_unetr.SwinTransformer", _swin_arguments(source.encoder), {"swinViT.": ""},
        output=MEAN_DEEPEST,
    )  # fmt: skip


def _resnet(source: Source, *, depth: int) -> _Plan:
    conv1: Any = source.encoder.get_submodule("resnet.conv1")
    arguments = {
        "block": "bottleneck" if depth >= 50 else "basic", "layers": list(RESNET_LAYERS[depth]),
        "block_inplanes": list(WIDTHS), "spatial_dims": 3, "n_input_channels": 1, "conv1_t_stride": conv1.stride[0],
    }  # fmt: skip
    target = "monai.networks.nets.ResNet"
    if source.kind == "encoder":
        return _Plan(target, {**arguments, "feed_forward": False}, {"resnet.": ""})
    names = {"encoder.resnet.": "", "head.classify.": "fc."}
    return _Plan(target, {**arguments, "num_classes": len(source.classes)}, names)


def _densenet121(source: Source) -> _Plan:
    target, arguments = "monai.networks.nets.DenseNet121", {"spatial_dims": 3, "in_channels": 1}
    if source.kind == "encoder":  # MONAI has it with classes only: all before them is one of its parts
        return _Plan(target, {**arguments, "out_channels": 1}, {"features.": ""}, part="features", output=MEAN_ACTIVE)
    names = {"encoder.": "", "head.classify.": "class_layers.out."}
    return _Plan(target, {**arguments, "out_channels": len(source.classes)}, names)


def _segmenting(source: Source) -> Arguments:
    dims = {} if source.name == "unetr" else {"spatial_dims": 3}
    return {**dims, "in_channels": 1, "out_channels": len(source.classes)}


def _vit_arguments(encoder: nn.Module) -> Arguments:
    first: Any = encoder.get_submodule("vit.blocks.0")
    return {
        "img_size": [encoder.cube_size] * 3, "patch_size": encoder.token_stride, "hidden_size": encoder.token_dim,
        "mlp_dim": first.mlp.linear1.out_features, "num_layers": len(encoder.get_submodule("vit.blocks")),  # type: ignore[arg-type]
        "num_heads": first.attn.num_heads,
    }  # fmt: skip


def _swin_arguments(encoder: nn.Module) -> Arguments:
    stages: Any = [encoder.get_submodule(f"swinViT.layers{stage}.0") for stage in range(1, 5)]
    return {
        "in_chans": 1, "embed_dim": encoder.feature_size, "window_size": list(WINDOW), "patch_size": [2, 2, 2],
        "depths": [len(stage.blocks) for stage in stages],
        "num_heads": [stage.blocks[0].attn.num_heads for stage in stages],
    }  # fmt: skip


def _no_such(source: Source, option: str, value: object, known: str) -> RefusedError:
    message = f"MONAI has {source.name} with {option} {known} only, not {value}"
    return RefusedError("E_NETWORK", message, hint="--to hub takes every network")


_RESNETS: Final = {f"resnet{depth}": partial(_resnet, depth=depth) for depth in RESNET_LAYERS}
PLANS: Final[dict[str, dict[str, Callable[[Source], _Plan]]]] = {
    "encoder": {
        "vit": _vit, "unetr": _vit, "setr": _vit, "swin": _swin, **_RESNETS, "densenet121": _densenet121,
    },
    "segmentation": {
        "unet": _unet, "attention_unet": _attention_unet, "nnunet": _dynunet, "unetr": _unetr,
        "swin_unetr": _swin_unetr,
    },
    "classification": {"vit": _vit, **_RESNETS, "densenet121": _densenet121},
}  # fmt: skip
