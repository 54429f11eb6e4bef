"""Segmentation networks: a pretrained encoder under `.encoder`, a decoder on top, logits at full size.

`SegmentationNetwork` is the one composition; the decoder that needs no MONAI lives here too.
"""

import torch.nn.functional as F
from torch import nn

from m3di.networks.encoders import Encoder, EncoderOutput, as_module
from m3di.types import Float, Tensor


class SegmentationNetwork(nn.Module):
    """An encoder and a decoder; `encoder` has the state-dict keys of the encoder that was pretrained.

    Args:
        encoder: Encoder of the volume.
        decoder: Module called with (volume, `EncoderOutput`), giving logits of the volume's size.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = as_module(encoder)
        self.decoder = decoder

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b _ d h w"]:
        """Return one logit a class and voxel."""
        return self.decoder(volume, self.encoder(volume))


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
        self.steps = nn.ModuleList(_conv_block(before, after) for before, after in pairs)
        self.classify = nn.Conv3d(widths[-1], num_classes, kernel_size=1)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> Float[Tensor, "b _ d h w"]:
        """Return one logit a class and voxel."""
        features = self.steps[0](encoded.pyramid[-1])
        for step in self.steps[1:]:
            features = step(F.interpolate(features, scale_factor=2, mode="trilinear"))
        # A 1^3 convolution commutes with interpolation: before it, it is the cheaper order.
        return F.interpolate(self.classify(features), size=volume.shape[2:], mode="trilinear")


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(1, out_channels),  # batches of one or two volumes are too few for batch statistics
        nn.GELU(),
    )
