"""Teachers that open_clip downloads: a built-in architecture with a pretrained tag, or a model of the hub."""

from difflib import get_close_matches
from typing import Any

import torch

from m3di.teachers.folder import first_line
from m3di.teachers.libraries import import_open_clip
from m3di.teachers.towers import TwoTower
from stores.errors import RefusedError


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
