"""A two-tower open_clip model in parts: the model, its tokenizer, its configuration, and where its heads begin."""

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m3di.teachers.lowering import lower_linears, lowered
from stores.errors import RefusedError

Model = Any  # open_clip.CLIP or CustomTextCLIP: nn.Modules that share no interface a type checker could know
Tokenizer = Any  # open_clip's HFTokenizer or SimpleTokenizer: texts to (t, context length) token ids


@dataclass(frozen=True)
class TwoTower:
    """A stock open_clip model and what must be kept with its weights.

    Attributes:
        model: `open_clip.CLIP` or `CustomTextCLIP`, float32.
        tokenizer: open_clip's tokenizer.
        config: Content of `open_clip_config.json`: `model_cfg` and `preprocess_cfg`. No path of this machine in it.
        dtype: Arithmetic of the trunks that the model was saved with, if it was.
        random: Whether the trunks were never trained, because `random:ARCH` asked for that.
    """

    model: Model
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    dtype: str | None = None
    random: bool = False

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The text tower's part of the configuration."""
        return self.config["model_cfg"]["text_cfg"]


@dataclass(frozen=True)
class Head:
    """A tower's projection into the shared space: attribute `name` of `owner`.

    open_clip keeps it as a module that is always called (timm and Hugging Face towers), or as a parameter or linear
    layer that is skipped when it is None (its own transformers).
    """

    owner: nn.Module
    name: str

    @property
    def value(self) -> nn.Module | nn.Parameter:
        """The projection itself."""
        return getattr(self.owner, self.name)

    def __call__(self, features: Tensor) -> Tensor:
        """Project trunk features, (s, c) to (s, e)."""
        value = self.value
        return value(features) if isinstance(value, nn.Module) else features @ value

    def parameters(self) -> list[nn.Parameter]:
        """The projection's weights, in a fixed order."""
        value = self.value
        return list(value.parameters()) if isinstance(value, nn.Module) else [value]

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Take the projection out of its tower for a while."""
        value = self.value
        always_called = self.name != "text_projection" and isinstance(value, nn.Module)
        setattr(self.owner, self.name, nn.Identity() if always_called else None)
        try:
            yield
        finally:
            setattr(self.owner, self.name, value)


def image_head(model: Model) -> Head | None:
    """Find the image tower's projection; None when the architecture has none apart from its trunk."""
    return _first_head([(model.visual, "head"), (model.visual, "proj")])


def text_head(model: Model) -> Head | None:
    """Find the text tower's projection; None when the architecture has none apart from its trunk."""
    tower: Model = getattr(model, "text", model)
    return _first_head([(tower, "proj"), (tower, "text_projection")])


def image_trunk(model: Model, head: Head | None, dtype: torch.dtype) -> nn.Module:
    """Copy the image tower without its head, for inference; weights that need no change are shared with the model."""
    trunk = lowered(_copy_without(model.visual, head, shared=dtype == torch.float32), dtype)
    # Channels last: 1.2 (float32) to 1.5 times (bfloat16) faster for the convolutional towers on a CPU.
    return trunk.to(memory_format=torch.channels_last)


def trunk_with_patches(trunk: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Run an image trunk once for its pooled output (s, c) and the patch grid that it pools (s, h, w, c).

    Raises:
        RefusedError: E_CONFIG, for an architecture whose patches open_clip does not give.
    """
    tower: Model = trunk
    if hasattr(tower, "trunk") and hasattr(tower.trunk, "forward_features"):  # timm
        features = tower.trunk.forward_features(pixels)
        return tower.head(tower.trunk.forward_head(features)), _grid_of(features, tower.trunk)
    if hasattr(tower, "output_tokens"):  # open_clip's own vision transformer
        tower.output_tokens = True
        try:
            pooled, tokens = tower(pixels)
        finally:
            tower.output_tokens = False
        return pooled, _square(tokens)
    message = f"the image tower {type(trunk).__name__} gives no patch features"
    raise RefusedError("E_CONFIG", message, hint="use a timm or ViT teacher, or --set teacher.dense_dim=0")


def text_trunk(model: Model, head: Head | None, dtype: torch.dtype) -> Model:
    """Copy the model without its text head, for `encode_text`; weights that need no change are shared with it.

    The transformers of Hugging Face are lowered to `dtype`, open_clip's own, which look at each other's types, not.
    """
    trunk: Model = _copy_without(model, head, shared=True)
    if dtype != torch.float32 and trims_padding(trunk):
        lower_linears(trunk.text.transformer, dtype)
    return trunk


def copy_for_fitting(model: Model, heads: Iterable[Head]) -> Model:
    """Copy a model, sharing all its tensors but the heads' and the logit scale."""
    own = {id(parameter) for head in heads for parameter in head.parameters()} | {id(model.logit_scale)}
    return copy.deepcopy(model, {key: tensor for key, tensor in _tensors(model).items() if key not in own})


def trims_padding(model: Model) -> bool:
    """Whether padding after a text changes nothing: Hugging Face towers mask it, open_clip's own do not."""
    return hasattr(getattr(getattr(model, "text", None), "config", None), "pad_token_id")


def weights_digest(model: Model) -> str:
    """Return the sha256 over name, type, shape and bytes of all tensors of the state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_heads(model: Model) -> tuple[Head, Head]:
    """Return both heads.

    Raises:
        RefusedError: E_CONFIG, when one of the towers has no projection that can be fitted alone.
    """
    image, text = image_head(model), text_head(model)
    if image is None or text is None:
        tower = type(model.visual if image is None else getattr(model, "text", model)).__name__
        message = f"the tower {tower} has no separate projection head to fit"
        raise RefusedError("E_CONFIG", message, hint="use it as it is: --set teacher.fit_steps=0")
    return image, text


def _grid_of(features: Tensor, trunk: Any) -> Tensor:
    """The spatial part of timm features, (s, h, w, c), from tokens or maps of either memory order."""
    if features.ndim == 3:
        return _square(features[:, trunk.num_prefix_tokens :])
    return features if features.shape[-1] == trunk.num_features else features.permute(0, 2, 3, 1)


def _square(tokens: Tensor) -> Tensor:
    edge = math.isqrt(tokens.shape[1])
    return tokens.unflatten(1, (edge, edge))


def _first_head(candidates: Iterable[tuple[Any, str]]) -> Head | None:
    for owner, name in candidates:
        value = getattr(owner, name, None)
        if isinstance(value, nn.Parameter) or (
            isinstance(value, nn.Module) and any(True for _ in value.parameters())
        ):
            return Head(owner, name)
    return None


def _copy_without(module: nn.Module, head: Head | None, *, shared: bool) -> nn.Module:
    """Copy a module's structure, and its tensors too unless they are to be shared."""
    memo: dict[int, Any] = _tensors(module) if shared else {}
    if head is None:
        return copy.deepcopy(module, memo)
    with head.removed():
        return copy.deepcopy(module, memo)


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
