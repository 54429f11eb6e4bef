"""The frozen 2D vision-language teacher: slices and captions to L2-normalised embeddings (paper, section 2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F

from m3di.teachers.copies import staged
from m3di.teachers.dense import PatchProjection
from m3di.teachers.embedded import embedded_towers
from m3di.teachers.folder import read_towers, write_towers
from m3di.teachers.hub import checkpoint_towers, hub_towers, random_towers
from m3di.teachers.identity import VERSION
from m3di.teachers.lowering import input_dtype
from m3di.teachers.towers import (
    Model,
    TwoTower,
    image_head,
    image_trunk,
    text_head,
    text_trunk,
    trims_padding,
    trunk_with_patches,
    weights_digest,
)
from m3di.types import Float, Int64, Tensor, UInt8
from stores.errors import RefusedError
from stores.recipe import digest_of

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_PROBE: Final = "Axial CT slice of the upper abdomen, near its centre, 1234."  # its token ids tell tokenizers apart
_TEXT_BATCH: Final = 64
_WIDTH_STEP: Final = 8  # tokens


class Teacher:
    """A frozen open_clip model. Holds no state but its weights, so threads may share it.

    A list of slices or texts gives the same bits each time it is encoded on the same machine with the same number of
    threads. Other lists may cut other batches, and then the last bits of a row may differ (of a text by 1e-6; in
    bfloat16 by up to 5e-4 where the processor sums in another order for another number of rows), so encode the same
    unit again, as the build does with a plane of a volume, where equal bytes matter.

    Attributes:
        towers: The open_clip model, its tokenizer and configuration.
        dtype: Arithmetic of the image trunk and of a Hugging Face text trunk's linear layers, `float32` or
            `bfloat16`; heads, and what is sensitive in the trunks, stay in float32.
        device: Where the model is.
        batch_size: Slices encoded at a time.
    """

    def __init__(
        self, towers: TwoTower, *, device: str = "cpu", dtype: str = "auto", batch_size: int | None = None
    ) -> None:
        self.towers = towers
        self.device = torch.device(device)
        self.dtype = fastest_dtype(self.device) if dtype == "auto" else dtype
        if self.dtype not in DTYPES:
            raise RefusedError("E_CONFIG", f"unknown dtype {dtype!r}", hint=f"use auto, {' or '.join(DTYPES)}")
        # On a CPU 8 slices stay in its caches: 1.2 to 1.4 times faster than 32.
        self.batch_size = batch_size or (8 if self.device.type == "cpu" else 128)
        model = towers.model.to(self.device).eval().requires_grad_(False)
        self._image_head, self._text_head = image_head(model), text_head(model)
        self._image_trunk = image_trunk(model, self._image_head, DTYPES[self.dtype])
        self._text_trunk = text_trunk(model, self._text_head, DTYPES[self.dtype])
        self._preprocess = Preprocess(towers.config["preprocess_cfg"], model.visual.image_size, self.device)

    @property
    def embedding_dim(self) -> int:
        """Width of the embeddings."""
        return int(self.towers.config["model_cfg"]["embed_dim"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the image tower takes."""
        return self._preprocess.size

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of configuration, weights, preprocessing, tokenizer and precision; not of device or path."""
        return digest_of(
            {
                "teacher": VERSION,
                "config": self.towers.config,
                "weights": weights_digest(self.towers.model),
                "tokens": self.towers.tokenizer([_PROBE]).tolist(),
                "dtype": self.dtype,
            }
        )

    def encode_image(self, images: UInt8[Tensor, "s y x"]) -> Float[Tensor, "s e"]:
        """Embed grey slices.

        Args:
            images: 0 black to 255 white, of any size; resized to the model's.

        Returns:
            L2-normalised float32 rows, on the teacher's device.
        """
        if not len(images):
            return torch.zeros(0, self.embedding_dim, device=self.device)
        return self.project_image(self.image_features(images))

    def encode_image_and_patches(
        self, images: UInt8[Tensor, "s y x"]
    ) -> tuple[Float[Tensor, "s e"], Float[Tensor, "s h w c"]]:
        """Embed grey slices and give the patch features that the embeddings are pooled from, in the same pass.

        Raises:
            RefusedError: E_CONFIG, for an architecture without a patch grid.
        """
        with torch.inference_mode():
            batches = self._pixel_batches(images)
            both = [trunk_with_patches(self._image_trunk, pixels) for pixels in batches]
            pooled = torch.cat([features.float() for features, _ in both])
            patches = torch.cat([grid.float() for _, grid in both])
        return self.project_image(pooled.clone()), patches.clone()

    def with_model(self, model: Model) -> "Teacher":
        """The same teacher with another model of its architecture."""
        towers = replace(self.towers, model=model)
        return Teacher(towers, device=str(self.device), dtype=self.dtype, batch_size=self.batch_size)

    def shares_trunks(self, other: "Teacher") -> bool:
        """Whether both have the same weights before their heads, in the same tensors."""
        heads = {id(p) for head in (self._image_head, self._text_head) if head for p in head.parameters()}
        own = {id(p) for p in self.towers.model.parameters()} - heads - {id(self.towers.model.logit_scale)}
        return own <= {id(p) for p in other.towers.model.parameters()}

    def pixels(self, images: UInt8[Tensor, "s y x"]) -> Float[Tensor, "s 3 h w"]:
        """What the image tower takes for some slices, float32, on the device."""
        return self._preprocess(images)

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "s n"]:
        """What the text tower takes for some texts, no longer than the longest needs, on the device."""
        tokens = self.towers.tokenizer(list(texts))
        return tokens[:, : int(self._token_counts(tokens).max())].to(self.device)

    def project_image(self, features: Float[Tensor, "s c"]) -> Float[Tensor, "s e"]:
        """Embeddings of `image_features`."""
        return F.normalize(self._image_head(features) if self._image_head else features, dim=-1)

    def project_text(self, features: Float[Tensor, "s c"]) -> Float[Tensor, "s e"]:
        """Embeddings of `text_features`."""
        return F.normalize(self._text_head(features) if self._text_head else features, dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "s e"]:
        """Embed texts: L2-normalised float32 rows, equal for equal texts whatever their order."""
        if not texts:
            return torch.zeros(0, self.embedding_dim, device=self.device)
        return self.project_text(self.text_features(texts))

    def image_features(self, images: UInt8[Tensor, "s y x"]) -> Float[Tensor, "s c"]:
        """Give the image trunk's output before the projection head, float32; `images` holds at least one slice."""
        with torch.inference_mode():
            features = torch.cat([self._image_trunk(pixels).float() for pixels in self._pixel_batches(images)])
        return features.clone()  # outside of inference mode: a tensor that the heads can be fitted to

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "s c"]:
        """Give the text trunk's output before the projection head, float32; `texts` holds at least one text.

        Each distinct text is encoded once; equal texts get equal rows.
        """
        distinct = {text: number for number, text in enumerate(sorted(set(texts)))}
        tokens = self.towers.tokenizer(list(distinct))
        shapes = _by_width(self._token_counts(tokens), tokens.shape[1])
        batches = staged((tokens[rows, :width] for rows, width in shapes), self.device)
        with torch.inference_mode():
            features = torch.cat([self._text_trunk.encode_text(batch).float() for batch in batches])
        rank = torch.cat([rows for rows, _ in shapes]).argsort()
        return features[rank[[distinct[text] for text in texts]]].clone()

    def _pixel_batches(self, images: UInt8[Tensor, "s y x"]) -> Iterator[Tensor]:
        """What the image trunk takes, a batch at a time, in its own precision."""
        low = input_dtype(self._image_trunk)
        for batch in staged(images.split(self.batch_size), self.device):
            yield self.pixels(batch).to(low)

    def _token_counts(self, tokens: Int64[Tensor, "t n"]) -> Int64[Tensor, " t"]:
        """How many tokens of each text must be encoded: all, unless the text tower masks the padding anyway."""
        if not trims_padding(self.towers.model):
            return torch.full((len(tokens),), tokens.shape[1])
        return (tokens != self.towers.model.text.config.pad_token_id).sum(dim=1)


def _by_width(lengths: Int64[Tensor, " t"], context: int) -> list[tuple[Int64[Tensor, " r"], int]]:
    """Cut texts into batches: the rows of each, and how many tokens wide it is.

    A text's width follows from its own length, with padding unless it fills the context, and the texts of a batch are
    of one width and all padded or all not: attention sums in another order for another width, or without a mask, and
    the rows of a text would differ by what it is encoded with (cosine 0.9996 in bfloat16, too little to know two
    slices of equal captions by).
    """
    widths = (lengths // _WIDTH_STEP + 1) * _WIDTH_STEP
    kinds = torch.where(lengths == context, context + _WIDTH_STEP, widths)
    batches = []
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero()[:, 0]
        batches += [(part, min(kind, context)) for part in rows.split(_TEXT_BATCH)]
    return batches


class Preprocess:
    """Grey slices to the model's input: resized, three channels, its mean and standard deviation."""

    def __init__(self, config: Mapping[str, Any], size: int | tuple[int, int], device: torch.device) -> None:
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
        self.device = device
        self.mean, self.std = (
            torch.tensor(config[name], dtype=torch.float32, device=device).reshape(1, 3, 1, 1)
            for name in ("mean", "std")
        )

        self._colours = self._normalised(torch.arange(256, device=device)[:, None, None] / 255).flatten(1)

    def __call__(self, images: UInt8[Tensor, "s y x"]) -> Float[Tensor, "s 3 h w"]:
        """Squash to the model's size: slices are square and shown whole. Unlike open_clip, nothing is rounded.

        What has the model's size already is looked up grey by grey, in half of the time of the arithmetic.
        """
        images = images.to(self.device, non_blocking=True)
        if images.shape[1:] == self.size:
            colours = self._colours.index_select(0, images.flatten().int())
            return colours.view(*images.shape, 3).permute(0, 3, 1, 2)
        rows, columns = (self._resizing(*sizes) for sizes in zip(images.shape[1:], self.size, strict=True))
        grey = (rows @ (images.float() / 255) @ columns.T).clamp(0, 1)
        return self._normalised(grey).contiguous(memory_format=torch.channels_last)

    def _normalised(self, grey: Float[Tensor, "s h w"]) -> Float[Tensor, "s 3 h w"]:
        return (grey.unsqueeze(1) - self.mean) / self.std

    def _resizing(self, size: int, wanted: int) -> Float[Tensor, "w s"]:
        """Anti-aliased interpolation along one axis as the matrix that it is."""
        identity = torch.eye(size, device=self.device)[None, None]
        return F.interpolate(identity, (wanted, size), mode=self.interpolation, antialias=True)[0, 0]


def fastest_dtype(device: torch.device) -> str:
    """Choose the trunks' arithmetic for new teachers on a device; saved ones keep theirs.

    On a CPU with bfloat16 instructions, EfficientNet-Lite0 is 2 to 3 times faster in bfloat16 than in float32, as
    deterministic, and retrieves as well, and MiniLM-L6 is 1.8 times faster; without these instructions bfloat16 is up
    to 10 times slower.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type != "cpu":
        return "float32"
    return "bfloat16" if _cpu_has_bfloat16() else "float32"


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch 2.10


def load_teacher(spec: str, *, device: str = "cpu", dtype: str = "auto", batch_size: int | None = None) -> Teacher:
    """Load a teacher.

    Args:
        spec: `embedded`; `local-dir:PATH`, a folder of `save_teacher` or of open_clip;
            `checkpoint:ARCH:PREPROCESS:PATH`, plain safetensors weights of one of open_clip's architectures;
            `random:ARCH`, weights that were never trained, for control experiments; `ARCH@TAG`, a pretrained model of
            open_clip; or `hf-hub:ORG/ID`. Only the last two may use the network.
        device: Where to run it.
        dtype: `float32`, `bfloat16`, or `auto` for what the folder was saved with, else the device's fastest.
        batch_size: Slices encoded at a time; by default what is fast on the device.

    Raises:
        RefusedError: E_CONFIG, when the spec is not understood; E_WEIGHTS, when weights are missing or do not fit;
            E_UNSAFE_WEIGHTS, when reading them could run code.
    """
    towers = _open_towers(spec)
    wanted = towers.dtype or "auto" if dtype == "auto" else dtype
    return Teacher(towers, device=device, dtype=wanted, batch_size=batch_size)


def save_teacher(teacher: Teacher, folder: Path, projection: PatchProjection | None = None) -> None:
    """Write a teacher as a folder that `load_teacher` and stock open_clip load, all at once or not at all.

    Args:
        teacher: The teacher; the folder gives its precision to whoever loads it.
        folder: Where to; an older teacher there is replaced.
        projection: Of its patch features, if it has one.

    Raises:
        RefusedError: E_PATH, when `folder` holds something else than a teacher.
    """
    write_towers(teacher.towers, folder, dtype=teacher.dtype, finish=projection.save if projection else None)


def _open_towers(spec: str) -> TwoTower:
    if spec == "embedded":
        return embedded_towers()
    if spec.startswith("local-dir:"):
        return read_towers(Path(spec.removeprefix("local-dir:")))
    if spec.startswith("checkpoint:"):
        return checkpoint_towers(spec.removeprefix("checkpoint:"))
    if spec.startswith("random:"):
        return random_towers(spec.removeprefix("random:"))
    if spec.startswith("hf-hub:") or "@" in spec:
        return hub_towers(spec)
    hint = (
        "use embedded, local-dir:PATH, checkpoint:ARCH:PREPROCESS:PATH, ARCH@TAG (such as ViT-B-32@openai), "
        "hf-hub:ORG/ID or, without any training, random:ARCH"
    )
    raise RefusedError("E_CONFIG", f"unknown teacher {spec!r}", hint=hint)
