"""Dense targets: the tokens of a volume, where a slice passes, against the teacher's patch features of that slice.

Pooled targets teach gist and position; these teach what is where, for any plane and any token grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import nn

from m3di.training.objectives.infonce import INITIAL_LOGIT_SCALE, clamped_scale, pair_losses
from m3di.training.objectives.vectors import unit, widen
from m3di.types import Bool, Float, Int64, Tensor
from stores.geometry import NORMAL_AXIS

# As a slice, a patch is blank when less than so large a share of it is brighter than so much (m3di.volumes.slices).
SIGNAL: Final = 0.05
MIN_SHARE: Final = 0.01

# Canonical axes along a plane's normal, and along the rows and columns of its images, both reversed
# (m3di.volumes.slices); then which of the three runs along canonical axis 0, 1, 2.
_DISPLAYED: Final = [[normal, *(axis for axis in (2, 1, 0) if axis != normal)] for normal in NORMAL_AXIS]
_ORDER: Final = [[displayed.index(axis) for axis in range(3)] for displayed in _DISPLAYED]


@dataclass(frozen=True)
class DenseSpec:
    """What a store's dense rows are.

    Attributes:
        grid: Rows and columns of patches of a slice, which share its whole image evenly.
        dim: Features of a patch.
    """

    grid: tuple[int, int]
    dim: int

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "DenseSpec":
        """Read the facts that a store keeps (`m3di.teachers.identity.dense_facts`)."""
        rows, columns = facts["grid"]
        return cls((rows, columns), facts["dim"])


class DenseObjective(nn.Module):
    """Distance of tokens, interpolated where patches are and mapped to their width, from the patches' features.

    Patches that show nothing are left out: their features are those of an empty image and say nothing of the place,
    and of cardiac MRI they were half of all. A patch shows something by the rule that makes a slice not blank.

    `cosine` is 1 - cosine. `infonce` tells each patch of a volume from the others of the same volume: what it learns
    is what differs within a body, and it does not depend on how a batch is cut into parts.

    Args:
        token_dim: Channels of the encoder's tokens.
        spec: The store's dense rows.
        cube_size: Edge of the cube, voxels.
        kind: `cosine` or `infonce`.
        hidden: Hidden width of the map from tokens to patches; 0 for a linear one.
    """

    def __init__(
        self,
        token_dim: int,
        spec: DenseSpec,
        *,
        cube_size: int,
        kind: Literal["cosine", "infonce"] = "cosine",
        hidden: int = 0,
    ) -> None:
        super().__init__()
        self.grid = spec.grid
        self.cube_size = cube_size
        self.head: nn.Module = nn.Linear(token_dim, spec.dim)
        if hidden:
            self.head = nn.Sequential(nn.Linear(token_dim, hidden), nn.GELU(), nn.Linear(hidden, spec.dim))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE)) if kind == "infonce" else None

    def forward(
        self,
        tokens: Float[Tensor, "b c d h w"],
        volumes: Float[Tensor, "b 1 x y z"],
        *,
        planes: Int64[Tensor, "b k"],
        slices: Int64[Tensor, "b k"],
        patches: Float[Tensor, "b k p f"],
    ) -> Float[Tensor, ""]:
        """Return the mean over the volumes of the mean over their patches that show something; 0 for a blank volume.

        Args:
            tokens: The volumes' tokens on their grid.
            volumes: The cubes, as the encoder saw them.
            planes: Plane number of each slice.
            slices: Position of each slice along its plane's normal, in cube voxels.
            patches: The teacher's patch features of each slice, row by row.
        """
        places = patch_places(planes, slices, grid=self.grid, cube_size=self.cube_size)
        predicted = self.head(sample_tokens(tokens, places.flatten(1, 2)))
        shown = shown_patches(volumes, planes, slices, grid=self.grid).flatten(1)
        with torch.autocast(volumes.device.type, enabled=False):
            losses = self._losses(unit(predicted), unit(patches).flatten(1, 2), shown)
            return ((losses * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)).mean()

    def _losses(
        self, predicted: Float[Tensor, "b m f"], patches: Float[Tensor, "b m f"], shown: Bool[Tensor, "b m"]
    ) -> Float[Tensor, "b m"]:
        if self.logit_scale is None:
            return 1 - (predicted * patches).sum(dim=-1)
        logits = clamped_scale(self.logit_scale) * predicted @ patches.transpose(1, 2)
        return pair_losses(logits, duplicate=~(shown[:, :, None] & shown[:, None]))


def patch_places(
    planes: Int64[Tensor, "b k"], slices: Int64[Tensor, "b k"], *, grid: tuple[int, int], cube_size: int
) -> Float[Tensor, "b k p 3"]:
    """Where the centres of a slice's patches are, along the canonical axes, 0 to 1 from edge to edge of the cube.

    Args:
        planes: Plane number of each slice.
        slices: Position of each slice along its plane's normal, in cube voxels.
        grid: Rows and columns of patches of a slice.
        cube_size: Edge of the cube, voxels.
    """
    num_rows, num_columns = grid
    along_rows = 1 - (torch.arange(num_rows, device=planes.device) + 0.5) / num_rows
    along_columns = 1 - (torch.arange(num_columns, device=planes.device) + 0.5) / num_columns
    depth = ((slices + 0.5) / cube_size)[..., None].expand(-1, -1, num_rows * num_columns)
    parts = torch.stack(
        [
            depth,
            along_rows.repeat_interleave(num_columns).expand_as(depth),
            along_columns.repeat(num_rows).expand_as(depth),
        ],
        dim=-1,
    )
    order = torch.tensor(_ORDER, device=planes.device)[planes]
    return parts.gather(-1, order[:, :, None].expand_as(parts))


def sample_tokens(tokens: Float[Tensor, "b c d h w"], places: Float[Tensor, "b m 3"]) -> Float[Tensor, "b m c"]:
    """Interpolate tokens trilinearly; beyond the centres of the outermost ones, those count alone.

    A product with the (m, tokens) weights: cheap for the few tokens of an encoder, and unlike the gradient of
    `F.grid_sample` the same at every run on CUDA.

    Args:
        tokens: Tokens on their grid, each the middle of its cell.
        places: Along the canonical axes, 0 to 1 from edge to edge.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        wide = widen(tokens)
        x, y, z = (_hats(places[..., axis].to(wide), wide.shape[2 + axis]) for axis in range(3))
        weights = (x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]).flatten(2)
        return weights @ wide.flatten(2).transpose(1, 2)


@torch.no_grad()
def shown_patches(
    volumes: Float[Tensor, "b 1 x y z"],
    planes: Int64[Tensor, "b k"],
    slices: Int64[Tensor, "b k"],
    *,
    grid: tuple[int, int],
) -> Bool[Tensor, "b k p"]:
    """Which patches show something: where enough of the cube's voxels that the patch lies on are bright enough."""
    bright = (volumes[:, 0] > SIGNAL).float()
    batch = torch.arange(len(bright), device=bright.device)[:, None]
    pictures = torch.stack(
        [bright.movedim(1 + normal, 1)[batch, slices].transpose(-1, -2) for normal in NORMAL_AXIS], dim=2
    )
    own = pictures.gather(2, planes[..., None, None, None].expand(-1, -1, 1, *pictures.shape[3:]))[:, :, 0]
    return (F.adaptive_avg_pool2d(own.flip(-1, -2), grid) >= MIN_SHARE).flatten(2)


def _hats(places: Float[Tensor, "b m"], count: int) -> Float[Tensor, "b m {count}"]:
    """Weights of linear interpolation among the middles of `count` cells."""
    cells = (places * count - 0.5).clamp(0, count - 1)
    return (1 - (cells[..., None] - torch.arange(count, device=places.device)).abs()).clamp(min=0)
