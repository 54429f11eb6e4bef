"""The sigmoid loss: each pair of a prediction and a target is judged by itself, own or not."""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.training.objectives.vectors import unit
from m3di.types import Bool, Float, Tensor

INITIAL_LOGIT_SCALE: Final = math.log(10.0)
INITIAL_LOGIT_BIAS: Final = -10.0


class SigmoidLoss(nn.Module):
    """Logistic loss of every pair, with a learnable temperature and bias.

    `logit_scale` is the logarithm of the inverse temperature; `logit_bias` begins where nearly all pairs are judged
    foreign, as they are.

    Source: Zhai et al. 2023 (arXiv 2303.15343), section 3.2 and algorithm 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS))

    def forward(
        self,
        predictions: Float[Tensor, "s e"],
        targets: Float[Tensor, "s e"],
        *,
        duplicate: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the sum over all pairs, divided by the number of predictions.

        Args:
            predictions: One embedding a slice; normalised here.
            targets: The teacher's embedding of the same slice in the same row; normalised here.
            duplicate: True where prediction i and target j are neither own nor foreign, because the targets i and j
                are the same: they are not judged. The diagonal does not matter. None: all are judged.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            logits = self.logit_scale.exp() * unit(predictions) @ unit(targets).T + self.logit_bias
            own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            losses = -F.logsigmoid(torch.where(own, logits, -logits))
            if duplicate is not None:
                losses = losses.masked_fill(duplicate & ~own, 0.0)
            return losses.sum() / len(logits)
