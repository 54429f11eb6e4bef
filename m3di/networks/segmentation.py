"""Segmentation networks: a pretrained encoder under `.encoder`, a decoder on top, logits at full size.

`SegmentationNetwork` is the one composition; the decoder that needs no MONAI lives here too.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import nn

from m3di.networks.encoders import Encoder, EncoderOutput, as_module
from m3di.types import Float, Tensor


class SegmentationOutput(NamedTuple):
    """What a segmentation network makes of volumes.

    Attributes:
        logits: One logit a class and voxel, of the volume's size.
        auxiliary: Logits of deep supervision, each at its own size, no finer than the volume's; given in training
            mode only, and only where the network was built with `deep_supervision`.
    """

    logits: "Float[Tensor, 'b classes d h w']"
    auxiliary: tuple["Float[Tensor, 'b classes _ _ _']", ...] = ()


class SegmentationNetwork(nn.Module):
    """An encoder and a decoder; `encoder` has the state-dict keys of the encoder that was pretrained.

    Args:
        encoder: Encoder of the volume.
        decoder: Module called with (volume, `EncoderOutput`), giving a `SegmentationOutput`. One with deep
            supervision has `auxiliary_weights`.

    Attributes:
        auxiliary_weights: Weight of the loss of each auxiliary map, relative to 1 for the logits'; empty without
            deep supervision.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = as_module(encoder)
        self.decoder = decoder
        self.auxiliary_weights: tuple[float, ...] = getattr(decoder, "auxiliary_weights", ())

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> SegmentationOutput:
        """Return the logits, and those of deep supervision in training."""
        return self.decoder(volume, self.encoder(volume))


def halved_weights(num_auxiliary: int) -> tuple[float, ...]:
    """Weights of auxiliary maps, finest first, each half of the one before and the first a half (nnU-Net's)."""
    return tuple(0.5**level for level in range(1, num_auxiliary + 1))


class ProgressiveUpsampling(nn.Module):
    """A light head over an encoder's coarsest map: convolve and double, until the volume's size is reached.

    Deviation: SETR's PUP head (Zheng et al. 2021, arXiv 2012.15840, section 3.3) in 3D, with channels that
    halve at each step; its constant 256 channels would not fit a volume.

    Args:
        encoder: Encoder whose last feature map is decoded; its token stride gives the number of doublings.
        num_classes: Number of classes, background included.
        head_size: Channels of the first step.
        min_channels: Channels are not halved below this.
    """

    def __init__(self, encoder: Encoder, num_classes: int, *, head_size: int = 128, min_channels: int = 16) -> None:
        super().__init__()
        num_steps = max((encoder.token_stride - 1).bit_length(), 1)
        widths = [max(head_size >> step, min_channels) for step in range(num_steps)]
        pairs = zip([encoder.token_dim, *widths[:-1]], widths, strict=True)
        self.steps = nn.ModuleList(conv_block(before, after) for before, after in pairs)
        self.classify = nn.Conv3d(widths[-1], num_classes, kernel_size=1)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return one logit a class and voxel."""
        features = self.steps[0](encoded.pyramid[-1])
        for step in self.steps[1:]:
            features = step(F.interpolate(features, scale_factor=2, mode="trilinear"))
        # A 1^3 convolution commutes with interpolation: before it, it is the cheaper order.
        logits = F.interpolate(self.classify(features), size=volume.shape[2:], mode="trilinear")
        return SegmentationOutput(logits)


def conv_block(in_channels: int, out_channels: int, *, kernel_size: int = 3) -> nn.Sequential:
    """A convolution that keeps the size, a norm over each volume, and an activation."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, bias=False),
        nn.GroupNorm(1, out_channels),  # batches of one or two volumes are too few for batch statistics
        nn.GELU(),
    )
