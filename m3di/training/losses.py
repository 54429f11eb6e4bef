"""The losses: contrastive alignment with the teacher (paper, section 2), Dice with cross-entropy (section 3.1).

All sums run in at least float32 whatever autocast says: a logit scaled by up to 100 has no digits left in bf16.
"""

import math
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from m3di.types import Bool, Float, Int64, Tensor

INITIAL_LOGIT_SCALE: Final = math.log(1 / 0.07)
MAX_LOGIT_SCALE: Final = math.log(100.0)


class InfoNCE(nn.Module):
    """Symmetric contrastive loss of predictions against targets, with a learnable temperature.

    `logit_scale` is the logarithm of the inverse temperature, used up to 100 at most.

    Source: Radford et al. 2021 (arXiv 2103.00020), sections 2.3 and 2.5.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def forward(
        self,
        predictions: Float[Tensor, "s e"],
        targets: Float[Tensor, "s e"],
        *,
        duplicate: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean of both directions' cross-entropies.

        Args:
            predictions: One embedding a slice; normalised here.
            targets: The teacher's embedding of the same slice in the same row; normalised here.
            duplicate: True where prediction i and target j are no negatives of each other, because the targets
                i and j are the same text or slice. The diagonal does not matter. None: all are negatives.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            logits = self._scale() * _unit(predictions) @ _unit(targets).T
            if duplicate is not None:
                itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
                logits = logits.masked_fill(duplicate & ~itself, -math.inf)
            to_target = -logits.log_softmax(dim=1).diagonal().mean()
            to_prediction = -logits.log_softmax(dim=0).diagonal().mean()
            return (to_target + to_prediction) / 2

    def _scale(self) -> Float[Tensor, ""]:
        excess = F.relu(self.logit_scale - MAX_LOGIT_SCALE)
        # Detached, so that the gradient passes above the limit too; a plain clamp could never come back.
        return (self.logit_scale - excess.detach()).exp()


class ContrastiveLoss(NamedTuple):
    """The two alignments and their sum, each a scalar.

    Attributes:
        total: image + text.
        image: InfoNCE against the teacher's image embeddings.
        text: InfoNCE against the teacher's text embeddings.
    """

    total: "Float[Tensor, '']"
    image: "Float[Tensor, '']"
    text: "Float[Tensor, '']"


def contrastive_loss(
    predictions: Float[Tensor, "s e"],
    *,
    image: Float[Tensor, "s e"],
    text: Float[Tensor, "s e"],
    image_loss: InfoNCE,
    text_loss: InfoNCE,
    same_image: Bool[Tensor, "s s"] | None = None,
    same_text: Bool[Tensor, "s s"] | None = None,
) -> ContrastiveLoss:
    """Align one list of predictions with image and with text embeddings, and sum the two losses.

    Deviation: the paper leaves open whether both share a temperature. Meant here are two: captions of different
    slices lie closer together than their images do. Passing one `InfoNCE` twice shares it.

    Args:
        predictions: PSAT's output, one row a slice.
        image: The teacher's image embeddings of the same slices.
        text: The teacher's text embeddings of their captions.
        image_loss: Loss, with its temperature, against images.
        text_loss: Loss, with its temperature, against texts.
        same_image: Pairs of rows that show the same slice: no negatives. None: no such pairs.
        same_text: Pairs of rows with the same caption: no negatives. None: no such pairs.
    """
    image_term = image_loss(predictions, image, duplicate=same_image)
    text_term = text_loss(predictions, text, duplicate=same_text)
    return ContrastiveLoss(image_term + text_term, image_term, text_term)


def dice_cross_entropy(logits: Float[Tensor, "b c d h w"], labels: Int64[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """Return the mean of soft Dice loss and cross-entropy ("simply averaging them", paper, section 3.1).

    Dice is taken over the voxels of the whole batch, once a class, and averaged over the foreground classes
    (1 and up) that occur in the batch's labels. A class that does not occur is left to the cross-entropy: its
    Dice would be a constant 1 with next to no gradient, and so would depend on the luck of the batch.

    Args:
        logits: Unnormalised class scores.
        labels: Class of each voxel, from 0 (background) to c - 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probability = _widen(logits).log_softmax(dim=1)
        # Not F.cross_entropy, whose 3D form is not deterministic on CUDA; gather's gradient meets no index twice.
        of_label = log_probability.gather(1, labels[:, None])
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1, 1)
        truth = (labels[:, None] == classes).to(of_label.dtype)
        return (_dice_loss(log_probability.exp(), of_label.exp(), truth) - of_label.mean()) / 2


def _dice_loss(
    probability: Float[Tensor, "b c d h w"],
    probability_of_label: Float[Tensor, "b 1 d h w"],
    truth: Float[Tensor, "b c d h w"],
) -> Float[Tensor, ""]:
    voxels = (0, 2, 3, 4)
    overlap = (probability_of_label * truth).sum(voxels)[1:]
    true_size = truth.sum(voxels)[1:]
    occurs = true_size > 0
    dice = 2 * overlap / (probability.sum(voxels)[1:] + true_size.clamp(min=1))
    return ((1 - dice) * occurs).sum() / occurs.sum().clamp(min=1)


def _unit(embeddings: Float[Tensor, "s e"]) -> Float[Tensor, "s e"]:
    return F.normalize(_widen(embeddings), dim=1)


def _widen(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert half precision to float32 and leave wider numbers alone."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
