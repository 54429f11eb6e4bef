"""UNETR's decoders (MONAI's blocks) over our encoders: `unetr` and `swin_unetr`.

Blocks carry MONAI's names, so that `encoder.` and `decoder.` cut off a state dict leave the one of MONAI's
`UNETR` (patches of 16) or `SwinUNETR`.
"""

from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import nn

from m3di.networks.encoders import EncoderOutput
from m3di.networks.segmentation import SegmentationOutput
from m3di.networks.swin import SwinEncoder
from m3di.networks.vit import ViTEncoder
from m3di.types import Float, Tensor
from stores.errors import RefusedError


class UNETRDecoder(nn.Module):
    """Decoder of UNETR: tapped layers projected up to the resolutions of a U-shaped decoder.

    Level l has feature_size * 2^l channels at 1 / 2^l of the cube's edge; level 0 sees the volume itself.
    MONAI's UNETR is fixed at patches of 16, four levels; other powers of two get as many as they need.

    Args:
        encoder: Encoder built by `m3di.networks.vit.unetr`.
        num_classes: Number of classes, background included.
        feature_size: Channels at full resolution.

    Source: Hatamizadeh et al. 2022 (arXiv 2103.10504), MONAI 1.6 `UNETR` (Apache 2.0): 92,802,478 parameters
    with the encoder at 96^3 and 14 classes.
    """

    def __init__(self, encoder: ViTEncoder, num_classes: int, *, feature_size: int = 16) -> None:
        super().__init__()
        self.num_levels = len(encoder.taps) + 1
        hidden_size, top = encoder.token_dim, self.num_levels - 1
        self.encoder1 = _basic(1, feature_size)
        for level in range(1, self.num_levels):
            self.add_module(f"encoder{level + 1}", _project_up(hidden_size, feature_size << level, steps=top - level))
        for level in range(self.num_levels):
            below = hidden_size if level == top else feature_size << level + 1
            self.add_module(f"decoder{level + 2}", _up(below, feature_size << level))
        self.out = UnetOutBlock(spatial_dims=3, in_channels=feature_size, out_channels=num_classes)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return one logit a class and voxel."""
        features = encoded.pyramid[-1]
        inputs = [volume, *encoded.pyramid[:-1]]
        for level in reversed(range(self.num_levels)):
            skip = self.get_submodule(f"encoder{level + 1}")(inputs[level])
            features = self.get_submodule(f"decoder{level + 2}")(features, skip)
        return SegmentationOutput(self.out(features))


class SwinUNETRDecoder(nn.Module):
    """Decoder of Swin UNETR: residual blocks over the five levels and the volume, merged from coarse to fine.

    Args:
        encoder: Encoder built by `m3di.networks.swin`.
        num_classes: Number of classes, background included.

    Raises:
        RefusedError: E_NETWORK, if the cube is so small that a single cell is left at the bottom.

    Source: Hatamizadeh et al. 2022 (arXiv 2201.01266), MONAI 1.6 `SwinUNETR` (Apache 2.0): 62,187,296
    parameters with the encoder at feature size 48 and 14 classes.
    """

    def __init__(self, encoder: SwinEncoder, num_classes: int) -> None:
        super().__init__()
        _require_cells(encoder)
        size = encoder.feature_size
        self.encoder1 = _basic(1, size)
        self.encoder2 = _basic(size, size)
        self.encoder3 = _basic(2 * size, 2 * size)
        self.encoder4 = _basic(4 * size, 4 * size)
        self.encoder10 = _basic(16 * size, 16 * size)
        self.decoder5 = _up(16 * size, 8 * size)
        self.decoder4 = _up(8 * size, 4 * size)
        self.decoder3 = _up(4 * size, 2 * size)
        self.decoder2 = _up(2 * size, size)
        self.decoder1 = _up(size, size)
        self.out = UnetOutBlock(spatial_dims=3, in_channels=size, out_channels=num_classes)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return one logit a class and voxel."""
        half, quarter, eighth, sixteenth, bottleneck = encoded.pyramid
        features = self.decoder5(self.encoder10(bottleneck), sixteenth)  # MONAI has no block at 1/16
        features = self.decoder4(features, self.encoder4(eighth))
        features = self.decoder3(features, self.encoder3(quarter))
        features = self.decoder2(features, self.encoder2(half))
        return SegmentationOutput(self.out(self.decoder1(features, self.encoder1(volume))))


def _require_cells(encoder: SwinEncoder) -> None:
    """Refuse a bottleneck of one cell, which instance normalisation would turn into zeros."""
    if encoder.cube_size < 2 * encoder.token_stride:
        raise RefusedError(
            "E_NETWORK",
            f"swin_unetr needs a cube of at least {2 * encoder.token_stride} voxels, not {encoder.cube_size}",
            hint="use a larger cube, or the network unetr with small patches",
        )


def _basic(in_channels: int, out_channels: int) -> nn.Module:
    return UnetrBasicBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


def _up(in_channels: int, out_channels: int) -> nn.Module:
    return UnetrUpBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        upsample_kernel_size=2,
        norm_name="instance",
        res_block=True,
    )


def _project_up(in_channels: int, out_channels: int, *, steps: int) -> nn.Module:
    """Double the resolution once, then `steps` times more."""
    return UnetrPrUpBlock(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        num_layer=steps,
        kernel_size=3,
        stride=1,
        upsample_kernel_size=2,
        norm_name="instance",
        conv_block=True,
        res_block=True,
    )
