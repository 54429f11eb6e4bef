"""Attention U-Net (MONAI's blocks): down path as the encoder `attention_unet`, gated up path as its decoder.

MONAI nests its blocks; here they stand in lists, level by level. Tests map the weights onto MONAI's own class.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.attentionunet import AttentionBlock, ConvBlock, UpConv
from torch import nn

from m3di.networks.convolutional import chain, last_as_tokens, require_cells
from m3di.networks.encoders import EncoderOutput
from m3di.networks.segmentation import SegmentationOutput
from m3di.types import Float, Tensor


class AttentionUNetEncoder(nn.Module):
    """The down path of MONAI's Attention U-Net: levels of 16 to 256 channels at 1/1 to 1/16.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 16 from 32 on.
        channels: Channels of each level; each but the first halves the resolution.

    Raises:
        RefusedError: E_NETWORK, for a cube that does not fit.

    Source: Oktay et al. 2018 (arXiv 1804.03999), MONAI 1.6 `AttentionUnet` (Apache 2.0).
    """

    def __init__(self, *, cube_size: int, channels: Iterable[int] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        self.widths = list(channels)
        self.token_dim = self.widths[-1]
        self.token_stride = 2 ** (len(self.widths) - 1)
        require_cells("attention_unet", cube_size=cube_size, stride=self.token_stride)
        self.cube_size = cube_size
        self.downs = nn.ModuleList(
            ConvBlock(3, before, width, strides=1 if level == 0 else 2)
            for level, (before, width) in enumerate(pairwise([1, *self.widths]))
        )

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        first, *rest = self.downs
        features = first(volume)
        return last_as_tokens(chain(features, features, rest))


class AttentionUNetDecoder(nn.Module):
    """The up path, whose skips are gated by what comes from below: 5,909,334 parameters with the encoder, 14 classes.

    Args:
        encoder: Down path.
        num_classes: Number of classes, background included.

    Source: as for `AttentionUNetEncoder`.
    """

    def __init__(self, encoder: AttentionUNetEncoder, num_classes: int) -> None:
        super().__init__()
        pairs = list(pairwise(encoder.widths))
        self.ups = nn.ModuleList(UpConv(3, below, width) for width, below in pairs)
        self.gates = nn.ModuleList(AttentionBlock(3, f_int=width // 2, f_g=width, f_l=width) for width, _ in pairs)
        self.merges = nn.ModuleList(Convolution(3, 2 * width, width) for width, _ in pairs)
        self.classify = Convolution(3, encoder.widths[0], num_classes, kernel_size=1, padding=0, conv_only=True)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return one logit a class and voxel."""
        *skips, features = encoded.pyramid
        levels = list(zip(self.ups, self.gates, self.merges, skips, strict=True))
        for up, gate, merge, skip in reversed(levels):
            below = up(features)
            features = merge(torch.cat([gate(g=below, x=skip), below], dim=1))
        return SegmentationOutput(self.classify(features))
