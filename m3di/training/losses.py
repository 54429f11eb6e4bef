"""The loss of segmentation: Dice with cross-entropy (paper, section 3.1). Pretraining's are in `objectives`.

All sums run in at least float32 whatever autocast says.
"""

import torch

from m3di.training.objectives.vectors import widen
from m3di.types import Float, Int64, Tensor


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
        log_probability = widen(logits).log_softmax(dim=1)
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
