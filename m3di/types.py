"""The one legend of tensor axes and the types that rooms share.

Axes, as jaxtyping strings:
    b  batch (volumes)        k  slices of a volume        d h w  voxels, canonical order (right, anterior, superior)
    n  tokens of a volume     c  channels of a token       e      embedding of the teacher
    q  queries of PSAT        s  slices in a list          y x    pixels, row and column
"""

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

__all__ = ["Bool", "Float", "Int64", "Tensor", "UInt8"]
