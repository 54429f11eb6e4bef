"""Med3D's segmentation head over MedicalNet's residual network (the encoder `medicalnet`)."""

from typing import Final

import torch.nn.functional as F
from torch import nn

from m3di.networks.convolutional import MedicalNetEncoder
from m3di.networks.encoders import EncoderOutput
from m3di.networks.segmentation import SegmentationOutput
from m3di.types import Float, Tensor

HEAD_WIDTH: Final = 32


class Med3DDecoder(nn.Module):
    """One doubling and one convolution over the coarsest map; logits at a quarter of the size, interpolated.

    With the encoder of depth 50 and 2 classes 46,707,232 parameters. The head has the reference's name, `conv_seg`.

    The reference scales its predictions up outside of the network, in evaluation; here they are interpolated
    linearly, in training too, as all losses here are taken at the volume's size.

    Args:
        encoder: MedicalNet's residual network of any depth.
        num_classes: Number of classes, background included.

    Source: Chen et al. 2019 (arXiv 1904.00625), geometry of github.com/Tencent/MedicalNet (MIT).
    """

    def __init__(self, encoder: MedicalNetEncoder, num_classes: int) -> None:
        super().__init__()
        self.conv_seg = nn.Sequential(
            nn.ConvTranspose3d(encoder.token_dim, HEAD_WIDTH, kernel_size=2, stride=2),
            nn.BatchNorm3d(HEAD_WIDTH),
            nn.ReLU(),
            nn.Conv3d(HEAD_WIDTH, HEAD_WIDTH, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm3d(HEAD_WIDTH),
            nn.ReLU(),
            nn.Conv3d(HEAD_WIDTH, num_classes, kernel_size=1, bias=False),
        )

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return one logit a class and voxel."""
        quarter = self.conv_seg(encoded.pyramid[-1])
        return SegmentationOutput(F.interpolate(quarter, size=volume.shape[2:], mode="trilinear"))
