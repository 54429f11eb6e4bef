"""Slice retrieval on held-out volumes: does the encoder's vector for a slice find the teacher's?"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from m3di.types import Float, Int64, Tensor
from stores.index import StoreIndex

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalScores:
    """Retrieval among all held-out slices.

    Attributes:
        num_slices: How many slices were candidates.
        recall: Share of slices whose own target is among the first 1, 5 and 10; image and text targets.
        chance: What a random order gives.
        plane_accuracy: Share of nearest image targets that lie in the right plane.
        position_error: Mean distance of the nearest image target in the cube, where the plane is right, as a share
            of the cube's edge.
    """

    num_slices: int
    recall: dict[str, dict[str, float]]
    chance: dict[str, float]
    plane_accuracy: float
    position_error: float


def score_retrieval(
    predictions: Float[Tensor, "s e"],
    targets: Float[Tensor, "s 2 e"],
    planes: Int64[Tensor, " s"],
    positions: Int64[Tensor, " s"],
    *,
    cube_size: int,
) -> RetrievalScores:
    """Score predictions against image and text targets of the same slices.

    A slice's text counts as found when an equal text is: slices share captions.
    """
    predictions = F.normalize(predictions.float(), dim=-1)
    similarity = [predictions @ F.normalize(targets[:, part].float(), dim=-1).T for part in (0, 1)]
    nearest = similarity[0].argmax(dim=1)
    right_plane = planes[nearest] == planes
    distance = (positions[nearest] - positions).abs()[right_plane].float() / cube_size
    total = len(predictions)
    return RetrievalScores(
        num_slices=total,
        recall={"image": _recall(similarity[0]), "text": _recall(similarity[1])},
        chance={str(k): min(k / total, 1.0) for k in RECALL_AT},
        plane_accuracy=float(right_plane.float().mean()),
        position_error=float(distance.mean()) if right_plane.any() else float("nan"),
    )


def held_out_slices(index: StoreIndex, volume: int, *, per_plane: int) -> tuple[Tensor, Tensor]:
    """Planes and positions of at most `per_plane` evenly spread valid slices of each plane of a volume."""
    bits = index.bits(torch.tensor([volume]).numpy())[0]
    planes, positions = [], []
    for plane in range(3):
        valid = torch.from_numpy(bits[plane]).nonzero().flatten()
        chosen = torch.linspace(0, len(valid) - 1, min(per_plane, len(valid))).round().long()
        planes.append(torch.full_like(chosen, plane))
        positions.append(valid[chosen])
    return torch.cat(planes), torch.cat(positions)


def _recall(similarity: Float[Tensor, "s t"]) -> dict[str, float]:
    """Share of rows whose own column is within the first k; columns as similar as the own one do not count against.

    Equal texts have equal columns, so a tie is a hit.
    """
    own = similarity.diagonal().unsqueeze(1)
    better = (similarity > own + 1e-6).sum(dim=1)
    return {str(k): float((better < k).float().mean()) for k in RECALL_AT}
