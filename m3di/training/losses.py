"""The losses of fine-tuning: Dice with cross-entropy, and cross-entropy of classes (paper, section 3.1).

Pretraining's are in `objectives`. All sums run in at least float32 whatever autocast says.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from m3di.networks.segmentation import SegmentationOutput
from m3di.training.objectives.vectors import widen
from m3di.types import Float, Int64, Tensor


def dice_cross_entropy(logits: Float[Tensor, "b c d h w"], labels: Int64[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """Return the mean of soft Dice loss and cross-entropy ("simply averaging them", paper, section 3.1).

    Dice is taken over the voxels of the whole batch, once a class, and averaged over the foreground classes
    (1 and up) that occur in the batch's labels. A class that does not occur is left to the cross-entropy: its
    Dice would be a constant 1 with next to no gradient, and so would depend on the luck of the batch.

    Args:
        logits: Unnormalised class scores.
        labels: Class of each voxel, from 0 (background) to c - 1; below 0 where it is not known, and then the voxel
            has no part in the loss.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_probability = widen(logits).log_softmax(dim=1)
        known = (labels >= 0)[:, None].to(log_probability.dtype)
        # Not F.cross_entropy, whose 3D form is not deterministic on CUDA; gather's gradient meets no index twice.
        of_label = log_probability.gather(1, labels.clamp(min=0)[:, None]) * known
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1, 1)
        truth = (labels[:, None] == classes).to(of_label.dtype)
        cross_entropy = -of_label.sum() / known.sum().clamp(min=1)
        return (_dice_loss(log_probability.exp() * known, of_label.exp(), truth) + cross_entropy) / 2


def deeply_supervised(
    output: SegmentationOutput, labels: Int64[Tensor, "b d h w"], weights: Sequence[float]
) -> Float[Tensor, ""]:
    """Return the weighted mean of `dice_cross_entropy` of the logits and of every auxiliary map.

    An auxiliary map is compared with the labels at the voxels nearest to its own (nnU-Net's way).

    Args:
        output: Of a segmentation network in training.
        labels: As in `dice_cross_entropy`.
        weights: Of each auxiliary map, relative to 1 for the logits.
    """
    loss, total = dice_cross_entropy(output.logits, labels), 1.0
    for logits, weight in zip(output.auxiliary, weights, strict=bool(output.auxiliary)):
        loss = loss + weight * dice_cross_entropy(logits, nearest_labels(labels, logits.shape[2:]))
        total += weight
    return loss / total


def nearest_labels(labels: Int64[Tensor, "b d h w"], size: Sequence[int]) -> Int64[Tensor, "b _ _ _"]:
    """Labels of a coarser grid over the same field: those of the nearest voxels."""
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


def class_cross_entropy(
    logits: Float[Tensor, "b c"], targets: Int64[Tensor, " b"], weights: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """Return the mean over the batch of the weighted cross-entropy.

    The mean is over cases, not over their weights: else a batch of one class would not feel its weight at all.

    Args:
        logits: Unnormalised class scores.
        targets: Class of each case.
        weights: Weight of each class.
    """
    with torch.autocast(logits.device.type, enabled=False):
        of_target = widen(logits).log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return -(weights[targets] * of_target).mean()


def balancing_weights(targets: Sequence[int], num_classes: int) -> Float[Tensor, " c"]:
    """Weights that make classes count alike, their mean over cases 1; 0 for a class without a case."""
    counts = torch.bincount(torch.tensor(targets), minlength=num_classes).float()
    return torch.where(counts > 0, len(targets) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


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
