"""InfoNCE: each prediction is to find its own target among those of the batch, and each target its prediction.

All sums run in at least float32 whatever autocast says: a logit scaled by up to 100 has no digits left in bf16.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.training.objectives.vectors import unit
from m3di.types import Bool, Float, Tensor

INITIAL_LOGIT_SCALE: Final = math.log(1 / 0.07)
MAX_LOGIT_SCALE: Final = math.log(100.0)


class InfoNCE(nn.Module):
    """Symmetric contrastive loss of predictions against targets, with a learnable temperature.

    `logit_scale` is the logarithm of the inverse temperature, used up to 100 at most.

    Source: Radford et al. 2021 (arXiv 2103.00020), sections 2.3 and 2.5; the loss of the paper, section 2.
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
            logits = clamped_scale(self.logit_scale) * unit(predictions) @ unit(targets).T
            return pair_losses(logits, duplicate=duplicate).mean()


def clamped_scale(logit_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The inverse temperature, 100 at most."""
    excess = F.relu(logit_scale - MAX_LOGIT_SCALE)
    # Detached, so that the gradient passes above the limit too; a plain clamp could never come back.
    return (logit_scale - excess.detach()).exp()


def pair_losses(
    logits: Float[Tensor, "*batch s s"], *, duplicate: Bool[Tensor, "*batch s s"] | None = None
) -> Float[Tensor, "*batch s"]:
    """Cross-entropy of each pair on the diagonal against its row and its column, the mean of both.

    Args:
        logits: Scaled similarities of predictions (rows) and targets (columns).
        duplicate: Pairs that are left out as negatives; the diagonal does not matter. A row and column that are
            left out whole cost nothing.
    """
    if duplicate is not None:
        itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(duplicate & ~itself, -math.inf)
    to_target = -logits.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)
    to_prediction = -logits.log_softmax(dim=-2).diagonal(dim1=-2, dim2=-1)
    return (to_target + to_prediction) / 2
