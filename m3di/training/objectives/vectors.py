"""Rows of vectors at a precision that losses can stand: half precision leaves a scaled logit no digits."""

import torch
import torch.nn.functional as F

from m3di.types import Float, Tensor


def unit(rows: Float[Tensor, "*rows e"]) -> Float[Tensor, "*rows e"]:
    """Scale each row to length 1, in float32 at least."""
    return F.normalize(widen(rows), dim=-1)


def widen(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert half precision to float32 and leave wider numbers alone."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
