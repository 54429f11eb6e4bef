"""The up paths of MONAI's U-Net and of nnU-Net's network (`DynUNet`), over the down paths in `convolutional`.

MONAI nests its blocks; here they stand in a list, level by level. Tests map the weights onto MONAI's own classes.
"""

from typing import Final

import torch
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetUpBlock
from monai.networks.nets.dynunet import DynUNet
from torch import nn

from m3di.networks.convolutional import DynUNetEncoder, UNetEncoder
from m3di.networks.encoders import EncoderOutput
from m3di.networks.segmentation import SegmentationOutput, halved_weights
from m3di.types import Float, Tensor

MAX_SUPERVISED: Final = 3  # levels below the finest with logits of their own


class UNetDecoder(nn.Module):
    """The up path of MONAI's residual U-Net: 4,822,057 parameters with the encoder and 14 classes.

    Args:
        encoder: Down path.
        num_classes: Number of classes, background included.

    Source: Kerfoot et al. 2019, MONAI 1.6 `UNet` (Apache 2.0).
    """

    def __init__(self, encoder: UNetEncoder, num_classes: int) -> None:
        super().__init__()
        widths = encoder.widths
        skips, outs = widths[:-1], [num_classes, *widths[:-2]]
        below = [*skips[:-1], widths[-1]]
        self.ups = nn.ModuleList(
            _up(skip + lower, out, unit=encoder.num_res_units > 0, top=level == 0)
            for level, (skip, lower, out) in enumerate(zip(skips, below, outs, strict=True))
        )

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return one logit a class and voxel."""
        *skips, features = encoded.pyramid
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            features = up(torch.cat([skip, features], dim=1))
        return SegmentationOutput(features)


class DynUNetDecoder(nn.Module):
    """The up path of nnU-Net's network, with heads of deep supervision below the finest level.

    With the encoder and 14 classes 31,189,806 parameters, 31,196,120 with deep supervision at three levels. It is the
    architecture, not nnU-Net's self-configuring pipeline. Blocks carry MONAI's names.

    Args:
        encoder: Down path.
        num_classes: Number of classes, background included.
        deep_supervision: Also give logits of up to three coarser levels (MONAI leaves one at least without) in
            training, each at its own size; MONAI interpolates them to the volume's.

    Attributes:
        auxiliary_weights: Halved from level to level, as nnU-Net's.

    Source: Isensee et al. 2021 (nnU-Net), MONAI 1.6 `DynUNet` (Apache 2.0).
    """

    def __init__(self, encoder: DynUNetEncoder, num_classes: int, *, deep_supervision: bool = False) -> None:
        super().__init__()
        widths = encoder.widths
        levels = zip(widths[1:], widths[:-1], encoder.strides[1:], strict=True)
        self.upsamples = nn.ModuleList(
            _dynunet_up(below, width, stride=stride) for below, width, stride in reversed(list(levels))
        )
        self.output_block = UnetOutBlock(3, widths[0], num_classes)
        num_heads = min(MAX_SUPERVISED, len(self.upsamples) - 1) if deep_supervision else 0
        self.deep_supervision_heads = nn.ModuleList(
            UnetOutBlock(3, width, num_classes) for width in widths[1 : 1 + num_heads]
        )
        self.auxiliary_weights = halved_weights(num_heads)
        self.apply(DynUNet.initialize_weights)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return the logits, and those of coarser levels in training with deep supervision."""
        *skips, features = encoded.pyramid
        decoded: list[Tensor] = []
        for up, skip in zip(self.upsamples, reversed(skips), strict=True):
            features = up(features, skip)
            decoded.insert(0, features)
        heads = zip(self.deep_supervision_heads, decoded[1:], strict=False)
        auxiliary = tuple(head(level) for head, level in heads) if self.training else ()
        return SegmentationOutput(self.output_block(features), auxiliary)


def _up(in_channels: int, out_channels: int, *, unit: bool, top: bool) -> nn.Module:
    """Double the resolution, then refine by a residual unit, whose last convolution gives the logits at the top."""
    options = {"act": "PRELU", "norm": "INSTANCE"}
    double = Convolution(
        3,
        in_channels,
        out_channels,
        strides=2,
        kernel_size=3,
        is_transposed=True,
        conv_only=top and not unit,
        **options,
    )
    if not unit:
        return double
    return nn.Sequential(
        double, ResidualUnit(3, out_channels, out_channels, strides=1, subunits=1, last_conv_only=top, **options)
    )


def _dynunet_up(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    return UnetUpBlock(
        3,
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        upsample_kernel_size=stride,
        norm_name=("INSTANCE", {"affine": True}),
    )
