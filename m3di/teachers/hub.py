"""Teachers of open_clip's own architectures: downloaded, from a plain checkpoint, or never trained."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from m3di.teachers.folder import first_line
from m3di.teachers.libraries import import_open_clip
from m3di.teachers.towers import TwoTower
from stores.errors import RefusedError

# What the slices are normalised by; open_clip's own names for them are in its constants.
PREPROCESSES: Final = {
    "openai": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}
_RANDOM_SEED: Final = 20250


def hub_towers(spec: str) -> TwoTower:
    """Open `ARCH@TAG` or `hf-hub:ORG/ID`; weights come from the network unless they are in the local cache.

    Raises:
        RefusedError: E_CONFIG, when the architecture or tag is unknown; E_WEIGHTS, when the weights cannot be had.
    """
    open_clip = import_open_clip(offline=False)
    name, _, tag = (spec, "", "") if spec.startswith("hf-hub:") else spec.partition("@")
    quick_gelu = not spec.startswith("hf-hub:") and _needs_quick_gelu(open_clip, name, tag)
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(
                name,
                pretrained=tag or None,
                # open_clip only warns when the architecture's activation is not the one the tag was trained with.
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
                weights_only=True,
            )
        tokenizer = open_clip.get_tokenizer(name)
        model_config = open_clip.get_model_config(name)
    except (RuntimeError, OSError, ValueError) as error:
        hint = "needs the network once; without it use embedded or local-dir:PATH (HF_HUB_OFFLINE forbids it too)"
        raise RefusedError("E_WEIGHTS", f"cannot load {spec}: {first_line(error)}", hint=hint) from error
    if quick_gelu:
        model_config["quick_gelu"] = True
    return TwoTower(
        model, tokenizer, {"model_cfg": model_config, "preprocess_cfg": dict(model.visual.preprocess_cfg)}
    )


def checkpoint_towers(spec: str) -> TwoTower:
    """Open `ARCH:PREPROCESS:PATH`: plain safetensors weights, which must fill the architecture exactly.

    Raises:
        RefusedError: E_CONFIG for an unknown architecture or preprocess; E_UNSAFE_WEIGHTS for a pickle; E_WEIGHTS,
            when the file is missing, or does not have exactly the architecture's tensors.
    """
    name, _, rest = spec.partition(":")
    preprocess, _, file = rest.partition(":")
    path = Path(file)
    open_clip = import_open_clip(offline=True)
    _require_known("architecture", name, open_clip.list_models())
    _require_known("preprocess", preprocess, list(PREPROCESSES))
    if path.suffix != ".safetensors":
        message = f"{path} is not a .safetensors file"
        raise RefusedError("E_UNSAFE_WEIGHTS", message, hint="convert it in a place you trust: pickles can run code")
    towers = _untrained(open_clip, name, preprocess)
    try:
        towers.model.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        message = f"{path} does not hold the weights of {name}: {first_line(error)}"
        raise RefusedError("E_WEIGHTS", message, hint="name the architecture that it was trained as") from error
    return towers


def random_towers(name: str) -> TwoTower:
    """Open an architecture with weights from a fixed seed: the control that a pretrained teacher is compared with.

    Raises:
        RefusedError: E_CONFIG for an unknown architecture.
    """
    open_clip = import_open_clip(offline=True)
    _require_known("architecture", name, open_clip.list_models())
    return replace(_untrained(open_clip, name, "openai"), random=True)


def _untrained(open_clip: Any, name: str, preprocess: str) -> TwoTower:
    mean, std = PREPROCESSES[preprocess]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_RANDOM_SEED)
            # Without the trunks' own pretrained weights, which timm and transformers would download.
            model = open_clip.create_model(name, pretrained_image=False, pretrained_text=False)
        tokenizer = open_clip.get_tokenizer(name)
    except (RuntimeError, OSError, ValueError) as error:
        message = f"cannot build {name}: {first_line(error)}"
        raise RefusedError("E_WEIGHTS", message, hint="choose an architecture whose tokenizer is at hand") from error
    fields = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": fields}
    return TwoTower(model, tokenizer, config)


def _needs_quick_gelu(open_clip: Any, name: str, tag: str) -> bool:
    """Check that open_clip knows the architecture and the tag; a tag is never taken for a file's path."""
    _require_known("architecture", name, open_clip.list_models())
    _require_known(f"pretrained tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name))
    return bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))


def _require_known(what: str, value: str, known: list[str]) -> None:
    if value not in known:
        nearest = get_close_matches(value, known, n=3, cutoff=0.3) or known[:3]
        hint = f"the nearest known: {', '.join(nearest)}"
        raise RefusedError("E_CONFIG", f"unknown {what}: {value!r}", hint=hint)
