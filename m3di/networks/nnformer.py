"""nnFormer: a U-shaped transformer of window attention over volumes, as encoder and as decoder.

Written from the paper (Zhou et al. 2021, arXiv 2109.03201) and from measured facts of its reference implementation
(github.com/282857341/nnFormer, MIT), whose weights load through `m3di.networks.weights`. What the reference does and
the paper does not say, and what is kept because weights depend on it, is marked "Reference:".

Deviation: no stochastic depth (the reference drops up to 20 % of the residual branches in training), as no other
encoder here draws random numbers in its forward pass.
"""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.networks.encoders import (
    EncoderOutput,
    map_to_tokens,
    require_heads,
    require_multiple,
    require_per_stage,
    run_block,
)
from m3di.networks.segmentation import SegmentationOutput, halved_weights
from m3di.types import Bool, Float, Int64, Tensor
from stores.errors import RefusedError

NUM_STAGES: Final = 4
MLP_RATIO: Final = 4
TABLE_STD: Final = 0.02

Grid = tuple[int, int, int]


class NNFormerEncoder(nn.Module):
    """Four stages of window attention over overlapping patches; the tokens are the coarsest stage.

    The defaults are the reference's "tumor" configuration: 29,835,846 parameters at 128^3, whose pyramid is
    (96, 32^3), (192, 16^3), (384, 8^3), (768, 4^3).

    Reference: where a grid is no larger than a stage's window, one window of the grid's size covers it. So the tables
    of the last stages, and with them the number of parameters, depend on the cube's size.

    The reference's ACDC configuration, of 14 x 160 x 160 voxels and patches of 1 x 4 x 4, is no cube and not offered.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 8 * the longest edge of a patch.
        in_channels: Channels of the volume; 1 for all that m3di reads, 4 to load the reference's tumor weights.
        embed_dim: Channels of the finest stage; they double from stage to stage.
        depths: Number of blocks of each stage; every second one shifts its windows.
        num_heads: Attention heads of each stage.
        patch_size: Edges of a patch, 2 or 4 voxels each.
        window_size: Edge of the windows of each stage, in tokens; they must divide the stage's grid.

    Attributes:
        checkpointing: Compute the blocks again in the backward pass to save memory; set it when training begins.

    Raises:
        RefusedError: E_NETWORK, when sizes do not fit together.
    """

    def __init__(
        self,
        *,
        cube_size: int,
        in_channels: int = 1,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        patch_size: Sequence[int] = (4, 4, 4),
        window_size: Sequence[int] = (4, 4, 8, 4),
    ) -> None:
        super().__init__()
        require_per_stage(
            "nnformer", num_stages=NUM_STAGES, depths=depths, num_heads=num_heads, window_size=window_size
        )
        _require_patches(patch_size)
        require_multiple("nnformer", cube_size=cube_size, factor=max(patch_size) * 2 ** (NUM_STAGES - 1))
        self.checkpointing = False
        self.cube_size = cube_size
        d, h, w = patch_size
        self.patch_size = (d, h, w)
        self.window_size = tuple(window_size)
        self.widths = [embed_dim * 2**stage for stage in range(NUM_STAGES)]
        require_heads("nnformer", widths=self.widths, num_heads=num_heads)
        self.token_dim = self.widths[-1]
        self.token_stride = max(patch_size) * 2 ** (NUM_STAGES - 1)
        self.embed = PatchEmbedding(in_channels, embed_dim, patch_size=patch_size)
        self.stages = nn.ModuleList(
            blocks(
                self.widths[stage],
                num_heads=num_heads[stage],
                grid=self.grid(stage),
                window=window_size[stage],
                shifts=[i % 2 == 1 for i in range(depths[stage])],
            )
            for stage in range(NUM_STAGES)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in self.widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)

    def grid(self, stage: int) -> Grid:
        """Number of tokens along each axis at a stage, counted from the finest."""
        d, h, w = (self.cube_size // (edge << stage) for edge in self.patch_size)
        return d, h, w

    def forward(self, volume: Float[Tensor, "b _ d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        features = self.embed(volume)
        pyramid = []
        for number, stage in enumerate(self.stages):
            for block in stage.children():
                features = run_block(block, features, checkpointing=self.checkpointing)
            pyramid.append(self.norms[number](features).movedim(-1, 1))
            if number < NUM_STAGES - 1:
                features = self.merges[number](features)
        return EncoderOutput(map_to_tokens(pyramid[-1]), self.grid(NUM_STAGES - 1), pyramid)


class NNFormerDecoder(nn.Module):
    """Three stages that double the resolution, each asking the encoder's skip by attention; then logits.

    The defaults are the reference's "tumor" configuration: 7,742,412 parameters and 24,580 of the map to 4 classes.

    Args:
        encoder: Encoder whose pyramid is decoded.
        num_classes: Number of classes, background included.
        decoder_heads: Attention heads of each stage, finest first.
        deep_supervision: Also give logits of the two coarser stages, at half and at quarter size, in training.

    Attributes:
        auxiliary_weights: A half and a quarter with deep supervision, as the reference halves its weights from level
            to level.
        checkpointing: Compute the blocks again in the backward pass to save memory; set it when training begins.

    Raises:
        RefusedError: E_NETWORK, if heads do not divide the channels.
    """

    def __init__(
        self,
        encoder: NNFormerEncoder,
        num_classes: int,
        *,
        decoder_heads: Sequence[int] = (6, 12, 24),
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        num_stages = NUM_STAGES - 1
        require_per_stage("nnformer's decoder", num_stages=num_stages, decoder_heads=decoder_heads)
        self.checkpointing = False
        widths = encoder.widths[:num_stages]
        require_heads("nnformer's decoder", widths=widths, num_heads=decoder_heads)
        self.stages = nn.ModuleList(
            DecoderStage(
                widths[stage],
                num_heads=decoder_heads[stage],
                grid=encoder.grid(stage),
                window=encoder.window_size[stage],
            )
            for stage in range(num_stages)
        )
        heads = widths if deep_supervision else widths[:1]
        self.auxiliary_weights = halved_weights(len(heads) - 1)
        self.heads = nn.ModuleList(
            nn.ConvTranspose3d(width, num_classes, kernel_size=encoder.patch_size, stride=encoder.patch_size)
            for width in heads
        )

    def forward(self, volume: Float[Tensor, "b _ d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return the logits, and those at half and quarter size in training with deep supervision."""
        first, *others = zip(self.heads, self._decode(encoded), strict=False)
        auxiliary = tuple(head(features) for head, features in others) if self.training else ()
        return SegmentationOutput(first[0](first[1]), auxiliary)

    def _decode(self, encoded: EncoderOutput) -> list[Float[Tensor, "b _ _ _ _"]]:
        """Return the feature maps of the stages, finest first."""
        *skips, features = [level.movedim(1, -1) for level in encoded.pyramid]
        decoded: list[Tensor] = []
        for stage, skip in zip(reversed(self.stages), reversed(skips), strict=True):
            features = stage(features, skip, checkpointing=self.checkpointing)
            decoded.insert(0, features.movedim(-1, 1))
        return decoded


class PatchEmbedding(nn.Module):
    """Overlapping patches by two pairs of convolutions, each pair halving the resolution (at most) once.

    Args:
        in_channels: Channels of the volume.
        width: Channels of a token.
        patch_size: Edges of a patch, 2 or 4 voxels each.
    """

    def __init__(self, in_channels: int, width: int, *, patch_size: Sequence[int]) -> None:
        super().__init__()
        half = width // 2
        d, h, w = (edge // 2 for edge in patch_size)
        self.convolutions = nn.ModuleList(
            (
                nn.Conv3d(in_channels, half, kernel_size=3, stride=2, padding=1),
                nn.Conv3d(half, half, kernel_size=3, padding=1),
                nn.Conv3d(half, width, kernel_size=3, stride=(d, h, w), padding=1),
                nn.Conv3d(width, width, kernel_size=3, padding=1),
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in (half, half, width, width))

    def forward(self, volume: Float[Tensor, "b _ d h w"]) -> Float[Tensor, "b _ _ _ c"]:
        """Embed; the last convolution has no activation."""
        features = volume
        last = len(self.convolutions) - 1
        for number, (convolve, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            features = convolve(features)
            if number < last:
                features = F.gelu(features)
            features = norm(features.movedim(1, -1)).movedim(-1, 1)
        return features.movedim(1, -1)


class PatchMerging(nn.Module):
    """Halve the resolution and double the channels by a strided convolution.

    Args:
        width: Channels before.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.reduction = nn.Conv3d(width, 2 * width, kernel_size=3, stride=2, padding=1)

    def forward(self, features: Float[Tensor, "b d h w c"]) -> Float[Tensor, "b _ _ _ 2*c"]:
        """Merge. Reference: the activation comes before the norm."""
        return self.reduction(self.norm(F.gelu(features)).movedim(-1, 1)).movedim(1, -1)


class DecoderStage(nn.Module):
    """Double the resolution, fetch the skip by attention, then a block of shifted windows.

    Args:
        width: Channels of the stage, half of those that come from below.
        num_heads: Attention heads.
        grid: Tokens along each axis, after doubling.
        window: Edge of a window.
    """

    def __init__(self, width: int, *, num_heads: int, grid: Grid, window: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.expand = nn.ConvTranspose3d(2 * width, width, kernel_size=2, stride=2)
        fetch, refine = blocks(width, num_heads=num_heads, grid=grid, window=window, shifts=[False, True], fetch=1)
        self.fetch = fetch
        self.refine = refine

    def forward(
        self, features: Float[Tensor, "b _ _ _ _"], skip: Float[Tensor, "b d h w c"], *, checkpointing: bool
    ) -> Float[Tensor, "b d h w c"]:
        """Decode one level."""
        features = self.expand(self.norm(features).movedim(-1, 1)).movedim(1, -1)
        features = run_block(self.fetch, features, skip, checkpointing=checkpointing)
        return run_block(self.refine, features, checkpointing=checkpointing)


class WindowBlock(nn.Module):
    """Attention within windows, then an MLP; both residual and with their norm first.

    With `fetch`, tokens attend to a skip: the tokens themselves are the queries, without a map of their own, and
    keys and values come from the skip, which is also added to the tokens (paper, "skip attention").

    Args:
        width: Channels.
        num_heads: Attention heads; divide `width`.
        grid: Tokens along each axis.
        window: Edge of a window; divides the grid.
        shift: Whether windows are displaced by half their size.
        fetch: Whether to attend to a skip.
    """

    def __init__(
        self, width: int, *, num_heads: int, grid: Grid, window: int, shift: bool = False, fetch: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.shift = window // 2 if shift else 0
        self.norm1 = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, (2 if fetch else 3) * width)
        self.table = nn.Parameter(torch.empty((2 * window - 1) ** 3, num_heads))
        nn.init.trunc_normal_(self.table, std=TABLE_STD)
        self.project_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width))
        self.index: Tensor
        self.apart: Tensor | None
        self.register_buffer("index", relative_position_index(window), persistent=False)
        apart = regions_apart(grid, window, self.shift) if self.shift else None
        self.register_buffer("apart", apart, persistent=False)

    def forward(
        self, features: Float[Tensor, "b d h w c"], skip: Float[Tensor, "b d h w c"] | None = None
    ) -> Float[Tensor, "b d h w c"]:
        """Update the tokens."""
        normed = self._roll(self.norm1(features), -self.shift)
        if skip is None:
            query, key, value = self.project_in(normed).chunk(3, dim=-1)
        else:
            key, value = self.project_in(self._roll(self.norm1(skip), -self.shift)).chunk(2, dim=-1)
            query, features = normed, features + skip
        attended = self._attend(query, key, value)
        features = features + self._roll(self.project_out(attended), self.shift)
        return features + self.mlp(self.norm2(features))

    def _attend(
        self, query: Float[Tensor, "b d h w c"], key: Float[Tensor, "b d h w c"], value: Float[Tensor, "b d h w c"]
    ) -> Float[Tensor, "b d h w c"]:
        grid = query.shape[1:4]
        query, key, value = (self._windows(t).to(value.dtype) for t in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(query))
        return _join(attended, grid, window=self.window, num_heads=self.num_heads)

    def _bias(self, query: Float[Tensor, "b g n _"]) -> Float[Tensor, "1 g n n"]:
        """Relative position bias of each (window, head), with -inf between regions that do not belong together."""
        bias = F.embedding(self.index, self.table).permute(2, 0, 1).to(query.dtype)
        num_windows = query.shape[1] // self.num_heads
        bias = bias.expand(num_windows, -1, -1, -1)
        if self.apart is not None:
            bias = bias.masked_fill(self.apart[:, None], -torch.inf)
        return bias.flatten(0, 1)[None]

    def _windows(self, features: Float[Tensor, "b d h w c"]) -> Float[Tensor, "b g n _"]:
        return _split(features, window=self.window, num_heads=self.num_heads)

    def _roll(self, features: Float[Tensor, "b d h w c"], shift: int) -> Float[Tensor, "b d h w c"]:
        return features.roll((shift,) * 3, dims=(1, 2, 3)) if shift else features


def blocks(
    width: int, *, num_heads: int, grid: Grid, window: int, shifts: Sequence[bool], fetch: int = 0
) -> nn.ModuleList:
    """Build the blocks of a stage, the first `fetch` of which attend to a skip.

    Raises:
        RefusedError: E_NETWORK, if windows do not divide the grid.
    """
    one_window = min(grid) <= window
    window = min(grid) if one_window else window
    if any(edge % window for edge in grid):
        message = f"nnformer: windows of {window} tokens do not divide a grid of {'x'.join(map(str, grid))}"
        raise RefusedError("E_NETWORK", message, hint="choose another cube, or window_size for each of the 4 stages")
    return nn.ModuleList(
        WindowBlock(
            width, num_heads=num_heads, grid=grid, window=window, shift=shift and not one_window, fetch=number < fetch
        )
        for number, shift in enumerate(shifts)
    )


def relative_position_index(window: int) -> Int64[Tensor, "n n"]:
    """Row of the bias table for each pair of tokens of a window, first axis slowest.

    Reference: the strides are 3W - 1, 2W - 1 and 1, where 2W - 1 squared would give each displacement a row of its
    own; so some displacements share a row and others go unused. Trained tables are laid out this way.
    """
    steps = torch.arange(window)
    place = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).flatten(1)
    displacement = place[:, :, None] - place[:, None] + window - 1
    strides = torch.tensor([3 * window - 1, 2 * window - 1, 1])
    return (displacement * strides[:, None, None]).sum(0)


def regions_apart(grid: Grid, window: int, shift: int) -> Bool[Tensor, "windows n n"]:
    """Say which tokens of a window of the shifted grid were no neighbours before it was rolled round its edges."""
    wrapped = [torch.arange(edge) >= edge - shift for edge in grid]
    d, h, w = torch.meshgrid(*wrapped, indexing="ij")
    region = (4 * d + 2 * h + w).float()[None, ..., None]
    of_window = _split(region, window=window, num_heads=1)[0, ..., 0]
    return of_window[:, :, None] != of_window[:, None]


def _split(features: Float[Tensor, "b d h w c"], *, window: int, num_heads: int) -> Float[Tensor, "b _ _ _"]:
    """List windows and heads together on one axis, so that a bias for each of them serves the whole batch."""
    b, d, h, w, _ = features.shape
    parts = features.view(b, d // window, window, h // window, window, w // window, window, num_heads, -1)
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).flatten(5, 7).flatten(1, 4)


def _join(
    attended: Float[Tensor, "b g n _"], grid: Sequence[int], *, window: int, num_heads: int
) -> Float[Tensor, "b d h w c"]:
    """Put windows and heads back in their places: the inverse of `_split`."""
    d, h, w = (edge // window for edge in grid)
    parts = attended.reshape(attended.shape[0], d, h, w, num_heads, window, window, window, -1)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).flatten(7, 8).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _require_patches(patch_size: Sequence[int]) -> None:
    if len(patch_size) != 3 or any(edge not in (2, 4) for edge in patch_size):
        message = f"nnformer needs patches with three edges of 2 or 4 voxels, not {list(patch_size)}"
        raise RefusedError("E_NETWORK", message, hint="for example patch_size [4, 4, 4]")
