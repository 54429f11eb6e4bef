"""Soft targets: a prediction is to be as near to each target of the batch as the teacher finds its own target to be.

Neighbouring slices are near-duplicates, and as negatives of each other false ones.
"""

import torch
from torch import nn

from m3di.training.objectives.infonce import INITIAL_LOGIT_SCALE, clamped_scale, pair_losses
from m3di.training.objectives.vectors import unit
from m3di.types import Bool, Float, Tensor


class SoftInfoNCE(nn.Module):
    """InfoNCE of which a share has the teacher's own similarities for its targets.

    The soft target of a row is a softmax, at a fixed temperature, over the similarities of its target with all
    targets of the batch. As those are symmetric, both directions have the same ones.

    Args:
        share: Of the soft cross-entropy, 0 to 1; the rest is InfoNCE.
        temperature: Of the softmax over the teacher's similarities.

    Source: Gao et al. 2023 (arXiv 2303.17561), without its relaxation of negatives.
    """

    def __init__(self, *, share: float, temperature: float) -> None:
        super().__init__()
        self.share = share
        self.temperature = temperature
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    def forward(
        self,
        predictions: Float[Tensor, "s e"],
        targets: Float[Tensor, "s e"],
        *,
        duplicate: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean of both directions' cross-entropies, hard and soft.

        Args:
            predictions: One embedding a slice; normalised here.
            targets: The teacher's embedding of the same slice in the same row; normalised here.
            duplicate: Pairs that are no negatives in the hard part; the soft part knows them by their similarity.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            theirs = unit(targets)
            logits = clamped_scale(self.logit_scale) * unit(predictions) @ theirs.T
            hard = pair_losses(logits, duplicate=duplicate).mean()
            likeness = (theirs @ theirs.T / self.temperature).softmax(dim=1)
            soft = (_cross_entropy(logits, likeness) + _cross_entropy(logits.T, likeness)) / 2
            return (1 - self.share) * hard + self.share * soft


def _cross_entropy(logits: Float[Tensor, "s s"], shares: Float[Tensor, "s s"]) -> Float[Tensor, ""]:
    return -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()
