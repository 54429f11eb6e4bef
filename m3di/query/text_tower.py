"""The text tower of a kept teacher in numpy: a short question need not wait until torch is imported.

For BERT towers of open_clip with mean pooling and a two-layer head, as the embedded teacher has; other towers, and
whole builds, go by `m3di.teachers.clip`. All in float32: a vector is that of a float32 `Teacher` but for rounding
(cosine 1 - 1e-7), and has a cosine of 0.99997 or more to that of one in bfloat16. A test compares them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Files = Mapping[str, bytes]  # content of a teacher's folder by name
CONFIG, WEIGHTS, TOKENIZER, TEXT_CONFIG = FILES = (
    "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "config.json"
)  # fmt: skip
_PREFIX: Final = "text."
_CONTEXT_LENGTH: Final = 77  # where a configuration does not say it, as in open_clip
_SUPPORTED: Final[Mapping[str, object]] = {"model_type": "bert", "hidden_act": "gelu", "is_decoder": False}
_TOWER: Final[Mapping[str, object]] = {"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"}


@dataclass(frozen=True, eq=False)
class TextTower:
    """A text tower that is loaded.

    Attributes:
        weights: Tensors by open_clip's names, without `text.`.
        num_heads: Attention heads.
        num_layers: Transformer layers.
        norm_eps: Of the layer norms.
        tokenizer: Of the library tokenizers.
    """

    weights: Mapping[str, Floats]
    num_heads: int
    num_layers: int
    norm_eps: float
    tokenizer: Any

    def encode(self, text: str) -> Floats:
        """L2-normalised embedding of a text, (e,)."""
        hidden = self._transformer(self._token_ids(text))
        features = hidden.mean(axis=0)
        inner = _gelu(features @ self.weights["proj.0.weight"].T)
        projected = inner @ self.weights["proj.2.weight"].T
        return (projected / np.linalg.norm(projected)).astype(np.float32)

    def _token_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(_cleaned(text)).ids

    def _transformer(self, ids: Sequence[int]) -> Floats:
        """Last hidden states (n, c) of a text's n tokens."""
        names = "word_embeddings", "position_embeddings", "token_type_embeddings"
        word, position, kind = (self.weights[f"transformer.embeddings.{name}.weight"] for name in names)
        hidden = self._norm(word[list(ids)] + kind[0] + position[: len(ids)], "embeddings.LayerNorm")
        for number in range(self.num_layers):
            layer = f"encoder.layer.{number}"
            attended = self._attention(hidden, f"{layer}.attention.self")
            added = self._linear(attended, f"{layer}.attention.output.dense") + hidden
            hidden = self._norm(added, f"{layer}.attention.output.LayerNorm")
            inner = _gelu(self._linear(hidden, f"{layer}.intermediate.dense"))
            hidden = self._norm(self._linear(inner, f"{layer}.output.dense") + hidden, f"{layer}.output.LayerNorm")
        return hidden

    def _attention(self, hidden: Floats, name: str) -> Floats:
        asked, keys, values = (
            self._linear(hidden, f"{name}.{part}").reshape(len(hidden), self.num_heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        logits = asked @ keys.swapaxes(1, 2) / np.float32(math.sqrt(asked.shape[-1]))
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ values).swapaxes(0, 1).reshape(len(hidden), -1)

    def _linear(self, inputs: Floats, name: str) -> Floats:
        weight, bias = (self.weights[f"transformer.{name}.{part}"] for part in ("weight", "bias"))
        return inputs @ weight.T + bias

    def _norm(self, inputs: Floats, name: str) -> Floats:
        weight, bias = (self.weights[f"transformer.{name}.{part}"] for part in ("weight", "bias"))
        centred = inputs - inputs.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(self.norm_eps)) * weight + bias


def read_text_tower(files: Files) -> TextTower | None:
    """Load a tower from the content of a teacher's folder (`FILES`); None when it is of another kind."""
    if not set(FILES) <= files.keys():
        return None
    config, text_config = json.loads(files[CONFIG]), json.loads(files[TEXT_CONFIG])
    tower = config["model_cfg"]["text_cfg"]
    is_known = (
        all(text_config.get(name) == value for name, value in _SUPPORTED.items())
        and text_config.get("position_embedding_type", "absolute") == "absolute"
        and all(tower.get(name) == value for name, value in _TOWER.items())
        and not tower.get("tokenizer_kwargs")
    )
    if not is_known:
        return None
    return TextTower(
        weights=_text_weights(files[WEIGHTS]),
        num_heads=int(text_config["num_attention_heads"]),
        num_layers=int(text_config["num_hidden_layers"]),
        norm_eps=float(text_config["layer_norm_eps"]),
        tokenizer=_tokenizer(files[TOKENIZER], int(tower.get("context_length", _CONTEXT_LENGTH))),
    )


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of those of `FILES` that a folder has."""
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def _text_weights(payload: bytes) -> dict[str, Floats]:
    """Tensors of the text tower, as views of the payload: safetensors is a length, a JSON header, and the numbers."""
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    return {
        name.removeprefix(_PREFIX): _tensor(payload, 8 + length, entry)
        for name, entry in header.items()
        if name.startswith(_PREFIX)
    }


def _tensor(payload: bytes, base: int, entry: Mapping[str, Any]) -> Floats:
    start, stop = entry["data_offsets"]
    kind = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}[entry["dtype"]]
    count = (stop - start) // np.dtype(kind).itemsize
    return np.frombuffer(payload, kind, count, base + start).reshape(entry["shape"])


def _tokenizer(payload: bytes, context_length: int) -> Any:
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_str(payload.decode())
    tokenizer.enable_truncation(context_length)
    tokenizer.no_padding()
    return tokenizer


def _cleaned(text: str) -> str:
    """As open_clip cleans texts for tokenizers of Hugging Face."""
    import html  # noqa: PLC0415

    import ftfy  # noqa: PLC0415

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _gelu(values: Floats) -> Floats:
    erf = np.frompyfunc(math.erf, 1, 1)(values / np.float32(math.sqrt(2))).astype(np.float32)
    return np.float32(0.5) * values * (1 + erf)
