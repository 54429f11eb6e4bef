"""Where does a slice lie? Its embedding by the teacher, held against the model's for all places of its volume."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from m3di.types import Float, Int64, Tensor


@dataclass(frozen=True)
class LocalisationScores:
    """How well slices are found in their own volumes.

    Attributes:
        plane_accuracy: Share of slices whose nearest vector is one of the right plane.
        position_error: Mean distance to the nearest vector's place, where the plane is right, as a share of the
            cube's edge; None where none is.
        position_error_chance: The same, if a place among those of the right plane were drawn blindly.
    """

    plane_accuracy: float
    position_error: float | None
    position_error_chance: float


def score_localisation(
    predictions: Float[Tensor, "s e"],
    targets: Float[Tensor, "s e"],
    *,
    planes: Int64[Tensor, " s"],
    positions: Int64[Tensor, " s"],
    volumes: Int64[Tensor, " s"],
    cube_size: int,
) -> LocalisationScores:
    """Look for each slice of the teacher's among the predictions for its volume.

    Args:
        predictions: The model's vector for each slice.
        targets: The teacher's image embedding of each slice.
        planes: Plane of each slice.
        positions: Position of each slice in its cube.
        volumes: Volume of each slice, by number.
        cube_size: Edge of the cubes, voxels.
    """
    right, error, chance = [], [], []
    for volume in volumes.unique():
        own = volumes == volume
        plane, position = planes[own], positions[own]
        similarity = F.normalize(targets[own].float(), dim=-1) @ F.normalize(predictions[own].float(), dim=-1).T
        found = similarity.argmax(dim=1)
        distances = (position[:, None] - position).abs().double() / cube_size
        same_plane = plane[:, None] == plane
        right.append(plane[found] == plane)
        error.append(distances.gather(1, found[:, None])[:, 0])
        chance.append((distances * same_plane).sum(dim=1) / same_plane.sum(dim=1))
    hits = torch.cat(right)
    return LocalisationScores(
        plane_accuracy=float(hits.double().mean()),
        position_error=float(torch.cat(error)[hits].mean()) if hits.any() else None,
        position_error_chance=float(torch.cat(chance).mean()),
    )
