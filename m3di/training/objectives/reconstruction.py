"""Reconstruction: the cube rebuilt from its tokens, so that they keep what a teacher of slices does not name."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.training.objectives.vectors import widen
from m3di.types import Bool, Float, Tensor

MAX_DETAIL: Final = 8  # cells along an edge of a token's block: 512 numbers, about as many as a token has channels


class Reconstruction(nn.Module):
    """Mean squared error of the cells of each token's block, predicted by one linear map.

    A cell is a voxel, or, as no linear map makes more numbers out of a token than it has channels, the mean of the
    voxels of an eighth of the block's edge where that is more.

    Deviation: the journal version reconstructs through the segmentation network's full decoder. A linear map is a
    fraction of the cost, teaches the encoder rather than a decoder, and did no worse where both were compared
    (Xie et al. 2022, arXiv 2111.09886).

    Args:
        token_dim: Channels of the encoder's tokens.
        token_stride: Edge of a token's block, voxels; the longest one.
    """

    def __init__(self, token_dim: int, *, token_stride: int) -> None:
        super().__init__()
        self.detail = min(MAX_DETAIL, token_stride)
        self.head = nn.Linear(token_dim, self.detail**3)

    def forward(self, tokens: Float[Tensor, "b c d h w"], volumes: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, ""]:
        """Return the mean over the volumes of the mean over their cells that are no padding.

        Args:
            tokens: The volumes' tokens on their grid.
            volumes: The cubes to be rebuilt.
        """
        rebuilt = widen(self.rebuild(tokens))
        x, y, z = rebuilt.shape[2:]
        wanted = F.adaptive_avg_pool3d(widen(volumes), (x, y, z))
        within = scan_box(wanted)
        errors = (rebuilt - wanted).square() * within
        return (errors.sum(dim=(1, 2, 3, 4)) / within.sum(dim=(1, 2, 3, 4)).clamp(min=1)).mean()

    def rebuild(self, tokens: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b 1 u v t"]:
        """Predict the cells."""
        blocks = self.head(tokens.movedim(1, -1)).unflatten(-1, (self.detail,) * 3)
        return blocks.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, None]


@torch.no_grad()
def scan_box(volumes: Float[Tensor, "b 1 x y z"]) -> Bool[Tensor, "b 1 x y z"]:
    """The box about all voxels that are not 0: padding comes in whole sides of 0, and is outside of it."""
    box = torch.ones_like(volumes, dtype=torch.bool)
    for axis in (2, 3, 4):
        others = [other for other in (1, 2, 3, 4) if other != axis]
        used = (volumes != 0).sum(dim=others, keepdim=True)
        box &= (used.cumsum(dim=axis) > 0) & (used.flip(axis).cumsum(dim=axis).flip(axis) > 0)
    return box
