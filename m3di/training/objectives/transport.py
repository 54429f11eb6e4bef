"""Partial optimal transport: what it costs to move most of a batch's predictions onto its targets.

The plan moves the mass `mass` out of 1 from predictions to targets, each of which may give or take 1 / s, at the
least cost under an entropic penalty. Outliers may stay behind, which is what the journal version wants of it for
captions that are wrong.

The plan does not know which target belongs to which prediction: the loss is the same for targets in any order. Alone
it can match distributions, not pairs (`benchmarks/objectives.py` shows it).
"""

import math

import torch
from torch import nn

from m3di.training.objectives.vectors import unit
from m3di.types import Bool, Float, Tensor


class PartialTransport(nn.Module):
    """Cost of the entropic partial transport plan between predictions and targets, under a learned diagonal metric.

    The cost of a pair of unit vectors is half their squared distance, each coordinate with its own weight: 1 - cosine
    while all weights are 1, as at the start. The plan is taken as given in the backward pass, which is the gradient
    of the penalised optimum (envelope theorem).

    Deviation: weights are kept at a mean of 1; without that, all weights 0 would be the best metric.

    Args:
        embedding_dim: Width of the teacher's embeddings.
        regularisation: Weight of the plan's entropy.
        mass: Share of the batch that is moved.
        iterations: Steps of the plan's solver.

    Source: Chen et al. 2025 (arXiv 2509.09064) for its use; Benamou et al. 2015 (SIAM J. Sci. Comput. 37(2)),
    proposition 5, for the plan.
    """

    def __init__(self, embedding_dim: int, *, regularisation: float, mass: float, iterations: int) -> None:
        super().__init__()
        self.regularisation = regularisation
        self.mass = mass
        self.iterations = iterations
        self.metric = nn.Parameter(torch.zeros(embedding_dim))

    def forward(
        self,
        predictions: Float[Tensor, "s e"],
        targets: Float[Tensor, "s e"],
        *,
        duplicate: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the cost of the plan.

        Args:
            predictions: One embedding a slice; normalised here.
            targets: The teacher's embeddings of the slices; normalised here.
            duplicate: Without effect, as transport has no negatives.
        """
        with torch.autocast(predictions.device.type, enabled=False):
            cost = self._cost(unit(predictions), unit(targets))
            plan = partial_plan(
                cost.detach(), regularisation=self.regularisation, mass=self.mass, iterations=self.iterations
            )
            return (plan * cost).sum()

    def _cost(self, ours: Float[Tensor, "s e"], theirs: Float[Tensor, "t e"]) -> Float[Tensor, "s t"]:
        weights = self.metric.softmax(dim=0) * len(self.metric)
        lengths = (ours.square() @ weights)[:, None] + theirs.square() @ weights
        return (lengths / 2 - ours * weights @ theirs.T).clamp(min=0)


def partial_plan(
    cost: Float[Tensor, "s t"], *, regularisation: float, mass: float, iterations: int
) -> Float[Tensor, "s t"]:
    """The entropic partial transport plan between two uniform distributions.

    Dykstra's projections onto "no row gives more than 1 / s", "no column takes more than 1 / t" and "the whole is
    `mass`", in turn. Each is a scaling, so that a logarithm for each row, for each column and for the whole is all
    there is to remember, and nothing can underflow.

    Args:
        cost: Of moving a unit of mass from a row to a column.
        regularisation: Weight of the entropy.
        mass: To be moved, 1 at most.
        iterations: Rounds of the three projections.
    """
    kernel = -cost / regularisation
    rows, columns = kernel.new_zeros(len(kernel), 1), kernel.new_zeros(1, kernel.shape[1])
    most_of_row, most_of_column, all_of_it = -math.log(len(kernel)), -math.log(kernel.shape[1]), math.log(mass)
    whole = all_of_it - kernel.logsumexp(dim=(0, 1))
    for _ in range(iterations):
        rows = (most_of_row - (kernel + columns).logsumexp(dim=1, keepdim=True) - whole).clamp(max=0)
        given = kernel + rows
        columns = (most_of_column - given.logsumexp(dim=0, keepdim=True) - whole).clamp(max=0)
        whole = all_of_it - (given + columns).logsumexp(dim=(0, 1))
    return (kernel + rows + columns + whole).exp()
