"""SETR's three heads over its plain transformer (the encoder `setr`): naive, PUP and MLA, in three dimensions.

Written from the paper (Zheng et al. 2021, arXiv 2012.15840, section 3.3) and facts of its reference implementation
(github.com/fudan-zvg/SETR, MIT). The network for volumes is not published. What all heads share:

Deviation: one group norm and GELU after each convolution, where the reference has synchronised batch norm and ReLU:
batches of one or two volumes are too few for batch statistics.
Deviation: auxiliary logits stay at the size of the token grid, where the reference interpolates them. The naive and
PUP heads have three, by naive heads on the first three taps, the ends of the quarters of the layers; the reference
takes layers 9, 14 and 19 of 24, and beside PUP also the last, with 3 x 3 convolutions.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from m3di.networks.encoders import EncoderOutput, map_to_tokens, tokens_to_map
from m3di.networks.segmentation import ProgressiveUpsampling, SegmentationOutput, conv_block
from m3di.networks.vit import SETR_TAPS, ViTEncoder
from m3di.types import Float, Tensor

NAIVE_WIDTH: Final = 256
AUXILIARY_WEIGHT: Final = 0.4
MLA_SCALE: Final = 4  # a stream is enlarged so many times before the streams meet


class NaiveDecoder(nn.Module):
    """Two 1^3 convolutions on the token grid, then one interpolation to the volume's size.

    Args:
        encoder: Encoder built by `m3di.networks.vit.setr`.
        num_classes: Number of classes, background included.
        head_size: Channels between the two convolutions.
        deep_supervision: Also give logits of the first three taps in training.

    Attributes:
        auxiliary_weights: 0.4 each.
    """

    def __init__(
        self,
        encoder: ViTEncoder,
        num_classes: int,
        *,
        head_size: int = NAIVE_WIDTH,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.head = _naive(encoder.token_dim, head_size, num_classes)
        self.supervision = _supervision(encoder, num_classes, wanted=deep_supervision)
        self.auxiliary_weights = (AUXILIARY_WEIGHT,) * len(self.supervision)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return the logits, and those of the taps in training with deep supervision."""
        logits = F.interpolate(self.head(encoded.pyramid[-1]), size=volume.shape[2:], mode="trilinear")
        return SegmentationOutput(logits, _supervise(self.supervision, encoded))


class PUPDecoder(nn.Module):
    """Progressive upsampling: a convolution and a doubling, step by step, up to the volume's size.

    Deviation: channels halve at each step from `head_size` on, where the reference keeps 256. In a volume the fourth
    convolution of 256 channels alone would cost 928 GFLOP at 128^3, nine times as much as the encoder; all of
    this head costs 56.

    Args:
        encoder: Encoder built by `m3di.networks.vit.setr`.
        num_classes: Number of classes, background included.
        head_size: Channels of the first step.
        deep_supervision: Also give logits of the first three taps in training.

    Attributes:
        auxiliary_weights: 0.4 each.
    """

    def __init__(
        self,
        encoder: ViTEncoder,
        num_classes: int,
        *,
        head_size: int = NAIVE_WIDTH,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.head = ProgressiveUpsampling(encoder, num_classes, head_size=head_size)
        self.supervision = _supervision(encoder, num_classes, wanted=deep_supervision)
        self.auxiliary_weights = (AUXILIARY_WEIGHT,) * len(self.supervision)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return the logits, and those of the taps in training with deep supervision."""
        return SegmentationOutput(self.head(volume, encoded).logits, _supervise(self.supervision, encoded))


class MLADecoder(nn.Module):
    """Multi-level aggregation: a stream from each quarter of the layers, summed from the deepest on, then joined.

    A stream is a 1^3 convolution, the sum with the stream of the next deeper quarter, a 3^3 convolution (all of
    `mla_size` channels), two more of `head_size`, and an interpolation to four times the grid.

    The deepest stream starts from the encoder's final tokens, which are the last tap after the encoder's norm; the
    others have a norm of their own.

    Args:
        encoder: Encoder built by `m3di.networks.vit.setr`.
        num_classes: Number of classes, background included.
        mla_size: Channels of a stream before it is enlarged.
        head_size: Channels of a stream when the streams are joined.
        deep_supervision: Also give logits of each stream on the token grid in training.

    Attributes:
        auxiliary_weights: 0.4 each.
    """

    def __init__(
        self,
        encoder: ViTEncoder,
        num_classes: int,
        *,
        mla_size: int = 256,
        head_size: int = 128,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        width = encoder.token_dim
        self.scale = min(MLA_SCALE, encoder.token_stride)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(SETR_TAPS - 1))
        self.projections = nn.ModuleList(conv_block(width, mla_size, kernel_size=1) for _ in range(SETR_TAPS))
        self.streams = nn.ModuleList(conv_block(mla_size, mla_size) for _ in range(SETR_TAPS))
        self.heads = nn.ModuleList(
            nn.Sequential(conv_block(mla_size, head_size), conv_block(head_size, head_size)) for _ in range(SETR_TAPS)
        )
        self.classify = nn.Conv3d(SETR_TAPS * head_size, num_classes, kernel_size=3, padding=1)
        self.supervision = nn.ModuleList(
            nn.Conv3d(mla_size, num_classes, kernel_size=1, bias=False)
            for _ in range(SETR_TAPS if deep_supervision else 0)
        )
        self.auxiliary_weights = (AUXILIARY_WEIGHT,) * len(self.supervision)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return the logits, and those of the streams in training with deep supervision."""
        streams = self._aggregate(encoded)
        enlarged = [
            F.interpolate(head(stream), scale_factor=self.scale, mode="trilinear")
            for head, stream in zip(self.heads, streams, strict=True)
        ]
        logits = F.interpolate(self.classify(torch.cat(enlarged, dim=1)), size=volume.shape[2:], mode="trilinear")
        heads = zip(self.supervision, streams, strict=False)
        return SegmentationOutput(logits, tuple(head(s) for head, s in heads) if self.training else ())

    def _aggregate(self, encoded: EncoderOutput) -> list[Float[Tensor, "b _ _ _ _"]]:
        """Return the streams, earliest layers first."""
        taps = encoded.pyramid[: SETR_TAPS - 1]
        normed = [_normed(tap, norm) for tap, norm in zip(taps, self.norms, strict=True)]
        projected = [p(level) for p, level in zip(self.projections, (*normed, encoded.pyramid[-1]), strict=True)]
        for level in reversed(range(SETR_TAPS - 1)):
            projected[level] = projected[level] + projected[level + 1]
        return [stream(level) for stream, level in zip(self.streams, projected, strict=True)]


class TapHead(nn.Module):
    """Auxiliary logits of one tap: a norm, as taps come without, and the naive head.

    Args:
        width: Channels of a token.
        num_classes: Number of classes, background included.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = _naive(width, NAIVE_WIDTH, num_classes)

    def forward(self, tap: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b _ d h w"]:
        """Return one logit a class and cell."""
        return self.head(_normed(tap, self.norm))


def _naive(width: int, head_size: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        conv_block(width, head_size, kernel_size=1), nn.Conv3d(head_size, num_classes, kernel_size=1)
    )


def _supervision(encoder: ViTEncoder, num_classes: int, *, wanted: bool) -> nn.ModuleList:
    return nn.ModuleList(TapHead(encoder.token_dim, num_classes) for _ in range(SETR_TAPS - 1 if wanted else 0))


def _supervise(heads: nn.ModuleList, encoded: EncoderOutput) -> tuple[Tensor, ...]:
    if not heads.training:
        return ()
    return tuple(head(tap) for head, tap in zip(heads, encoded.pyramid, strict=False))


def _normed(features: Float[Tensor, "b c d h w"], norm: nn.Module) -> Float[Tensor, "b c d h w"]:
    """Normalise the channels of each cell."""
    d, h, w = features.shape[2:]
    return tokens_to_map(norm(map_to_tokens(features)), (d, h, w))
