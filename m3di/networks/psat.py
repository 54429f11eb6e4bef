"""The Plane-Slice-Aware Transformer (PSAT; paper, section 2, "PSAT Alignment") for K slices a volume at once.

The literal form adds a slice's position to the volume tokens and attends to the sum, once a slice. Here the
volume's keys and values are computed once for all its slices, which is exact: one vector p added to all tokens
adds the same constant to all logits of a query, which the softmax ignores, and adds Wv p to every value, hence
to their weighted mean. It holds because no normalisation lies between adding p and the linear maps.
`tests/references/psat.py` is the literal form; a property test holds the two together.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.types import Float, Int64, Tensor
from stores.errors import RefusedError

MODES: Final = ("full", "no_position", "linear")
POOLINGS: Final = ("mean", "query0", "attention")
POSITIONS: Final = ("index", "mm")
NORMS: Final = ("pre", "post")
ACTIVATIONS: Final = {"gelu": nn.GELU, "relu": nn.ReLU}
MLP_RATIO: Final = 4
QUERY_STD = 0.02


class PlaneSliceAwareTransformer(nn.Module):
    """Predict the embedding of a slice from the tokens of its volume and the slice's place.

    Learnable queries, with the plane-slice embedding added, attend to each other, then to the volume tokens
    with the same embedding added, then pass an MLP; each step is residual and normalises its queries first, or, with
    `norm="post"`, what comes out.

    Deviation: the paper names no map from the encoder's channels to PSAT's width, which differ; there is a
    linear one. It does not say how Q outputs become one vector; `pooling` offers three ways.

    Args:
        token_dim: Channels of the encoder's tokens.
        embedding_dim: Channels of the teacher's embeddings.
        width: Channels inside.
        num_queries: Learnable queries (Q).
        num_heads: Attention heads.
        num_slices: Slice positions of a plane (J): the recipe's cube size.
        num_planes: Planes (I).
        mlp_dim: Hidden channels of the MLP; 0 for four times `width`.
        pooling: `mean` of all queries, `query0` alone (as in the author's later code), or `attention`, a
            learned weighted mean that starts as the mean.
        num_layers: Times that the three steps are repeated, each with its own weights.
        mode: Row of the paper's Table 3: `linear` (Ex1: mean token, linear map), `no_position` (Ex2: without
            plane-slice embedding) or `full` (Ex3).
        positions: How a slice's place is counted: by its `index` in the cube, or in `mm` from the cube's centre,
            between two entries of the table by linear interpolation. Cubes of unlike voxels then agree on places.
        extent_mm: What the table covers with `mm`; places beyond it are its ends.
        norm: `pre` or `post`: what a step normalises, its queries or its sum.
        activation: Of the MLP, `gelu` or `relu`.
        dropout: Of what a step adds. Attention weights keep their sum of 1, which the shared form rests on.
        position_std: Standard deviation of the plane-slice embedding at the start; the paper's is 0.

    Raises:
        RefusedError: E_CONFIG, for an unknown mode, pooling, kind of positions, norm or activation, no layer, or
            heads that do not divide the width.
    """

    def __init__(
        self,
        token_dim: int,
        *,
        embedding_dim: int = 512,
        width: int = 512,
        num_queries: int = 300,
        num_heads: int = 8,
        num_slices: int = 128,
        num_planes: int = 3,
        mlp_dim: int = 0,
        pooling: str = "mean",
        num_layers: int = 1,
        mode: str = "full",
        positions: str = "index",
        extent_mm: float = 400.0,
        norm: str = "pre",
        activation: str = "gelu",
        dropout: float = 0.0,
        position_std: float = 0.0,
    ) -> None:
        super().__init__()
        _require_choices(
            mode=(mode, MODES), pooling=(pooling, POOLINGS), positions=(positions, POSITIONS), norm=(norm, NORMS),
            activation=(activation, tuple(ACTIVATIONS)),
        )  # fmt: skip
        _require_sizes(width=width, num_heads=num_heads, num_layers=num_layers)
        self.mode = mode
        self.pooling = pooling
        self.positions = positions
        self.extent_mm = extent_mm
        if mode == "linear":
            self.projection = nn.Linear(token_dim, embedding_dim)
            return
        self.input_projection = nn.Linear(token_dim, width)
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        nn.init.trunc_normal_(self.queries, std=QUERY_STD)
        if mode == "full":
            self.position = nn.Parameter(torch.zeros(num_planes, num_slices, width))
            if position_std:
                nn.init.normal_(self.position, std=position_std)
        self.layers = nn.ModuleList(
            PSATLayer(
                width, num_heads=num_heads, mlp_dim=mlp_dim or MLP_RATIO * width, norm=norm, activation=activation,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(width)
        if pooling == "attention":
            self.pool_score = nn.Parameter(torch.zeros(width))
        self.projection = nn.Linear(width, embedding_dim)

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        plane: Int64[Tensor, "b k"],
        index: Int64[Tensor, "b k"],
        voxel_mm: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k e"]:
        """Predict the embeddings of K slices of each volume; they are not normalised, the loss does that.

        Args:
            tokens: Tokens of the volumes.
            plane: Plane of each slice, by its number in `stores.geometry.PLANES`.
            index: Position of each slice along its plane's normal, in cube voxels.
            voxel_mm: Edge of each cube's voxels; needed where positions are counted in mm.

        Raises:
            ValueError: When it is needed and left out.
        """
        num_slices = plane.shape[1]
        if self.mode == "linear":
            return self.projection(tokens.mean(dim=1, keepdim=True)).expand(-1, num_slices, -1)
        position = self._position_of(plane, index, voxel_mm)
        pooled = self._pool(self.norm(self._transform(tokens, position)))
        return self.projection(pooled).expand(-1, num_slices, -1)

    def _position_of(
        self, plane: Int64[Tensor, "b k"], index: Int64[Tensor, "b k"], voxel_mm: Float[Tensor, " b"] | None
    ) -> Float[Tensor, "b p w"]:
        """Look up the plane-slice embeddings; without them all slices are alike and one stands for all."""
        if self.mode == "no_position":
            return self.queries.new_zeros(plane.shape[0], 1, self.queries.shape[1])
        if self.positions == "index":
            return self.position[plane, index]
        if voxel_mm is None:
            raise ValueError("positions in mm need the cubes' voxel_mm")
        return self._interpolated(plane, index, voxel_mm)

    def _interpolated(
        self, plane: Int64[Tensor, "b k"], index: Int64[Tensor, "b k"], voxel_mm: Float[Tensor, " b"]
    ) -> Float[Tensor, "b k w"]:
        """Look up places in mm: an entry stands for the middle of its J-th part of `extent_mm`."""
        num_slices = self.position.shape[1]
        from_centre_mm = (index - (num_slices - 1) / 2) * voxel_mm[:, None]
        place = from_centre_mm * (num_slices / self.extent_mm) + (num_slices - 1) / 2
        place = place.clamp(0, num_slices - 1)
        below = place.floor().long()
        above = (below + 1).clamp(max=num_slices - 1)
        share = (place - below)[..., None].to(self.position.dtype)
        return torch.lerp(self.position[plane, below], self.position[plane, above], share)

    def _transform(
        self, tokens: Float[Tensor, "b n c"], position: Float[Tensor, "b p w"]
    ) -> Float[Tensor, "b p q w"]:
        memory = self.input_projection(tokens)
        queries = self.queries + position[:, :, None]
        *first, last = self.layers
        for layer in first:
            queries = layer(queries, memory, position)
        # What the last layer would make of queries that are not read afterwards need not be computed.
        return last(queries, memory, position, num_read=1 if self.pooling == "query0" else None)

    def _pool(self, queries: Float[Tensor, "b p q w"]) -> Float[Tensor, "b p w"]:
        """Reduce the queries before the linear projection, which is cheaper than after it and the same."""
        if self.pooling == "query0":
            return queries[:, :, 0]
        if self.pooling == "mean":
            return queries.mean(dim=2)
        weight = (queries @ self.pool_score).softmax(dim=2)
        return (weight[..., None] * queries).sum(dim=2)


class PSATLayer(nn.Module):
    """Self-attention among the queries of a slice, cross-attention to its volume, MLP.

    Args:
        width: Channels.
        num_heads: Attention heads; divide `width`.
        mlp_dim: Hidden channels of the MLP.
        norm: What each step normalises: its queries (`pre`) or its sum (`post`).
        activation: Of the MLP, a name in `ACTIVATIONS`.
        dropout: Of what each step adds.
    """

    def __init__(
        self, width: int, *, num_heads: int, mlp_dim: int, norm: str = "pre", activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = AttentionMaps(width, num_heads=num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = AttentionMaps(width, num_heads=num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_dim), ACTIVATIONS[activation](), nn.Linear(mlp_dim, width))

    def forward(
        self,
        queries: Float[Tensor, "b k q w"],
        memory: Float[Tensor, "b n w"],
        position: Float[Tensor, "b k w"],
        *,
        num_read: int | None = None,
    ) -> Float[Tensor, "b k r w"]:
        """Update the first `num_read` queries of each slice (default all of them).

        Args:
            queries: Queries of each slice.
            memory: Volume tokens, without the position.
            position: Plane-slice embedding of each slice.
            num_read: Queries whose result is wanted; the others take part in self-attention only.
        """
        among = self._before(self.self_norm, queries)
        added = self._attend_queries(among[:, :, :num_read], among)
        queries = self._sum(self.self_norm, queries[:, :, :num_read], added)
        added = self._attend_volume(self._before(self.cross_norm, queries), memory, position)
        queries = self._sum(self.cross_norm, queries, added)
        return self._sum(self.mlp_norm, queries, self.mlp(self._before(self.mlp_norm, queries)))

    def _before(self, norm: nn.Module, queries: Float[Tensor, "b k q w"]) -> Float[Tensor, "b k q w"]:
        return norm(queries) if self.norm == "pre" else queries

    def _sum(
        self, norm: nn.Module, queries: Float[Tensor, "b k r w"], added: Float[Tensor, "b k r w"]
    ) -> Float[Tensor, "b k r w"]:
        total = queries + self.dropout(added)
        return norm(total) if self.norm == "post" else total

    def _attend_queries(
        self, read: Float[Tensor, "b k r w"], queries: Float[Tensor, "b k q w"]
    ) -> Float[Tensor, "b k r w"]:
        attended = self.self_attention(read.flatten(0, 1), queries.flatten(0, 1))
        return attended.unflatten(0, read.shape[:2])

    def _attend_volume(
        self, queries: Float[Tensor, "b k r w"], memory: Float[Tensor, "b n w"], position: Float[Tensor, "b k w"]
    ) -> Float[Tensor, "b k r w"]:
        """Attend to memory + position: the K slices' queries share the volume's keys and values."""
        maps = self.cross_attention
        attended = maps.attend(queries.flatten(1, 2), memory).unflatten(1, queries.shape[1:3])
        # Position's share of the keys drops out of the softmax; its share of the values is this constant.
        constant = F.linear(position, maps.value.weight)
        return maps.output(attended + constant[:, :, None])


class AttentionMaps(nn.Module):
    """Multi-head attention with its four linear maps.

    Args:
        width: Channels.
        num_heads: Attention heads; divide `width`.
    """

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would drop out of the softmax
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Float[Tensor, "g r w"], memory: Float[Tensor, "g n w"]) -> Float[Tensor, "g r w"]:
        """Attend and map the result."""
        return self.output(self.attend(queries, memory))

    def attend(self, queries: Float[Tensor, "g r w"], memory: Float[Tensor, "g n w"]) -> Float[Tensor, "g r w"]:
        """Attend, without the output map."""
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(queries)), self._heads(self.key(memory)), self._heads(self.value(memory))
        )
        return attended.transpose(1, 2).flatten(2)

    def _heads(self, features: Float[Tensor, "g r w"]) -> Float[Tensor, "g heads r d"]:
        return features.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _require_choices(**given: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, choices) in given.items():
        if value not in choices:
            raise RefusedError(
                "E_CONFIG", f"psat: unknown {name} {value!r}", hint=f"choose one of {', '.join(choices)}"
            )


def _require_sizes(*, width: int, num_heads: int, num_layers: int) -> None:
    if width % num_heads:
        raise RefusedError(
            "E_CONFIG",
            f"psat: width {width} is not a multiple of num_heads {num_heads}",
            hint="choose a number of heads that divides the width",
        )
    if num_layers < 1:
        raise RefusedError("E_CONFIG", f"psat: num_layers {num_layers}", hint="choose at least 1, or mode linear")
