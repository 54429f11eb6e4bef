"""M3T: a 3D convolution, a 2D ResNet-50 over every slice of three planes, and a transformer over all slices.

Written from the paper (Jang and Hwang 2022, CVPR, pages 20718-20729), which has no public code of its authors;
ResNet-50 is torchvision's (BSD 3-clause). Where the paper is silent, "Choice:" marks what was chosen.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import ResNet50_Weights, resnet50

from m3di.networks.classification import head_dropout
from m3di.networks.encoders import require_heads
from m3di.networks.imagenet import find_imagenet
from m3di.types import Float, Tensor
from stores.errors import RefusedError

AXES: Final = (3, 2, 4)  # of a batch of volumes; they count coronal, sagittal and axial slices
NUM_PLANES: Final = len(AXES)
MIN_SIZE: Final = 32  # voxels, what a cell of ResNet-50's last map stands for
SLICE_FEATURES: Final = 2048
PROJECTION_HIDDEN: Final = 512
TOKEN_STD: Final = 0.02

Slices = Float[Tensor, "b s c y x"]


class M3T(nn.Module):
    """Slices of three planes as tokens: class, coronal, separator, sagittal, separator, axial, separator.

    At 128^3 there are 1 + 3 * (128 + 1) = 388 tokens, and with 2 classes 30,280,610 parameters: 132,128 in the 3D
    convolutions, 23,598,976 in ResNet-50 with 32 channels at its stem, 1,180,416 in the projection to tokens, 100,608
    in tokens and embeddings, 5,267,456 in the layers, and 1,026 in the last norm and the classes.

    Choice: convolutions before a norm have no bias; one separator for all three places, as in BERT, and as there the
    class token has the first plane's embedding and a separator that of the plane before it; GELU and a last norm, as
    in ViT; no dropout within layers.

    Deviation: 384 slices at once need memory. With `slices_per_chunk`, ResNet's batch norms take their statistics in
    training from each chunk instead of all slices; in evaluation nothing changes. The memory of training shrinks with
    `checkpointing` on top, as otherwise all chunks are kept for the backward pass.

    Args:
        num_classes: Number of classes.
        cube_size: Edge of the cube in voxels, at least 32.
        channels: Channels of the 3D convolutions.
        hidden_size: Channels of a token.
        mlp_dim: Hidden channels of the layers' MLP.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads.
        slices_per_chunk: Slices of a plane of each volume, two at least, that go through ResNet at once; None for all
            slices of all planes.
        checkpointing: Compute slices and layers again in the backward pass to save memory.
        imagenet: Whether ResNet begins with ImageNet's weights, all but its stem, which has other channels: True
            refuses to go without them, None takes them where torchvision has them on the disk, False never does.
        dropout: Share of the class token's channels that is dropped in training, after the layers.

    Attributes:
        checkpointing: As given; training may set it.
        initialisation: What ResNet began with, `imagenet` or `random`.

    Raises:
        RefusedError: E_NETWORK, for a smaller cube or chunk, heads that do not divide the channels, or a `dropout`
            not in [0, 1); E_WEIGHTS, as for `find_imagenet`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        cube_size: int,
        channels: int = 32,
        hidden_size: int = 256,
        mlp_dim: int = 768,
        num_layers: int = 8,
        num_heads: int = 8,
        slices_per_chunk: int | None = None,
        checkpointing: bool = False,
        imagenet: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _require_sizes(cube_size, slices_per_chunk)
        require_heads("m3t", widths=[hidden_size], num_heads=[num_heads])
        self.slices_per_chunk = slices_per_chunk
        self.checkpointing = checkpointing
        self.volume_features = nn.Sequential(*_convolution(1, channels), *_convolution(channels, channels))
        self.slice_features = SliceFeatures(channels, hidden_size)
        self.initialisation = self.slice_features.load_imagenet(wanted=imagenet)
        self.tokens = TokenSequence(cube_size, hidden_size)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden_size, num_heads, mlp_dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.dropout = head_dropout(dropout)
        self.classify = nn.Linear(hidden_size, num_classes)

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b _"]:
        """Return one logit a class."""
        features = self.volume_features(volume)
        groups = _group([features.movedim(axis, 1) for axis in AXES], self.slices_per_chunk)
        slices = torch.cat(list(chain.from_iterable(map(self._describe, groups))), dim=1)
        hidden = self.tokens(slices)
        for layer in self.layers:
            hidden = self._run(layer, hidden)
        return self.classify(self.dropout(self.norm(hidden[:, 0])))

    def _describe(self, group: list[Tensor]) -> list[Tensor]:
        """Tokens (b s c) of each part (b s c y x) of a group of slices."""
        described = self._run(self.slice_features, *group)
        b = len(group[0])
        parts = described.split([b * part.shape[1] for part in group])
        return [tokens.unflatten(0, (b, -1)) for tokens in parts]

    def _run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return module(*inputs)
        return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: _without_tracking(module))


class SliceFeatures(nn.Module):
    """A 2D ResNet-50 to its global average pooling, then two linear maps with a ReLU between.

    Args:
        channels: Channels of a slice.
        token_dim: Channels of a token.
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.resnet = resnet50(weights=None)
        stem = self.resnet.conv1
        self.resnet.conv1 = nn.Conv2d(channels, stem.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.resnet.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.resnet.fc = nn.Identity()
        self.project = nn.Sequential(
            nn.Linear(SLICE_FEATURES, PROJECTION_HIDDEN), nn.ReLU(), nn.Linear(PROJECTION_HIDDEN, token_dim)
        )

    def load_imagenet(self, *, wanted: bool | None) -> str:
        """Load all but the stem, if the weights are there; return `imagenet` or `random`."""
        state = find_imagenet(ResNet50_Weights.IMAGENET1K_V1.url, wanted=wanted)
        if state is None:
            return "random"
        kept = {k: v for k, v in state.items() if not k.startswith("fc.")}
        self.resnet.load_state_dict(kept | {"conv1.weight": self.resnet.conv1.weight.detach()})
        return "imagenet"

    def forward(self, *parts: Slices) -> Float[Tensor, "_ _"]:
        """Return one token a slice, part after part and volume after volume."""
        return self.project(self.resnet(torch.cat([part.flatten(0, 1) for part in parts])))


class TokenSequence(nn.Module):
    """Put class token and separators among the slices' tokens, and say where each lies: place and plane.

    Args:
        num_slices: Slices of a plane.
        token_dim: Channels of a token.
    """

    def __init__(self, num_slices: int, token_dim: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(token_dim))
        self.separator = nn.Parameter(torch.empty(token_dim))
        self.plane = nn.Parameter(torch.empty(NUM_PLANES, token_dim))
        self.position = nn.Parameter(torch.empty(1 + NUM_PLANES * (num_slices + 1), token_dim))
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=TOKEN_STD)

    def forward(self, slices: Float[Tensor, "b s c"]) -> Float[Tensor, "b n c"]:
        """Return the sequence for the slices of three planes, plane after plane."""
        b = len(slices)
        planes = slices.unflatten(1, (NUM_PLANES, -1))
        separated = torch.cat([planes, self.separator.expand(b, NUM_PLANES, 1, -1)], dim=2)
        placed = (separated + self.plane[:, None]).flatten(1, 2)
        first = (self.class_token + self.plane[0]).expand(b, 1, -1)
        return torch.cat([first, placed], dim=1) + self.position


def _convolution(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv3d(in_channels, out_channels, kernel_size=5, padding=2, bias=False),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(),
    )


def _group(planes: list[Tensor], slices_per_chunk: int | None) -> list[list[Tensor]]:
    """Say which slices go through ResNet together: all, or chunks of a plane that differ by one slice at most."""
    if slices_per_chunk is None:
        return [planes]
    num_chunks = -(-planes[0].shape[1] // slices_per_chunk)
    return [[chunk] for plane in planes for chunk in plane.tensor_split(num_chunks, dim=1)]


def _without_tracking(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a forward pass and of its repetition, which must not count in the running statistics again."""
    return nullcontext(), _untracked(module)


@contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    # Without running statistics at all, the repetition would save other tensors than the first pass did.
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _require_sizes(cube_size: int, slices_per_chunk: int | None) -> None:
    if cube_size < MIN_SIZE:
        message = f"m3t needs a cube of at least {MIN_SIZE} voxels, not {cube_size}"
        raise RefusedError("E_NETWORK", message, hint=f"use a cube of {MIN_SIZE} voxels, or another network")
    if slices_per_chunk is not None and slices_per_chunk < 2:
        message = f"m3t: chunks of {slices_per_chunk} slices"
        raise RefusedError("E_NETWORK", message, hint="use 2 or more, as batch norm needs more than one cell")
