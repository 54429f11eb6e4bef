"""The 3D Swin transformer of Swin UNETR (MONAI's) as the encoder `swin`."""

from collections.abc import Iterator, Sequence

from monai.networks.nets.swin_unetr import SwinTransformer, SwinTransformerBlock
from torch import nn

from m3di.networks.encoders import EncoderOutput, map_to_tokens, require_heads, require_multiple, require_per_stage
from m3di.types import Float, Tensor

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

    Attributes:
        checkpointing: Compute the layers again in the backward pass to save memory; set it when training begins.

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
    ) -> None:
        super().__init__()
        require_multiple("swin", cube_size=cube_size, factor=PATCH_SIZE * 2**NUM_STAGES)
        require_per_stage("swin", num_stages=NUM_STAGES, depths=depths, num_heads=num_heads)
        widths = [feature_size * 2**stage for stage in range(NUM_STAGES)]
        require_heads("swin", widths=widths, num_heads=num_heads)
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
        )

    @property
    def checkpointing(self) -> bool:
        """Whether the layers are computed again in the backward pass."""
        return all(block.use_checkpoint for block in self._blocks())

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        for block in self._blocks():
            block.use_checkpoint = value

    def _blocks(self) -> Iterator[SwinTransformerBlock]:
        return (module for module in self.modules() if isinstance(module, SwinTransformerBlock))

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        pyramid = self.swinViT(volume, normalize=True)
        d, h, w = pyramid[-1].shape[2:]
        return EncoderOutput(map_to_tokens(pyramid[-1]), (d, h, w), pyramid)
