"""Convolutional encoders: ResNet, DenseNet, MedicalNet's ResNet, and the down paths of U-Net and of DynUNet.

The pyramid has one map a level, finest first. Batch norm (ResNet, DenseNet, MedicalNet) and instance norm (U-Nets)
need more than one cell at the bottom: a cube must be twice a token's block at least.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

import torch.nn.functional as F
from monai.networks.blocks.convolutions import ResidualUnit
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.resnet import ResNet
from torch import nn

from m3di.networks.encoders import EncoderOutput, map_to_tokens, require_multiple
from m3di.types import Float, Tensor
from stores.errors import RefusedError

RESNET_LAYERS: Final = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
WIDTHS: Final = (64, 128, 256, 512)
BOTTLENECK_FROM = 50  # depths from here on have bottleneck blocks
EXPANSION = 4
MIN_HALVINGS = 3  # a U-Net with fewer has so many cells at the bottom that it sees too little of the volume


class ResNetEncoder(nn.Module):
    """The 3D residual network (MONAI's), without pooling and classes; levels at 1/2 to 1/32 of the cube's edge.

    The weights are named as MONAI's: at depth 50 the 46,163,010 of MONAI's `resnet50` with 2 classes less the 4,098
    of its classes.

    Deviation: MONAI's stem does not stride, which costs 8 times as much; `stem_stride` 1 asks for that.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 16 * `stem_stride`, two cells at least.
        depth: 10, 18, 34, 50 or 101.
        stem_stride: Stride of the first convolution, 1 or 2.

    Raises:
        RefusedError: E_NETWORK, for an unknown depth or stride, or a cube that does not fit.

    Source: He et al. 2016 (arXiv 1512.03385), Hara et al. 2018 (arXiv 1711.09577), MONAI 1.6 `ResNet` (Apache 2.0).
    """

    def __init__(self, *, cube_size: int, depth: int, stem_stride: int = 2) -> None:
        super().__init__()
        layers = _layers("resnet", depth)
        if stem_stride not in (1, 2):
            raise RefusedError("E_NETWORK", f"resnet: stem_stride {stem_stride}", hint="use 1 or 2")
        self.token_stride = 16 * stem_stride
        self.cube_size = cube_size
        require_cells(f"resnet{depth}", cube_size=cube_size, stride=self.token_stride)
        wide = depth >= BOTTLENECK_FROM
        self.token_dim = WIDTHS[-1] * (EXPANSION if wide else 1)
        self.resnet = ResNet(
            "bottleneck" if wide else "basic",
            list(layers),
            list(WIDTHS),
            n_input_channels=1,
            conv1_t_stride=stem_stride,
            feed_forward=False,
        )

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        net = self.resnet
        stem = net.act(net.bn1(net.conv1(volume)))
        return last_as_tokens(chain(stem, net.maxpool(stem), (net.layer1, net.layer2, net.layer3, net.layer4)))


resnet10 = partial(ResNetEncoder, depth=10)
resnet18 = partial(ResNetEncoder, depth=18)
resnet34 = partial(ResNetEncoder, depth=34)
resnet50 = partial(ResNetEncoder, depth=50)
resnet101 = partial(ResNetEncoder, depth=101)


class MedicalNetEncoder(nn.Module):
    """MedicalNet's residual network: layers 3 and 4 dilate instead of striding, so tokens stand for 8^3 voxels.

    It has the names of torchvision's ResNet, as MedicalNet's public weights do (`m3di.networks.weights`). Parameters:
    14,355,520 (depth 10), 32,986,176 (18, shortcut A), 63,295,808 (34, shortcut A), 46,155,072 (50), 85,201,216
    (101). Levels at 1/2, 1/4, and three at 1/8 of the cube's edge.

    The public weights expect volumes with a z-score over voxels > 0, not intensities in [0, 1].

    Deviation: the reference cuts the gradient through shortcut A; here it flows.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 8 from 16 on.
        depth: 10, 18, 34, 50 or 101.
        shortcut: Where a block changes its shape: `A`, every second cell and zeros for the new channels, or `B`, a
            convolution. By default that of the public weights of the depth.

    Raises:
        RefusedError: E_NETWORK, for an unknown depth or shortcut, or a cube that does not fit.

    Source: Chen et al. 2019 (arXiv 1904.00625), geometry of github.com/Tencent/MedicalNet (MIT).
    """

    token_stride = 8

    def __init__(self, *, cube_size: int, depth: int = 50, shortcut: str | None = None) -> None:
        super().__init__()
        layers = _layers("medicalnet", depth)
        shortcut = shortcut or ("A" if depth in (18, 34) else "B")
        if shortcut not in ("A", "B"):
            raise RefusedError("E_NETWORK", f"medicalnet: unknown shortcut {shortcut!r}", hint="use A or B")
        require_cells("medicalnet", cube_size=cube_size, stride=self.token_stride)
        self.cube_size = cube_size
        wide = depth >= BOTTLENECK_FROM
        self.token_dim = WIDTHS[-1] * (EXPANSION if wide else 1)
        self.conv1 = nn.Conv3d(1, WIDTHS[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(WIDTHS[0])
        self.maxpool = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
        channels = WIDTHS[0]
        for level, (width, count) in enumerate(zip(WIDTHS, layers, strict=True)):
            shape = BlockShape(width, stride=2 if level == 1 else 1, dilation=(1, 1, 2, 4)[level], wide=wide)
            self.add_module(f"layer{level + 1}", _residual_layer(channels, shape, count=count, shortcut=shortcut))
            channels = shape.out_channels
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes (see above for their intensities)."""
        stem = F.relu(self.bn1(self.conv1(volume)))
        layers = [self.get_submodule(f"layer{level}") for level in range(1, 5)]
        return last_as_tokens(chain(stem, self.maxpool(stem), layers))


class BlockShape(NamedTuple):
    """The shape of a residual block.

    Attributes:
        width: Channels inside.
        stride: Stride of its (first) 3^3 convolution.
        dilation: Dilation of its 3^3 convolutions.
        wide: Whether it is a bottleneck block, with `EXPANSION` times as many channels outside.
    """

    width: int
    stride: int
    dilation: int
    wide: bool

    @property
    def out_channels(self) -> int:
        """Channels that leave the block."""
        return self.width * (EXPANSION if self.wide else 1)


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions, or one between two of 1^3, with batch norm, and a shortcut around them.

    Args:
        in_channels: Channels that enter.
        shape: Shape of the block.
        shortcut: `A` or `B`, used where the shape changes.
    """

    def __init__(self, in_channels: int, shape: BlockShape, *, shortcut: str) -> None:
        super().__init__()
        self.shape = shape
        width, stride, dilation, wide = shape
        if wide:
            self.conv1 = nn.Conv3d(in_channels, width, kernel_size=1, bias=False)
            self.conv2 = _conv3(width, width, stride=stride, dilation=dilation)
            self.conv3 = nn.Conv3d(width, shape.out_channels, kernel_size=1, bias=False)
            self.bn3 = nn.BatchNorm3d(shape.out_channels)
        else:
            self.conv1 = _conv3(in_channels, width, stride=stride, dilation=dilation)
            self.conv2 = _conv3(width, width, dilation=dilation)
        self.bn1 = nn.BatchNorm3d(width)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = None
        if shortcut == "B" and (stride != 1 or in_channels != shape.out_channels):
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, shape.out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm3d(shape.out_channels),
            )

    def forward(self, features: Float[Tensor, "b _ _ _ _"]) -> Float[Tensor, "b _ _ _ _"]:
        """Update the features."""
        changed = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(features)))))
        if self.shape.wide:
            changed = self.bn3(self.conv3(F.relu(changed)))
        return F.relu(changed + self._shortcut(features))

    def _shortcut(self, features: Float[Tensor, "b _ _ _ _"]) -> Float[Tensor, "b _ _ _ _"]:
        if self.downsample is not None:
            return self.downsample(features)
        step = self.shape.stride
        missing = self.shape.out_channels - features.shape[1]
        return F.pad(features[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, missing))


class DenseNet121Encoder(nn.Module):
    """The 3D DenseNet-121 (MONAI's), without pooling and classes; levels at 1/2 to 1/32 of the cube's edge.

    The weights are named as MONAI's: 11,244,674 with 2 classes less the 2,050 of its classes.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 32 from 64 on.

    Raises:
        RefusedError: E_NETWORK, for a cube that does not fit.

    Source: Huang et al. 2017 (arXiv 1608.06993), MONAI 1.6 `DenseNet121` (Apache 2.0).
    """

    token_dim = 1024
    token_stride = 32

    def __init__(self, *, cube_size: int) -> None:
        super().__init__()
        require_cells("densenet121", cube_size=cube_size, stride=self.token_stride)
        self.cube_size = cube_size
        self.features = DenseNet121(spatial_dims=3, in_channels=1, out_channels=1).features

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        pyramid, features = [], volume
        for name, module in self.features.named_children():
            features = module(features)
            if name in ("relu0", "denseblock1", "denseblock2", "denseblock3"):
                pyramid.append(features)
        return last_as_tokens([*pyramid, F.relu(features)])


class UNetEncoder(nn.Module):
    """The down path of MONAI's residual U-Net: levels of 16 to 128 channels at 1/2 to 1/16, and 256 at 1/16.

    The up path of the 4,822,057 parameters (14 classes) is not part of it.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 16 from 32 on.
        channels: Channels of each level; all but the last halve the resolution.
        num_res_units: Convolutions in a residual unit.

    Raises:
        RefusedError: E_NETWORK, for a cube that does not fit.

    Source: Kerfoot et al. 2019, MONAI 1.6 `UNet` (Apache 2.0).
    """

    def __init__(
        self, *, cube_size: int, channels: Iterable[int] = (16, 32, 64, 128, 256), num_res_units: int = 2
    ) -> None:
        super().__init__()
        widths = list(channels)
        self.widths, self.num_res_units = widths, num_res_units
        self.token_dim = widths[-1]
        self.token_stride = 2 ** (len(widths) - 1)
        require_cells("unet", cube_size=cube_size, stride=self.token_stride)
        self.cube_size = cube_size
        strides = [2] * (len(widths) - 1) + [1]
        self.downs = nn.ModuleList(
            ResidualUnit(3, before, width, strides=stride, subunits=num_res_units, act="PRELU", norm="INSTANCE")
            for before, width, stride in zip([1, *widths[:-1]], widths, strides, strict=True)
        )

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        first, *rest = self.downs
        features = first(volume)
        return last_as_tokens(chain(features, features, rest))


class DynUNetEncoder(nn.Module):
    """The down path of nnU-Net's network (MONAI's `DynUNet`): the architecture, not the self-configuring pipeline.

    Six levels of 32, 64, 128, 256, 320, 320 channels at 1/1 to 1/32. Its weights are named as MONAI's; the up path of
    the 31,189,806 parameters (14 classes) is not part of it. A cube that cannot be halved five times keeps its size
    at the coarsest levels (`halving_strides`), which changes no weight here.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 8 from 16 on.
        filters: Channels of each level, three at least.

    Attributes:
        strides: Stride of each level.

    Raises:
        RefusedError: E_NETWORK, for a cube that does not fit.

    Source: Isensee et al. 2021 (nnU-Net), MONAI 1.6 `DynUNet` (Apache 2.0).
    """

    def __init__(self, *, cube_size: int, filters: Iterable[int] = (32, 64, 128, 256, 320, 320)) -> None:
        super().__init__()
        self.widths = list(filters)
        if len(self.widths) < 3:
            raise RefusedError("E_NETWORK", f"dynunet: filters {self.widths}", hint="give three levels at least")
        self.token_dim = self.widths[-1]
        self.strides = halving_strides("dynunet", cube_size=cube_size, num_levels=len(self.widths))
        self.token_stride = math.prod(self.strides)
        self.cube_size = cube_size
        first, *downs, last = (
            _dynunet_block(before, after, stride=stride)
            for before, after, stride in zip([1, *self.widths[:-1]], self.widths, self.strides, strict=True)
        )
        self.input_block = first
        self.downsamples = nn.ModuleList(downs)
        self.bottleneck = last
        self.apply(DynUNet.initialize_weights)

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        features = self.input_block(volume)
        return last_as_tokens(chain(features, features, (*self.downsamples, self.bottleneck)))


def halving_strides(network: str, *, cube_size: int, num_levels: int) -> list[int]:
    """Strides of the levels of a U-Net: 1 at full size, then 2 while a level can be halved and two cells remain.

    nnU-Net's planner stops halving likewise (at four cells), but then also leaves out the level; here the level
    stays, so that a network has the same weights at every cube.

    Raises:
        RefusedError: E_NETWORK, if the cube is no multiple of 8 (less where there are few levels) or too small.
    """
    stride = 2 ** min(num_levels - 1, MIN_HALVINGS)
    require_cells(network, cube_size=cube_size, stride=stride)
    strides, edge = [1], cube_size
    while len(strides) < num_levels:
        strides.append(1 if edge % 2 or edge < 4 else 2)
        edge //= strides[-1]
    return strides


def chain(first: Tensor, features: Tensor, layers: Iterable[nn.Module]) -> list[Tensor]:
    """Return `first` and what each layer makes of the map before, beginning with `features`."""
    pyramid = [first]
    for layer in layers:
        features = layer(features)
        pyramid.append(features)
    return pyramid


def last_as_tokens(pyramid: list[Tensor]) -> EncoderOutput:
    """Return a pyramid whose last map gives the tokens."""
    d, h, w = pyramid[-1].shape[2:]
    return EncoderOutput(map_to_tokens(pyramid[-1]), (d, h, w), pyramid)


def require_cells(network: str, *, cube_size: int, stride: int) -> None:
    """Refuse a cube that does not leave two cells or more along each axis at the bottom.

    Raises:
        RefusedError: E_NETWORK.
    """
    require_multiple(network, cube_size=cube_size, factor=stride)
    if cube_size < 2 * stride:
        raise RefusedError(
            "E_NETWORK",
            f"{network} needs a cube of at least {2 * stride} voxels, not {cube_size}: norms need two cells",
            hint=f"use a cube of {2 * stride} voxels, or another encoder",
        )


def _layers(network: str, depth: int) -> tuple[int, ...]:
    if depth not in RESNET_LAYERS:
        known = ", ".join(map(str, RESNET_LAYERS))
        raise RefusedError("E_NETWORK", f"{network} has no depth {depth}", hint=f"choose one of {known}")
    return RESNET_LAYERS[depth]


def _residual_layer(in_channels: int, shape: BlockShape, *, count: int, shortcut: str) -> nn.Sequential:
    rest = shape._replace(stride=1)
    return nn.Sequential(
        ResidualBlock(in_channels, shape, shortcut=shortcut),
        *(ResidualBlock(shape.out_channels, rest, shortcut=shortcut) for _ in range(count - 1)),
    )


def _conv3(in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv3d:
    return nn.Conv3d(
        in_channels, out_channels, kernel_size=3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


def _dynunet_block(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    return UnetBasicBlock(
        3, in_channels, out_channels, kernel_size=3, stride=stride, norm_name=("INSTANCE", {"affine": True})
    )
