"""Public weights into our networks: an explicit map of names for each family, strict both ways; no code is unpickled.

Every name in a file is renamed by the first rule that matches it wholly, or dropped by a rule that says so. A name
that no rule knows, a weight that the file lacks and a shape that differs are errors.
"""

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy._core.multiarray import scalar
from torch import nn

from m3di.networks.segmentation import SegmentationNetwork
from m3di.types import Tensor
from stores.errors import RefusedError

NUM_SHOWN = 3  # names of a kind that an error shows
ENTRIES: Final = ("state_dict", "network_weights")  # where files keep the weights beside other things
# What such other things may be of besides plain types; harmless, and nnU-Net's log is full of it.
NUMPY_NUMBERS: Final[list[Any]] = [
    (scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"), np.dtype,
    np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType,
]  # fmt: skip
OPTIONAL: Final = ".num_batches_tracked"  # old files have no such counters, and nothing here reads them
STEM: Final = "patch_embed.proj.weight"  # of `video_swin`

Rules = tuple[tuple[str, str | None], ...]


def _nnformer_blocks(theirs: str, ours: str) -> Rules:
    """Rename what is in a block of nnFormer; `theirs` and `ours` name the block."""
    parts = {
        r"(?P<norm>norm[12])\.(?P<kind>\w+)": r"\g<norm>.\g<kind>",
        r"attn\.(?:qkv|kv)\.(?P<kind>\w+)": r"project_in.\g<kind>",
        r"attn\.proj\.(?P<kind>\w+)": r"project_out.\g<kind>",
        r"attn\.relative_position_bias_table": "table",
        r"attn\.relative_position_index": "index",
        r"mlp\.fc1\.(?P<kind>\w+)": r"mlp.0.\g<kind>",
        r"mlp\.fc2\.(?P<kind>\w+)": r"mlp.2.\g<kind>",
    }
    return tuple((rf"{theirs}\.{pattern}", f"{ours}.{name}") for pattern, name in parts.items())


def _from_nnunet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the stages of a `PlainConvUNet` as MONAI does, and turn the kernels, which are (z, y, x) there."""
    found = {
        name: re.fullmatch(r"encoder\.stages\.(\d+)\.0\.convs\.([01])\.(conv|norm)\.(\w+)", name) for name in state
    }
    last = max((int(match[1]) for match in found.values() if match), default=0)
    renamed = {}
    for theirs, value in state.items():
        ours, match = theirs, found[theirs]
        if match is not None:
            stage = int(match[1])
            place = {0: "input_block", last: "bottleneck"}.get(stage, f"downsamples.{stage - 1}")
            layer = f"{match[3]}{int(match[2]) + 1}" + (".conv" if match[3] == "conv" else "")
            ours = f"encoder.{place}.{layer}.{match[4]}"
        renamed[ours] = value.permute(0, 1, 4, 3, 2).contiguous() if value.ndim == 5 else value
    return renamed


def _of_one_channel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Three channels that would see the same grey volume are one with the sum of their weights."""
    return {name: value.sum(dim=1, keepdim=True) if name == STEM else value for name, value in state.items()}


# fmt: off
RULES: Final[dict[str, Rules]] = {
    # github.com/Tencent/MedicalNet: the names of torchvision's ResNet; Med3D's segmentation head where there is one.
    "medicalnet": (
        (r"(?:module\.)?((?:conv1|bn1|layer[1-4]\.\d+\.\w+)\..+)", r"encoder.\1"),
        (r"(?:module\.)?conv_seg\.([01346]\..+)", r"decoder.conv_seg.\1"),
        (r"(?:module\.)?fc\..+", None),
    ),
    # MONAI's self-supervised SwinUNETR, `model_swinvit.pt`, with the heads of its pretext tasks.
    "swin": (
        (r"(?:module\.)?(?:swinViT\.)?(layers[1-4]\..+)\.fc([12]\.\w+)", r"encoder.swinViT.\1.linear\2"),
        (r"(?:module\.)?(?:swinViT\.)?((?:patch_embed|layers[1-4])\..+)", r"encoder.swinViT.\1"),
        (r"(?:module\.)?(?:norm|convTrans3d|rotation_head|contrastive_head)\.(?:weight|bias)", None),
    ),
    # github.com/282857341/nnFormer: encoder, decoder and the maps to classes.
    "nnformer": (
        (r"model_down\.patch_embed\.proj1\.conv1\.(\w+)", r"encoder.embed.convolutions.0.\1"),
        (r"model_down\.patch_embed\.proj1\.conv2\.(\w+)", r"encoder.embed.convolutions.1.\1"),
        (r"model_down\.patch_embed\.proj2\.conv1\.(\w+)", r"encoder.embed.convolutions.2.\1"),
        (r"model_down\.patch_embed\.proj2\.conv2\.(\w+)", r"encoder.embed.convolutions.3.\1"),
        (r"model_down\.patch_embed\.proj1\.norm1\.(\w+)", r"encoder.embed.norms.0.\1"),
        (r"model_down\.patch_embed\.proj1\.norm2\.(\w+)", r"encoder.embed.norms.1.\1"),
        (r"model_down\.patch_embed\.proj2\.norm1\.(\w+)", r"encoder.embed.norms.2.\1"),
        (r"model_down\.patch_embed\.norm\.(\w+)", r"encoder.embed.norms.3.\1"),
        *_nnformer_blocks(r"model_down\.layers\.(\d)\.blocks\.(\d)", r"encoder.stages.\1.\2"),
        (r"model_down\.layers\.(\d)\.downsample\.(norm|reduction)\.(\w+)", r"encoder.merges.\1.\2.\3"),
        (r"model_down\.norm(\d)\.(\w+)", r"encoder.norms.\1.\2"),
        *_nnformer_blocks(r"decoder\.layers\.(\d)\.blocks\.0", r"decoder.stages.\1.fetch"),
        *_nnformer_blocks(r"decoder\.layers\.(\d)\.blocks\.1", r"decoder.stages.\1.refine"),
        (r"decoder\.layers\.(\d)\.Upsample\.norm\.(\w+)", r"decoder.stages.\1.norm.\2"),
        (r"decoder\.layers\.(\d)\.Upsample\.up\.(\w+)", r"decoder.stages.\1.expand.\2"),
        (r"final\.(\d)\.up\.(\w+)", r"decoder.heads.\1.\2"),
    ),
    # torchvision's `swin3d_t`, `swin3d_s` and `swin3d_b`.
    "video_swin": (
        (r"((?:patch_embed|features|norm)\..+)", r"encoder.\1"),
        (r"head\.(?:weight|bias)", None),
    ),
    # nnU-Net v2's `PlainConvUNet` with two convolutions a stage: its encoder, as `_from_nnunet` names it. A bias
    # before an instance norm does nothing. The decoder holds the encoder once more; its transposed convolutions have
    # a bias, which ours have not, so it is left out.
    "nnunet": (
        (r"(encoder\.(?:input_block|downsamples\.\d+|bottleneck)\.(?:conv[12]\.conv\.weight|norm[12]\.\w+))", r"\1"),
        (r"encoder\..+\.conv[12]\.conv\.bias", None),
        (r"encoder\.stages\.\d+\.0\.convs\.[01]\.all_modules\..+", None),
        (r"decoder\..+", None),
    ),
}
# fmt: on
CONVERSIONS: Final[dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]] = {
    "nnunet": _from_nnunet,
    "video_swin": _of_one_channel,
}  # fmt: skip


def load_public_weights(network: nn.Module, spec: str) -> None:
    """Load public weights into an encoder, or into a whole segmentation network if the file has its decoder too.

    Args:
        network: Encoder or `SegmentationNetwork` of the geometry that the weights were trained in.
        spec: `FAMILY:PATH`; the family is a name in `RULES`, the file a safetensors file or one of `torch.save`.

    Raises:
        RefusedError: E_WEIGHTS, naming what does not fit; E_UNSAFE_WEIGHTS, if reading the file could run code.
    """
    family, _, path = spec.partition(":")
    if family not in RULES or not path:
        hint = f"write FAMILY:PATH, with a family of {', '.join(sorted(RULES))}"
        raise RefusedError("E_WEIGHTS", f"unknown public weights {spec!r}", hint=hint)
    state = CONVERSIONS.get(family, dict)(_read(Path(path)))
    renamed, unknown = _rename(state, RULES[family])
    if not isinstance(network, SegmentationNetwork):
        renamed = {n.removeprefix("encoder."): v for n, v in renamed.items() if n.startswith("encoder.")}
    targets = network.state_dict() | dict(network.named_buffers())
    _require_fit(spec, renamed, unknown, targets)
    kept = network.state_dict().keys()
    network.load_state_dict({name: renamed.get(name, targets[name]) for name in kept})


def _read(path: Path) -> Mapping[str, Tensor]:
    """Read a file's tensors by name; those under one of `ENTRIES`, where there is such an entry."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        message = f"{path} holds more than tensors: {str(error).splitlines()[0]}"
        hint = "save its state dict alone as safetensors, in a place you trust: pickles can run code"
        raise RefusedError("E_UNSAFE_WEIGHTS", message, hint=hint) from error
    except (OSError, EOFError, RuntimeError, safetensors.SafetensorError) as error:
        raise RefusedError("E_WEIGHTS", f"cannot read {path}: {error}", hint="check the file") from error
    named = isinstance(found, Mapping)
    state = next((found[entry] for entry in ENTRIES if entry in found), found) if named else found
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RefusedError("E_WEIGHTS", f"{path} holds no state dict", hint="save tensors by name")
    return state


def _rename(state: Mapping[str, Tensor], rules: Rules) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors under our names, and the names that no rule knows."""
    renamed, unknown = {}, []
    for name, value in state.items():
        matches = ((re.fullmatch(pattern, name), ours) for pattern, ours in rules)
        match, ours = next(((m, ours) for m, ours in matches if m), (None, None))
        if match is None:
            unknown.append(name)
        elif ours is not None:
            renamed[match.expand(ours)] = value
    return renamed, unknown


def _require_fit(
    spec: str, found: Mapping[str, Tensor], unknown: Iterable[str], targets: Mapping[str, Tensor]
) -> None:
    """Refuse weights that do not fill a network exactly. Index tables are computed, so theirs must equal ours."""
    shared = found.keys() & targets.keys()
    shapes = {n: f"{n} {tuple(found[n].shape)} for {tuple(targets[n].shape)}" for n in shared}
    misshapen = {n for n in shared if found[n].shape != targets[n].shape}
    fixed = {n for n in shared - misshapen if not targets[n].is_floating_point() and not n.endswith(OPTIONAL)}
    mistakes = {
        "unknown": [*unknown, *(found.keys() - targets.keys())],
        "missing": [n for n in targets.keys() - found.keys() if not _is_computed(n, targets)],
        "of another shape": [shapes[n] for n in misshapen],
        "with another layout": [n for n in fixed if not torch.equal(found[n], targets[n].cpu())],
    }
    told = [f"{len(names)} {kind} ({_first(names)})" for kind, names in mistakes.items() if names]
    if told:
        hint = "build the encoder with the options (cube, depth, channels) that the weights were trained with"
        raise RefusedError("E_WEIGHTS", f"{spec} does not fit the network: {'; '.join(told)}", hint=hint)


def _is_computed(name: str, targets: Mapping[str, Tensor]) -> bool:
    """Say whether a network has a tensor without learning it: counters, index tables and masks."""
    return name.endswith(OPTIONAL) or not targets[name].is_floating_point()


def _first(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:NUM_SHOWN]) + (", ..." if len(shown) > NUM_SHOWN else "")
