"""One alignment for each of several teachers: towers that know different things teach the same vectors."""

from collections.abc import Sequence

from torch import nn

from m3di.config import ObjectiveConfig
from m3di.training.objectives.objective import PooledObjective
from m3di.types import Float, Int64, Tensor


class TeachersObjective(nn.Module):
    """Alignment of slices' vectors with the rows of several teachers, each as much as the others.

    The vectors are the first teacher's, so that they can be compared with its rows directly; those of each further
    teacher are a linear map of them, which is learnt and used in training only.

    Args:
        config: Kind and weights, the same for all.
        embedding_dims: Width of each teacher's embeddings, the first one's first.
    """

    def __init__(self, config: ObjectiveConfig, embedding_dims: Sequence[int]) -> None:
        super().__init__()
        self.embedding_dims = tuple(embedding_dims)
        first, *further = self.embedding_dims
        self.maps = nn.ModuleList([nn.Identity(), *(nn.Linear(first, dim) for dim in further)])
        self.alignments = nn.ModuleList(PooledObjective(config, dim) for dim in self.embedding_dims)

    def forward(
        self,
        vectors: Float[Tensor, "s e"],
        targets: Float[Tensor, "s 2 total"],
        *,
        planes: Int64[Tensor, " s"],
        slices: Int64[Tensor, " s"],
        volumes: Int64[Tensor, " s"],
    ) -> dict[str, Tensor]:
        """Return the weighted terms by name: `image_loss`, `text_loss`, then `image_loss_2`, `text_loss_2` and so on.

        The terms are divided by the number of teachers, so that they weigh as much as one teacher's would.

        Args:
            vectors: The model's vector of each slice of the whole batch.
            targets: The teachers' image and text rows of each, side by side.
            planes: Plane number of each.
            slices: Position of each in its volume.
            volumes: Number of the volume of each.
        """
        terms: dict[str, Tensor] = {}
        rows = targets.split(self.embedding_dims, dim=-1)
        for number, (project, align, own) in enumerate(zip(self.maps, self.alignments, rows, strict=True), start=1):
            found: dict[str, Tensor] = align(project(vectors), own, planes=planes, slices=slices, volumes=volumes)
            ending = "" if number == 1 else f"_{number}"
            terms |= {f"{name}{ending}": loss / len(rows) for name, loss in found.items()}
        return terms
