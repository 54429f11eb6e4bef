"""The 3D Swin transformer of Swin UNETR (MONAI's) as the encoder `swin`."""

from collections.abc import Sequence

from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from m3di.networks.encoders import EncoderOutput, map_to_tokens, require_multiple
from m3di.types import Float, Tensor
from stores.errors import RefusedError

PATCH_SIZE = 2
NUM_STAGES = 4  # MONAI's implementation is written for four


class SwinEncoder(nn.Module):
    """Swin transformer of four stages; the tokens are the deepest of its five levels.

    The weights are named `swinViT.*`, as in MONAI's SwinUNETR: 8,062,002 at the default feature size.
    The pyramid has feature_size * (1, 2, 4, 8, 16) channels at 1/2 to 1/32 of the cube's edge.

    Args:
        cube_size: Edge of the input cube in voxels, a multiple of 32.
        feature_size: Channels of the finest level.
        depths: Number of layers of each stage.
        num_heads: Attention heads of each stage.
        use_checkpoint: Compute the layers again in the backward pass to save memory.

    Raises:
        RefusedError: E_NETWORK, if the cube is no multiple of 32, there are not four stages, or the heads do
            not divide the channels.

    Source: Hatamizadeh et al. 2022 (arXiv 2201.01266), MONAI 1.6 `SwinTransformer` (Apache 2.0).
    """

    def __init__(
        self,
        *,
        cube_size: int,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        require_multiple("swin", cube_size=cube_size, factor=PATCH_SIZE * 2**NUM_STAGES)
        _require_stages(feature_size, depths, num_heads)
        self.token_dim = feature_size * 2**NUM_STAGES
        self.token_stride = PATCH_SIZE * 2**NUM_STAGES
        self.feature_size = feature_size
        self.cube_size = cube_size
        self.swinViT = SwinTransformer(
            in_chans=1,
            embed_dim=feature_size,
            window_size=(7, 7, 7),
            patch_size=(PATCH_SIZE,) * 3,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            use_checkpoint=use_checkpoint,
        )

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        pyramid = self.swinViT(volume, normalize=True)
        d, h, w = pyramid[-1].shape[2:]
        return EncoderOutput(map_to_tokens(pyramid[-1]), (d, h, w), pyramid)


def _require_stages(feature_size: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    channels = [feature_size * 2**stage for stage in range(NUM_STAGES)]
    if len(depths) != NUM_STAGES or len(num_heads) != NUM_STAGES:
        raise RefusedError(
            "E_NETWORK",
            f"swin has {NUM_STAGES} stages, but depths {list(depths)} and num_heads {list(num_heads)}",
            hint=f"give {NUM_STAGES} values for each",
        )
    if any(width % heads for width, heads in zip(channels, num_heads, strict=True)):
        raise RefusedError(
            "E_NETWORK",
            f"swin: stages of {channels} channels are not multiples of their num_heads {list(num_heads)}",
            hint="choose heads that divide feature_size * (1, 2, 4, 8)",
        )
