"""What every 3D encoder offers: tokens for PSAT and feature maps for decoders, from one canonical cube."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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

    Encoders whose layers can be computed again in the backward pass to save memory also have a `checkpointing: bool`,
    False until training sets it.

    Attributes:
        token_dim: Channels of a token.
        token_stride: Edge of the block of voxels that a token stands for; the longest one, where it is no cube.
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


def require_per_stage(network: str, *, num_stages: int, **options: Sequence[int]) -> None:
    """Refuse options that do not have one value for each stage.

    Raises:
        RefusedError: E_NETWORK, naming all the options.
    """
    if any(len(values) != num_stages for values in options.values()):
        given = " and ".join(f"{name} {list(values)}" for name, values in options.items())
        raise RefusedError(
            "E_NETWORK", f"{network} has {num_stages} stages, but {given}", hint=f"give {num_stages} values for each"
        )


def require_heads(network: str, *, widths: Sequence[int], num_heads: Sequence[int]) -> None:
    """Refuse attention heads that do not divide the channels of their stage.

    Raises:
        RefusedError: E_NETWORK.
    """
    if any(width % heads for width, heads in zip(widths, num_heads, strict=True)):
        raise RefusedError(
            "E_NETWORK",
            f"{network}: stages of {list(widths)} channels are not multiples of their num_heads {list(num_heads)}",
            hint="choose heads that divide the channels",
        )


def run_block(block: nn.Module, *inputs: Tensor, checkpointing: bool) -> Tensor:
    """Run a block; if `checkpointing`, keep its inputs only and compute it again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)
