"""3D TransUNet's mask decoder: learned queries look at the maps of a U-Net; each becomes a mask and a class.

Written from the papers (Chen et al. 2023, arXiv 2310.07781, section 3.3; Cheng et al. 2022, Mask2Former, arXiv
2112.01527) and from measured facts of the reference implementation (github.com/Beckschen/3D-TransUNet, Apache 2.0).
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.networks.encoders import require_heads
from m3di.types import Bool, Float, Tensor
from stores.errors import RefusedError

NUM_HEADS: Final = 8
NUM_LEVELS: Final = 3
MLP_RATIO: Final = 8
NUM_GROUPS: Final = 32
LAYER_SCALE: Final = 0.1  # for its reason see `transunet.LAYER_SCALE`
TEMPERATURE: Final = 10_000
SMALLEST_SCORE: Final = 1e-6


class MaskDecoder(nn.Module):
    """Queries that attend to three maps in turn, within the masks which they have so far (coarse to fine).

    Before the first layer and after each, a query gives a mask by its product with the finest map, and a distribution
    over the classes and "nothing". The logits are log(sum over queries of p(class) p(mask)): their softmax is the
    reference's prediction, scaled to a sum of 1.

    Deviation: the reference matches queries to classes (Hungarian) and has losses a query; here the loss of all
    networks is taken on the logits, which need no matching.
    Deviation: layer scales weigh the residual branches of self-attention and MLP, where the reference weighs the sum
    before the MLP's norm.

    Args:
        widths: Channels of the U-Net's maps, finest first.
        num_classes: Number of classes, background included.
        num_queries: Number of queries.
        width: Their channels.
        num_layers: Number of layers; each attends to one of the maps at 1/8, 1/4, 1/2 of the cube's edge in turn.

    Raises:
        RefusedError: E_NETWORK, for channels that heads and positions do not divide, or no layers.
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int, *, num_queries: int, width: int, num_layers: int
    ) -> None:
        super().__init__()
        _require_sizes(width=width, num_layers=num_layers, num_queries=num_queries)
        levels = min(NUM_LEVELS, num_layers, len(widths) - 1)
        self.levels = tuple(range(levels, 0, -1))  # the coarsest first, none at full size
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.Conv3d(widths[level], width, kernel_size=1), nn.GroupNorm(_groups(width), width))
            for level in self.levels
        )
        self.level = nn.Parameter(torch.randn(levels, width))
        self.query = nn.Parameter(torch.randn(num_queries, width))
        self.position = nn.Parameter(torch.randn(num_queries, width))
        self.layers = nn.ModuleList(QueryLayer(width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, num_classes + 1)
        self.to_mask = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.of_voxels = nn.Linear(widths[0], width)

    def forward(self, maps: Sequence[Tensor], *, every_layer: bool) -> list[Float[Tensor, "b _ d h w"]]:
        """Return the logits of the last layer, after those of the queries and of the other layers if `every_layer`.

        Args:
            maps: Maps of the U-Net, finest first.
            every_layer: Whether all logits are wanted.
        """
        seen = [look(maps[level]) for look, level in zip(self.inputs, self.levels, strict=True)]
        queries = self.query.expand(len(maps[0]), -1, -1)
        masks = self._masks(queries, maps[0])
        logits = [self._logits(queries, masks)] if every_layer else []
        for number, layer in enumerate(self.layers):
            turn = number % len(seen)
            memory = seen[turn].flatten(2).transpose(1, 2) + self.level[turn]
            place = positions(seen[turn])
            hidden = hidden_cells(masks, seen[turn].shape[2:])
            queries = layer(queries, memory, place=place, position=self.position, hidden=hidden)
            masks = self._masks(queries, maps[0])
            if every_layer or number == len(self.layers) - 1:
                logits.append(self._logits(queries, masks))
        return logits

    def _masks(
        self, queries: Float[Tensor, "b q c"], finest: Float[Tensor, "b _ d h w"]
    ) -> Float[Tensor, "b q d h w"]:
        """Return the mask logits of the queries.

        The product of a query with a linear map of the voxels is that of a linear map of the query with the voxels:
        so the voxels' map of 192 channels at full size is never made.
        """
        mask = self.to_mask(self.norm(queries))
        of_voxel = torch.einsum("bqe,ec->bqc", mask, self.of_voxels.weight)
        offset = mask @ self.of_voxels.bias
        return torch.einsum("bqc,bcdhw->bqdhw", of_voxel, finest) + offset[..., None, None, None]

    def _logits(
        self, queries: Float[Tensor, "b q c"], masks: Float[Tensor, "b q d h w"]
    ) -> Float[Tensor, "b _ d h w"]:
        classes = self.classify(self.norm(queries)).softmax(dim=-1)[..., :-1]
        scores = torch.einsum("bqk,bqdhw->bkdhw", classes, masks.sigmoid())
        return (scores.float() + SMALLEST_SCORE).log()


class QueryLayer(nn.Module):
    """Attention of queries to a map, to each other, and an MLP; each added and then normalised.

    Args:
        width: Channels of a query.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.MultiheadAttention(width, NUM_HEADS, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.exchange = nn.MultiheadAttention(width, NUM_HEADS, batch_first=True)
        self.scale2 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.ReLU(), nn.Linear(MLP_RATIO * width, width))
        self.scale3 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        memory: Float[Tensor, "b n c"],
        *,
        place: Float[Tensor, "n c"],
        position: Float[Tensor, "q c"],
        hidden: Bool[Tensor, "b q n"],
    ) -> Float[Tensor, "b q c"]:
        """Update the queries.

        Args:
            queries: To update.
            memory: Cells of a map.
            place: Where the cells are.
            position: The queries' counterpart of it.
            hidden: Cells that a query must not see.
        """
        mask = hidden.repeat_interleave(NUM_HEADS, dim=0)
        seen, _ = self.look(queries + position, memory + place, memory, attn_mask=mask, need_weights=False)
        queries = self.norm1(queries + seen)
        placed = queries + position
        said, _ = self.exchange(placed, placed, queries, need_weights=False)
        queries = self.norm2(queries + self.scale2 * said)
        return self.norm3(queries + self.scale3 * self.mlp(queries))


@torch.no_grad()
def hidden_cells(masks: Float[Tensor, "b q _ _ _"], grid: Sequence[int]) -> Bool[Tensor, "b q n"]:
    """Say which cells of a map lie outside of each query's mask. A mask without any cell hides none."""
    outside = F.interpolate(masks.detach(), size=tuple(grid), mode="trilinear").flatten(2) < 0
    return outside & ~outside.all(dim=-1, keepdim=True)


def positions(features: Float[Tensor, "b c d h w"]) -> Float[Tensor, "n c"]:
    """Sines and cosines of where each cell is along each axis, from over 0 to 2 pi at the end, a third each.

    Deviation: the reference divides the frequencies by threes, though they come in pairs; here they come in pairs.
    """
    share = features.shape[1] // 3
    frequency = TEMPERATURE ** -(torch.arange(0, share, 2, device=features.device) / share)
    parts = []
    for axis, edge in enumerate(features.shape[2:]):
        angle = 2 * math.pi * torch.arange(1, edge + 1, device=features.device)[:, None] / edge * frequency
        waves = torch.cat([angle.sin(), angle.cos()], dim=-1)
        shape = [edge if number == axis else 1 for number in range(3)]
        parts.append(waves.view(*shape, share).expand(*features.shape[2:], share))
    return torch.cat(parts, dim=-1).flatten(0, 2)


def _groups(width: int) -> int:
    return math.gcd(NUM_GROUPS, width)


def _require_sizes(*, width: int, num_layers: int, num_queries: int) -> None:
    require_heads("transunet's mask decoder", widths=[width], num_heads=[NUM_HEADS])
    if width % 6 or num_layers < 1 or num_queries < 1:
        message = f"transunet: mask_dim {width}, mask_layers {num_layers}, num_queries {num_queries}"
        raise RefusedError(
            "E_NETWORK", message, hint="use a mask_dim that is a multiple of 24, and 1 or more of both"
        )
