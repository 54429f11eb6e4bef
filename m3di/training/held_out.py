"""A look at held-out volumes during pretraining: do their slices' vectors find the teacher's, and the place?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from m3di.evaluation.localisation import LocalisationScores, score_localisation
from m3di.evaluation.retrieval import RetrievalScores, held_out_slices, score_retrieval
from m3di.training.distributed import World
from m3di.types import Float, Int64, Tensor
from stores import Store
from stores.embeddings import EmbeddingStore

SLICES_PER_PLANE = 8  # held-out slices of each plane and volume that take part

# (cube, planes, slices, voxel_mm) -> the vectors of one volume's slices
Vectors = Callable[[Tensor, Tensor, Tensor, Tensor | None], Float[Tensor, "s e"]]


@dataclass(frozen=True)
class HeldOutScores:
    """What the look found: retrieval among all held-out slices, and localisation in each volume."""

    retrieval: RetrievalScores
    localisation: LocalisationScores

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"retrieval": asdict(self.retrieval), "localisation": asdict(self.localisation)}


@dataclass(frozen=True, eq=False)
class _Slices:
    """The slices of one volume: what the model makes of them, what the teacher did, and where they are."""

    predictions: Float[Tensor, "s e"]
    targets: Float[Tensor, "s 2 e"]
    planes: Int64[Tensor, " s"]
    positions: Int64[Tensor, " s"]


@torch.no_grad()
def look(
    vectors: Vectors, modules: nn.Module, store: Store, held_out: EmbeddingStore, *,
    voxel_mm: Float[Tensor, " n"] | None = None, world: World,
) -> HeldOutScores:  # fmt: skip
    """Score the held-out volumes, each process its share of them.

    Args:
        vectors: The model's forward pass over one volume.
        modules: What it uses, to be in evaluation mode meanwhile.
        store: Holds the cubes.
        held_out: Rows of the held-out volumes.
        voxel_mm: Edge of the voxels of every held-out volume; None where the model does not ask.
        world: The processes; all get the scores of all volumes.
    """
    modules.eval()
    own = [_slices(vectors, store, held_out, volume, voxel_mm) for volume in world.part(range(len(held_out)))]
    modules.train()
    every = [slices for share in world.collect(own) for slices in share]
    predictions, targets, planes, positions = (
        torch.cat([getattr(slices, name) for slices in every])
        for name in ("predictions", "targets", "planes", "positions")
    )
    volumes = torch.arange(len(every)).repeat_interleave(torch.tensor([len(slices.planes) for slices in every]))
    size = store.recipe.cube_size
    return HeldOutScores(
        score_retrieval(predictions, targets, planes, positions, cube_size=size),
        score_localisation(
            predictions, targets[:, 0], planes=planes, positions=positions, volumes=volumes, cube_size=size
        ),
    )


def _slices(
    vectors: Vectors, store: Store, held_out: EmbeddingStore, volume: int, voxel_mm: Float[Tensor, " n"] | None
) -> _Slices:
    planes, positions = held_out_slices(held_out.index, volume, per_plane=SLICES_PER_PLANE)
    cube = torch.from_numpy(store.volumes.read("image", int(held_out.index.slots[volume])))[None, None]
    voxel = None if voxel_mm is None else voxel_mm[volume : volume + 1]
    predictions = vectors(cube, planes[None], positions[None], voxel)
    rows = held_out.gather(np.array([volume]), planes[None].numpy(), positions[None].numpy())[0]
    return _Slices(predictions.float().cpu(), torch.from_numpy(rows), planes, positions)
