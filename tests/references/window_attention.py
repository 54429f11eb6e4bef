"""nnFormer's attention within (shifted) windows, token by token: nothing is rolled, split or masked.

Windows cut the grid at every multiple of their size, or, shifted, at `shift` plus every multiple; what lies before
the first and after the last cut are smaller windows of their own. A token attends to the tokens of its window.
"""

from itertools import product

import torch

from m3di.networks.nnformer import WindowBlock
from m3di.types import Float, Tensor


def update(
    block: WindowBlock, features: Float[Tensor, "d h w c"], skip: Float[Tensor, "d h w c"] | None = None
) -> Float[Tensor, "d h w c"]:
    """What a block makes of the tokens of one volume; with `skip`, queries ask the skip."""
    asked = features if skip is None else skip
    total = features if skip is None else features + skip
    output = torch.empty_like(features)
    for place in places(features):
        attended = attend(block, place, block.norm1(features), block.norm1(asked))
        residual = total[place] + block.project_out(attended)
        output[place] = residual + block.mlp(block.norm2(residual))
    return output


def attend(
    block: WindowBlock, place: tuple[int, ...], asking: Float[Tensor, "d h w c"], asked: Float[Tensor, "d h w c"]
) -> Float[Tensor, " c"]:
    """The weighted mean of the values that one token attends to, head by head."""
    width, heads = asking.shape[-1], block.num_heads
    *query, key, value = block.project_in.weight.split(width)
    *query_bias, key_bias, value_bias = block.project_in.bias.split(width)
    q = query[0] @ asking[place] + query_bias[0] if query else asking[place]
    others = [other for other in places(asking) if window(block, other) == window(block, place)]
    outputs = []
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = torch.stack(
            [
                q[part] @ (key @ asked[other] + key_bias)[part] / (width // heads) ** 0.5
                + block.table[row(block.window, place, other), head]
                for other in others
            ]
        )
        values = torch.stack([(value @ asked[other] + value_bias)[part] for other in others])
        outputs.append(scores.softmax(0) @ values)
    return torch.cat(outputs)


def window(block: WindowBlock, place: tuple[int, ...]) -> tuple[int, ...]:
    """Name the window of a token."""
    return tuple((index - block.shift) // block.window for index in place)


def row(size: int, place: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Row of the bias table for a pair of tokens, with the strides that nnFormer's published code uses."""
    d, h, w = (a - b + size - 1 for a, b in zip(place, other, strict=True))
    return d * (3 * size - 1) + h * (2 * size - 1) + w


def places(features: Float[Tensor, "d h w c"]) -> list[tuple[int, ...]]:
    """List the tokens' places."""
    return list(product(*map(range, features.shape[:3])))
