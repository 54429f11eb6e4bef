"""Fitting a teacher to slice-caption pairs before it is frozen (paper, section 2), and a card of how it retrieves.

The paper tunes CLIP whole: `fit_towers`. The default fits the two projection heads alone, to cached trunk features,
which takes seconds and on held-out volumes did as well as six CPU minutes of training the image tower.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

from m3di.events import Check, go_on
from m3di.teachers.clip import Teacher
from m3di.teachers.towers import Model, copy_for_fitting, require_heads
from m3di.training.objectives.infonce import MAX_LOGIT_SCALE, pair_losses
from m3di.types import Float, Int64, Tensor, UInt8
from stores.errors import DivergedError, RefusedError

RECALL_AT: Final = (1, 5, 10)


@dataclass(frozen=True)
class HeadFit:
    """How the heads are fitted, or the towers.

    Attributes:
        steps: Optimiser steps, at most.
        passes: Passes over the pairs, at most, but at least one step; None for no limit.
        learning_rate: AdamW's, constant.
        batch_size: Pairs a step; all of them when there are fewer.
        seed: Of the order of the pairs.
        weight_decay: AdamW's.
    """

    steps: int = 500
    passes: int | None = None
    learning_rate: float = 1e-3
    batch_size: int = 256
    seed: int = 0
    weight_decay: float = 0.01


@dataclass(frozen=True)
class TowerFit(HeadFit):
    """How the towers are fitted whole.

    Attributes:
        micro_batch: Slices that are encoded at a time; the loss is that of the whole batch all the same.
    """

    learning_rate: float = 1e-5
    micro_batch: int = 32


def fit_heads(
    teacher: Teacher, image_trunk: Float[Tensor, "s c"], text_trunk: Float[Tensor, "s f"], config: HeadFit,
    *, check: Check = go_on,
) -> Teacher:  # fmt: skip
    """Fit the projection heads and the temperature with symmetric InfoNCE; the given teacher stays as it is.

    Slices with equal captions (equal rows of `text_trunk`) are not each other's negatives.

    Args:
        teacher: Where to begin.
        image_trunk: `teacher.image_features` of the slices.
        text_trunk: `teacher.text_features` of their captions, row by row.
        config: How to fit.
        check: Called before every step.

    Returns:
        A frozen teacher with fitted heads and a fingerprint of its own; the trunk's weights are shared.

    Raises:
        RefusedError: E_CONFIG, for fewer than two different captions, or a tower without a head of its own.
        DivergedError: E_DIVERGED, when the loss is not finite.
    """
    text_ids = torch.unique(text_trunk, dim=0, return_inverse=True)[1]
    _require_pairs(text_ids)
    model = copy_for_fitting(teacher.towers.model, require_heads(teacher.towers.model))
    _optimise(model, image_trunk, text_trunk, text_ids, config, check=check)
    return teacher.with_model(model)


def fit_towers(
    teacher: Teacher, images: UInt8[Tensor, "s y x"], texts: Sequence[str], config: TowerFit, *, check: Check = go_on
) -> Teacher:
    """Fit both towers whole with symmetric InfoNCE over full batches; the given teacher stays as it is.

    A batch is encoded twice, `micro_batch` slices at a time: once without gradients for the loss, whose gradient
    with respect to the embeddings is then carried into the towers. So memory is that of a micro-batch, and the loss
    that of the whole batch (Gao et al. 2021, arXiv 2101.06983). Dropout and batch statistics are off, which makes
    the two encodings equal. On CUDA the arithmetic is bfloat16 where it can be; weights stay in float32.

    Args:
        teacher: Where to begin.
        images: Slices, 0 black to 255 white.
        texts: Their captions.
        config: How to fit.
        check: Called before every step.

    Raises:
        RefusedError: E_CONFIG, for fewer than two different captions.
        DivergedError: E_DIVERGED, when the loss is not finite.
    """
    order = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    text_ids = torch.tensor([order[text] for text in texts], dtype=torch.int64)
    _require_pairs(text_ids)
    model = copy.deepcopy(teacher.towers.model).float().eval()
    trained = [parameter.requires_grad_(True) for parameter in model.parameters() if parameter.is_floating_point()]
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    for step, rows in enumerate(batches_of(len(texts), config)):
        check()
        batch = PairBatch(teacher, images[rows], [texts[row] for row in rows.tolist()], config.micro_batch)
        loss = batch.backward(model, text_ids[rows].to(teacher.device))
        _require_finite(loss, step)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    return teacher.with_model(model)


class PairBatch:
    """A batch of slices and captions that is encoded in parts, with the gradient of the loss over all of it.

    Args:
        teacher: Prepares slices and texts.
        images: (s, y, x) uint8.
        texts: One a slice.
        micro_batch: Slices encoded at a time.
    """

    def __init__(
        self, teacher: Teacher, images: UInt8[Tensor, "s y x"], texts: Sequence[str], micro_batch: int
    ) -> None:
        self._device = teacher.device
        self._images = [teacher.pixels(part) for part in images.split(micro_batch)]
        self._texts = list(teacher.tokens(texts).split(micro_batch))

    def backward(self, model: Model, text_ids: Int64[Tensor, " s"]) -> Float[Tensor, ""]:
        """Add the gradient of the contrastive loss to the model's parameters; returns the loss."""
        with torch.no_grad():
            images = torch.cat([self._encode(model.encode_image, part) for part in self._images])
            texts = torch.cat([self._encode(model.encode_text, part) for part in self._texts])
        images, texts = images.requires_grad_(), texts.requires_grad_()
        loss = contrastive_loss(images, texts, text_ids, model.logit_scale.exp())
        loss.backward()
        for encode, parts, rows in (
            (model.encode_image, self._images, images),
            (model.encode_text, self._texts, texts),
        ):
            assert rows.grad is not None
            for part, gradient in zip(parts, rows.grad.split([len(part) for part in parts]), strict=True):
                self._encode(encode, part).backward(gradient)
        return loss.detach()

    def _encode(self, encode: Callable[..., Tensor], part: Tensor) -> Tensor:
        low = self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            features = encode(part)
        return F.normalize(features.float(), dim=-1)


def contrastive_loss(
    images: Float[Tensor, "s e"],
    texts: Float[Tensor, "s e"],
    text_ids: Int64[Tensor, " s"],
    scale: Float[Tensor, "*one"],
) -> Float[Tensor, ""]:
    """Average InfoNCE over both directions, without the false negatives of equal captions.

    Args:
        images: L2-normalised, one row a slice.
        texts: L2-normalised, the slices' captions.
        text_ids: Equal for equal captions.
        scale: Inverse temperature.
    """
    equal = text_ids.unsqueeze(0) == text_ids.unsqueeze(1)
    return pair_losses(scale * images @ texts.T, duplicate=equal).mean()


def retrieval_card(
    image_embeddings: Float[Tensor, "s e"],
    text_embeddings: Float[Tensor, "s e"],
    planes: Int64[Tensor, " s"],
    positions: Float[Tensor, " s"],
    text_ids: Int64[Tensor, " s"],
) -> dict[str, Any]:
    """Score slice-to-caption retrieval both ways among `s` slices; the caption of a slice with an equal one counts.

    Args:
        image_embeddings: L2-normalised, one row a slice.
        text_embeddings: L2-normalised, the slices' captions.
        planes: Plane number of each slice.
        positions: Place of each slice along its plane's normal, 0 to 1.
        text_ids: Equal for equal captions.

    Returns:
        `items`; `texts`, the number of different ones; `image_to_text`, `text_to_image` and `chance`, each with
        recall at 1, 5 and 10; `right_plane`, the share of slices whose best caption (of the first such slice) is of
        their own plane; `position_error`, the median distance to that slice's place where the plane is right, None
        where it never is.
    """
    place = image_embeddings.device
    planes, positions, text_ids = planes.to(place), positions.to(place), text_ids.to(place)
    similarity = image_embeddings.float() @ text_embeddings.float().T
    equal = text_ids.unsqueeze(0) == text_ids.unsqueeze(1)
    best = similarity.argmax(dim=1)
    right = planes[best] == planes
    error = (positions[best] - positions).abs()[right]
    return {
        "items": len(text_ids),
        "texts": len(text_ids.unique()),
        "image_to_text": _recall(similarity, equal),
        "text_to_image": _recall(similarity.T, equal),
        "chance": _chance(text_ids),
        "right_plane": float(right.float().mean()),
        "position_error": float(error.median()) if len(error) else None,
    }


def _optimise(
    model: Model, image_trunk: Tensor, text_trunk: Tensor, text_ids: Int64[Tensor, " s"], config: HeadFit,
    *, check: Check,
) -> None:  # fmt: skip
    """Train the heads and the temperature of `model` in place."""
    image_head, text_head = require_heads(model)
    trained = [*image_head.parameters(), *text_head.parameters(), model.logit_scale]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    for step, rows in enumerate(batches_of(len(text_ids), config)):
        check()
        images = F.normalize(image_head(image_trunk[rows]), dim=-1)
        texts = F.normalize(text_head(text_trunk[rows]), dim=-1)
        loss = contrastive_loss(images, texts, text_ids[rows], model.logit_scale.exp())
        _require_finite(loss, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    optimiser.zero_grad()


def batches_of(count: int, config: HeadFit) -> Iterator[Tensor]:
    """Batches of row numbers, each pass over all rows in a new order; the rest of a pass is left out."""
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, count)
    most = config.steps if config.passes is None else max(1, config.passes * count // size)
    for step in range(min(config.steps, most)):
        offset = step % (count // size) * size
        if offset == 0:
            order = torch.randperm(count, generator=generator)
        yield order[offset : offset + size]


def _require_pairs(text_ids: Int64[Tensor, " s"]) -> None:
    if len(text_ids) == 0 or len(text_ids.unique()) == 1:
        message = f"{len(text_ids)} slices have fewer than two different captions"
        raise RefusedError("E_CONFIG", message, hint="fit to more slices, or set teacher.fit_steps=0")


def _require_finite(loss: Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        message = f"loss {loss.item()} at step {step} of fitting the teacher"
        raise DivergedError(
            "E_DIVERGED", message, hint="lower teacher.fit_learning_rate, or teacher.fit_tower_learning_rate"
        )


def _recall(similarity: Float[Tensor, "s t"], equal: Tensor) -> dict[str, float]:
    """Share of rows with a right column among the first k; of equals the wrong come first, so collapse scores 0."""
    best_right = similarity.masked_fill(~equal, -torch.inf).amax(dim=1, keepdim=True)
    rank = ((similarity >= best_right) & ~equal).sum(dim=1)
    return {f"recall@{k}": float((rank < k).float().mean()) for k in RECALL_AT}


def _chance(text_ids: Int64[Tensor, " s"]) -> dict[str, float]:
    """Expected recall of a random order: one less the odds that k drawn columns miss all equal captions."""
    total = len(text_ids)
    sizes = Counter(text_ids.tolist()).values()
    return {
        f"recall@{k}": sum(n * (1 - math.comb(total - n, k) / math.comb(total, k)) for n in sizes) / total
        if k <= total
        else 1.0
        for k in RECALL_AT
    }
