"""A teacher as a folder that stock open_clip loads: configuration, safetensors weights, tokenizer, text config.

Stock open_clip finds the text tower of a Hugging Face model by the name in the configuration, which needs the hub;
without network, give `create_model` a `text_cfg` whose `hf_model_name` is the folder's absolute path. m3di does.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from m3di.teachers.libraries import import_open_clip
from m3di.teachers.towers import Model, Tokenizer, TwoTower
from stores.atomic import write_folder
from stores.errors import RefusedError

CONFIG_FILE: Final = "open_clip_config.json"
WEIGHTS_FILE: Final = "open_clip_model.safetensors"

# The names that open_clip prefers to any pickle lying in the same folder.
_WEIGHTS_FILES: Final = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors")
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt"})


def write_towers(
    towers: TwoTower, folder: Path, *, dtype: str, finish: Callable[[Path], object] | None = None
) -> None:
    """Write a model beside `folder` and move it into place; an older teacher there is replaced.

    Args:
        towers: The model.
        folder: Where to.
        dtype: The trunks' arithmetic, kept so that the folder gives the same embeddings everywhere; `auto`
            for the fastest of whoever loads it.
        finish: Writes more files into the folder before it gets its place.

    Raises:
        RefusedError: E_PATH, when `folder` holds something else than a teacher.
    """
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        message = f"{folder} exists and is not a teacher's folder"
        raise RefusedError("E_PATH", message, hint="choose a folder that does not exist yet")

    def fill(aside: Path) -> None:
        _fill(towers, aside, dtype=dtype)
        if finish is not None:
            finish(aside)

    write_folder(folder, fill)


def digests_of(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_towers(folder: Path) -> TwoTower:
    """Open a folder that `write_towers`, or open_clip, wrote; nothing in it is executed and no network is used.

    Raises:
        RefusedError: E_WEIGHTS, when something is missing or does not fit; E_CONFIG, when the configuration is
            malformed; E_UNSAFE_WEIGHTS, when the weights are a pickle or the tokenizer asks to run code.
    """
    folder = folder.resolve()
    config = _read_config(folder)
    _require_safetensors(folder)
    open_clip = import_open_clip(offline=True)
    text_config = config["model_cfg"]["text_cfg"]
    local = {"hf_model_name": str(folder), "hf_model_pretrained": False} if "hf_model_name" in text_config else {}
    try:
        with torch.random.fork_rng(devices=[]):
            model = open_clip.create_model(
                f"local-dir:{folder}", require_pretrained=True, weights_only=True, text_cfg={**text_config, **local}
            )
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (RuntimeError, OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
        message = f"{folder} does not load as an open_clip model: {first_line(error)}"
        raise RefusedError("E_WEIGHTS", message, hint="save the teacher again") from error
    kept = {name: config.get(name, {}) for name in ("model_cfg", "preprocess_cfg")}
    own = config.get("m3di", {})
    return TwoTower(model, tokenizer, kept, dtype=own.get("dtype"), random=bool(own.get("random")))


def read_tokenizer(folder: Path) -> Tokenizer:
    """Open the tokenizer of a teacher's folder, without its weights.

    Raises:
        RefusedError: As `read_towers`, for the configuration.
    """
    folder = folder.resolve()
    _read_config(folder)
    return import_open_clip(offline=True).get_tokenizer(f"local-dir:{folder}")


def first_line(error: BaseException) -> str:
    """Return what a library's error says, on one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _fill(towers: TwoTower, folder: Path, *, dtype: str) -> None:
    config = {**towers.config, "m3di": {"dtype": dtype, **({"random": True} if towers.random else {})}}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
    weights = {name: tensor.contiguous().cpu() for name, tensor in towers.model.state_dict().items()}
    (folder / WEIGHTS_FILE).write_bytes(safetensors.torch.save(weights))
    if "hf_tokenizer_name" in towers.text_config:
        towers.tokenizer.tokenizer.save_pretrained(folder)
    if "hf_model_name" in towers.text_config:
        _write_text_config(towers.model, folder)


def _write_text_config(model: Model, folder: Path) -> None:
    """Write the Hugging Face text tower's configuration, less the place it once was read from."""
    fields = model.text.config.to_diff_dict()
    fields.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise RefusedError("E_WEIGHTS", f"{path} is missing", hint="give a folder that m3di or open_clip saved")
    try:
        config = json.loads(path.read_bytes())
        tokenizer_options = config["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {}
        complete = "embed_dim" in config["model_cfg"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is no open_clip configuration: {first_line(error)}"
        raise RefusedError("E_CONFIG", message, hint="save the teacher again") from error
    if not complete:
        raise RefusedError("E_CONFIG", f"{path} does not say embed_dim", hint="save the teacher again")
    if "trust_remote_code" in tokenizer_options:
        message = f"the tokenizer in {path} asks to run code"
        raise RefusedError("E_UNSAFE_WEIGHTS", message, hint="remove trust_remote_code from tokenizer_kwargs")
    return config


def _require_safetensors(folder: Path) -> None:
    if any((folder / name).is_file() for name in _WEIGHTS_FILES):
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        message = f"{folder / pickles[0]} is a pickle, which can run code when it is read"
        hint = f"convert it to {WEIGHTS_FILE} in a place you trust"
        raise RefusedError("E_UNSAFE_WEIGHTS", message, hint=hint)
    raise RefusedError("E_WEIGHTS", f"{folder} has no {WEIGHTS_FILE}", hint="save the teacher again")
