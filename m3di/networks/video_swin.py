"""Video-Swin (torchvision's) over volumes as the encoder `video_swin`: the paper's other reading of "Swin"."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from torch import nn
from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d

from m3di.networks.encoders import (
    EncoderOutput,
    map_to_tokens,
    require_heads,
    require_multiple,
    require_per_stage,
    run_block,
)
from m3di.types import Float, Tensor

NUM_STAGES: Final = 4
PATCH_SIZE: Final = (2, 4, 4)
WINDOW_SIZE: Final = (8, 7, 7)


class VideoSwinEncoder(nn.Module):
    """Four stages of window attention that merge tokens within a plane only, never across planes.

    The axis of time is the volume's last, from inferior to superior: the frames are axial slices. A token stands for
    32 x 32 voxels of 2 slices, so at 128^3 there are 4 x 4 x 64 = 1024. The pyramid has embed_dim * (1, 2, 4, 8)
    channels at 1/4 to 1/32 of the edges within a plane, and 1/2 across.

    Deviation: the first convolution has one channel where torchvision has the three of a picture. It computes what
    three would of a grey volume repeated three times, with its weights as their sum; `m3di.networks.weights` sums
    them so. With three it would be torchvision's 27,852,008 parameters (2 classes); here 6,144 and the classes less.
    No stochastic depth: encoders draw no random numbers.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 32.
        embed_dim: Channels of the finest stage.
        depths: Number of blocks of each stage.
        num_heads: Attention heads of each stage.

    Attributes:
        token_stride: Edge of a token's block within a plane; across planes it is 2.
        checkpointing: Compute the blocks again in the backward pass to save memory; set it when training begins.

    Raises:
        RefusedError: E_NETWORK, if the cube is no multiple of 32, there are not four stages, or the heads do not
            divide the channels.

    Source: Liu et al. 2022 (arXiv 2106.13230), torchvision `swin3d_t` (BSD 3-clause).
    """

    token_stride = 32

    def __init__(
        self,
        *,
        cube_size: int,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
    ) -> None:
        super().__init__()
        require_multiple("video_swin", cube_size=cube_size, factor=self.token_stride)
        require_per_stage("video_swin", num_stages=NUM_STAGES, depths=depths, num_heads=num_heads)
        widths = [embed_dim * 2**stage for stage in range(NUM_STAGES)]
        require_heads("video_swin", widths=widths, num_heads=num_heads)
        self.checkpointing = False
        self.cube_size = cube_size
        self.token_dim = widths[-1]
        swin = SwinTransformer3d(
            patch_size=list(PATCH_SIZE),
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=list(num_heads),
            window_size=list(WINDOW_SIZE),
            stochastic_depth_prob=0.0,
            patch_embed=partial(PatchEmbed3d, in_channels=1),
        )
        self.patch_embed = swin.patch_embed
        self.features = swin.features
        self.norm = swin.norm

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        features = self.patch_embed(volume.movedim(-1, 2))
        pyramid = []
        for number, layer in enumerate(self.features):
            if number % 2:  # between two stages
                pyramid.append(_as_map(features))
                features = layer(features)
                continue
            for block in layer:
                features = run_block(block, features, checkpointing=self.checkpointing)
        pyramid.append(_as_map(self.norm(features)))
        d, h, w = pyramid[-1].shape[2:]
        return EncoderOutput(map_to_tokens(pyramid[-1]), (d, h, w), pyramid)


def _as_map(features: Float[Tensor, "b w d h c"]) -> Float[Tensor, "b c d h w"]:
    return features.permute(0, 4, 2, 3, 1)
