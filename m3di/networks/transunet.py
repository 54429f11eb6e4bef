"""TransUNet in 3D: a U-Net with a transformer at its bottom (the encoder `transunet`), one for its masks, or both.

Written from the papers (Chen et al. 2021, arXiv 2102.04306; Chen et al. 2023, arXiv 2310.07781) and from measured
facts of the reference implementation (github.com/Beckschen/3D-TransUNet, Apache 2.0). The U-Net is nnU-Net's first:
two convolutions a level, with biases.

At 128^3 with 1 channel, 9 classes and the paper's widths the reference has 116,809,376 parameters with the encoder's
transformer only, 34,077,610 with the decoder's only, and 119,693,802 with both. The first figure is without a map to
classes, which the reference builds for deep supervision only.
"""

import math
from typing import Final

import torch
from torch import nn

from m3di.networks.convolutional import halving_strides, last_as_tokens
from m3di.networks.encoders import EncoderOutput, map_to_tokens, require_heads, run_block, tokens_to_map
from m3di.networks.segmentation import SegmentationOutput, halved_weights
from m3di.networks.transunet_masks import MaskDecoder
from m3di.types import Float, Tensor
from stores.errors import RefusedError

MAX_WIDTH: Final = 320
SLOPE: Final = 0.01  # of the leaky ReLU below zero
LAYER_SCALE: Final = 0.1
"""Start of the layer scales, as for transformers of up to 18 layers (Touvron et al. 2021, arXiv 2103.17239).

Deviation: the reference starts at 1e-5, which leaves its (ImageNet) weights untouched at first; ours are random.
"""


class TransUNetEncoder(nn.Module):
    """The down path of a U-Net, then a vision transformer over the cells of its coarsest map.

    The pyramid has 32, 64, 128, 256, 320 channels at 1/1 to 1/16 of the cube's edge and the tokens at 1/32.

    Deviation: layer scales weigh the residual branches (as in their paper), where the reference weighs the identity.
    Deviation: no dropout (the reference drops a tenth), as no other encoder here draws random numbers in its forward
    pass.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 8 from 16 on.
        base_channels: Channels at full size; they double from level to level, up to 320.
        num_pools: Number of levels below the finest. A cube that cannot be halved so often keeps its size at the
            coarsest of them.
        transformer: Whether there is a transformer at the bottom; without, the tokens are the coarsest map.
        hidden_size: Channels of a token.
        mlp_dim: Hidden channels of the layers' MLP.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads.

    Attributes:
        widths: Channels of each level of the U-Net.
        strides: Stride of each level.
        checkpointing: Compute the layers again in the backward pass to save memory; set it when training begins.

    Raises:
        RefusedError: E_NETWORK, for a cube that does not fit, or heads that do not divide the channels.
    """

    def __init__(
        self,
        *,
        cube_size: int,
        base_channels: int = 32,
        num_pools: int = 5,
        transformer: bool = True,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        require_heads("transunet", widths=[hidden_size], num_heads=[num_heads])
        if num_pools < 1:
            raise RefusedError("E_NETWORK", f"transunet: num_pools {num_pools}", hint="use 5, or 1 to 4 for speed")
        self.widths = [min(base_channels << level, MAX_WIDTH) for level in range(num_pools + 1)]
        self.strides = halving_strides("transunet", cube_size=cube_size, num_levels=num_pools + 1)
        self.cube_size = cube_size
        self.token_stride = math.prod(self.strides)
        self.token_dim = hidden_size if transformer else self.widths[-1]
        self.checkpointing = False
        self.downs = nn.ModuleList(
            convolutions(before, width, stride=stride)
            for before, width, stride in zip([1, *self.widths[:-1]], self.widths, self.strides, strict=True)
        )
        self.transformer = None
        if transformer:
            num_tokens = (cube_size // self.token_stride) ** 3
            self.transformer = BottomTransformer(self.widths[-1], hidden_size, num_tokens=num_tokens)
            self.transformer.layers.extend(
                TransformerLayer(hidden_size, mlp_dim=mlp_dim, num_heads=num_heads) for _ in range(num_layers)
            )

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        pyramid, features = [], volume
        for down in self.downs:
            features = down(features)
            pyramid.append(features)
        if self.transformer is not None:
            pyramid[-1] = self.transformer(features, checkpointing=self.checkpointing)
        return last_as_tokens(pyramid)


class TransUNetDecoder(nn.Module):
    """The up path of a U-Net, and optionally a transformer whose queries become masks.

    Deviation: without deep supervision there is one map to classes at full size (none with `mask_decoder`), where the
    reference has a head at every level or none at all.

    Args:
        encoder: Down path.
        num_classes: Number of classes, background included.
        mask_decoder: Whether logits come from masks of learned queries; see `MaskDecoder`.
        num_queries: Number of those queries.
        mask_dim: Their channels.
        mask_layers: Layers of that transformer.
        deep_supervision: Also give logits of the coarser levels in training, and with `mask_decoder` those of the
            finest level and those before each of its layers.

    Attributes:
        auxiliary_weights: Halved from level to level as nnU-Net's, the finest (if there) 1; 1 for each of the masks'
            as in Mask2Former.

    Raises:
        RefusedError: E_NETWORK, if there is no transformer at all, or channels do not fit together.
    """

    def __init__(
        self,
        encoder: TransUNetEncoder,
        num_classes: int,
        *,
        mask_decoder: bool = False,
        num_queries: int = 20,
        mask_dim: int = 192,
        mask_layers: int = 3,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if encoder.transformer is None and not mask_decoder:
            message = "transunet without transformer and without mask_decoder is a plain U-Net"
            raise RefusedError("E_NETWORK", message, hint="set one of them, or use the network nnunet")
        widths = encoder.widths
        self.project = None if encoder.transformer is None else nn.Conv3d(encoder.token_dim, widths[-1], 1)
        self.ups = nn.ModuleList(
            UpLevel(below, width, stride=stride)
            for below, width, stride in zip(widths[1:], widths[:-1], encoder.strides[1:], strict=True)
        )
        self.masks = (
            MaskDecoder(widths, num_classes, num_queries=num_queries, width=mask_dim, num_layers=mask_layers)
            if mask_decoder
            else None
        )
        num_heads = len(self.ups) if deep_supervision else int(not mask_decoder)
        self.heads = nn.ModuleList(nn.Conv3d(width, num_classes, 1, bias=False) for width in widths[:num_heads])
        self.deep_supervision = deep_supervision
        self.auxiliary_weights: tuple[float, ...] = ()
        if deep_supervision:
            finest = (1.0,) if mask_decoder else ()
            of_masks = (1.0,) * mask_layers if mask_decoder else ()
            self.auxiliary_weights = (*of_masks, *finest, *halved_weights(num_heads - 1))

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoded: EncoderOutput) -> SegmentationOutput:
        """Return the logits, and those of deep supervision in training."""
        maps = self._decode(encoded)
        supervised = self.training and self.deep_supervision
        if self.masks is None:
            first, *others = zip(self.heads, maps, strict=False)
            auxiliary = tuple(head(features) for head, features in others) if supervised else ()
            return SegmentationOutput(first[0](first[1]), auxiliary)
        *earlier, logits = self.masks(maps, every_layer=supervised)
        of_levels = [head(features) for head, features in zip(self.heads, maps, strict=False)] if supervised else []
        return SegmentationOutput(logits, (*earlier, *of_levels))

    def _decode(self, encoded: EncoderOutput) -> list[Float[Tensor, "b _ _ _ _"]]:
        """Return the maps of all levels, finest first."""
        *skips, features = encoded.pyramid
        if self.project is not None:
            features = self.project(features)
        maps: list[Tensor] = [features]
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            maps.insert(0, up(maps[0], skip))
        return maps


class BottomTransformer(nn.Module):
    """Transformer layers over the cells of a map, with a learned position for each; `layers` are added after.

    Args:
        in_channels: Channels of the map.
        width: Channels of a token.
        num_tokens: Number of cells.
    """

    def __init__(self, in_channels: int, width: int, *, num_tokens: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(in_channels, width, kernel_size=1)
        self.position = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.layers = nn.ModuleList()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Float[Tensor, "b _ d h w"], *, checkpointing: bool) -> Float[Tensor, "b _ d h w"]:
        """Return the tokens, after a last norm, as a map."""
        d, h, w = features.shape[2:]
        tokens = map_to_tokens(self.embed(features)) + self.position
        for layer in self.layers:
            tokens = run_block(layer, tokens, checkpointing=checkpointing)
        return tokens_to_map(self.norm(tokens), (d, h, w))


class TransformerLayer(nn.Module):
    """Attention and an MLP, each after a norm, scaled a channel and added to the tokens.

    Args:
        width: Channels of a token.
        mlp_dim: Hidden channels of the MLP.
        num_heads: Number of attention heads.
    """

    def __init__(self, width: int, *, mlp_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.scale1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, width))
        self.scale2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Update the tokens."""
        normed = self.norm1(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + self.scale1 * attended
        return tokens + self.scale2 * self.mlp(self.norm2(tokens))


class UpLevel(nn.Module):
    """Enlarge what comes from below, join the skip, convolve twice.

    Args:
        below: Channels that come from below.
        width: Channels of the level.
        stride: How many times larger the level is than the one below, along each axis.
    """

    def __init__(self, below: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.expand = nn.ConvTranspose3d(below, width, kernel_size=stride, stride=stride, bias=False)
        self.refine = convolutions(2 * width, width)

    def forward(
        self, features: Float[Tensor, "b _ _ _ _"], skip: Float[Tensor, "b _ d h w"]
    ) -> Float[Tensor, "b _ d h w"]:
        """Decode one level."""
        return self.refine(torch.cat([self.expand(features), skip], dim=1))


def convolutions(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """Two 3^3 convolutions, each with instance norm and a leaky ReLU; the first may stride."""
    layers: list[nn.Module] = []
    for before, step in ((in_channels, stride), (out_channels, 1)):
        convolve = nn.Conv3d(before, out_channels, kernel_size=3, stride=step, padding=1)
        nn.init.kaiming_normal_(convolve.weight, a=SLOPE)
        layers += [convolve, nn.InstanceNorm3d(out_channels, affine=True), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)
