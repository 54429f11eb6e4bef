"""What every 3D encoder offers: tokens for PSAT and feature maps for decoders, from one canonical cube."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from m3di.types import Float, Tensor
from stores.errors import RefusedError


class EncoderOutput(NamedTuple):
    """What an encoder makes of volumes.

    Attributes:
        tokens: Features of the coarsest level, one token a grid cell, first axis slowest.
        grid: Number of tokens along each axis of the volume; their product is n.
        pyramid: Feature maps for a decoder. From hierarchical encoders one a level, finest first; from plain
            transformers the tapped layers, earliest first, all on the token grid. The last holds the tokens.
    """

    tokens: "Float[Tensor, 'b n c']"
    grid: tuple[int, int, int]
    pyramid: list["Float[Tensor, 'b _ _ _ _']"]


@runtime_checkable
class Encoder(Protocol):
    """An `nn.Module` that turns cubes of one size into an `EncoderOutput`.

    Attributes:
        token_dim: Channels of a token.
        token_stride: Edge of the block of voxels that a token stands for.
        cube_size: Edge of the input cube in voxels.
    """

    token_dim: int
    token_stride: int
    cube_size: int

    def __call__(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by name."""
        ...


def as_module(encoder: Encoder) -> nn.Module:
    """View an encoder as the `nn.Module` it is (Python's types cannot say "a module and an encoder").

    Raises:
        TypeError: If it is no `nn.Module`.
    """
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"an encoder must be an nn.Module, got {type(encoder).__name__}")
    return encoder


def tokens_to_map(
    tokens: Float[Tensor, "b n c"], grid: tuple[int, int, int]
) -> Float[Tensor, "b c {grid[0]} {grid[1]} {grid[2]}"]:
    """Lay tokens out on their grid (a view)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def map_to_tokens(features: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b d*h*w c"]:
    """List the cells of a feature map as tokens, first axis slowest (a view)."""
    return features.flatten(2).transpose(1, 2)


def require_multiple(network: str, *, cube_size: int, factor: int) -> None:
    """Refuse a cube that a network cannot divide into its grid.

    Raises:
        RefusedError: E_NETWORK, if `cube_size` is not a positive multiple of `factor`.
    """
    if cube_size < 1 or cube_size % factor:
        below = max(cube_size // factor * factor, factor)
        raise RefusedError(
            "E_NETWORK",
            f"{network} needs a cube whose edge is a multiple of {factor} voxels, not {cube_size}",
            hint=f"use a cube of {below} or {below + factor} voxels, or other patch or depth options",
        )
