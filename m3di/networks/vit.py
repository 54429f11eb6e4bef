"""The plain 3D vision transformer (MONAI's), as the encoder `vit` and, with tapped layers, `unetr` and `setr`."""

from typing import Final

from monai.networks.nets.vit import ViT
from torch import nn

from m3di.networks.encoders import EncoderOutput, require_multiple, run_block, tokens_to_map
from m3di.types import Float, Tensor
from stores.errors import RefusedError

SETR_TAPS: Final = 4


class ViTEncoder(nn.Module):
    """A 3D vision transformer whose hidden states can be tapped.

    The weights are named `vit.*`, as in MONAI's UNETR. At 128^3 with the default options they are the
    88,586,496 of MONAI's ViT; that includes a norm a layer which only cross-attention would use.

    Args:
        network: Name for error messages.
        cube_size: Edge of the input cube in voxels.
        taps: Layers, counted from 0, whose outputs go into the pyramid before the final tokens.
        patch_size: Edge of a patch in voxels.
        hidden_size: Channels of a token.
        mlp_dim: Hidden channels of the layers' MLP.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads.

    Attributes:
        checkpointing: Compute the layers again in the backward pass to save memory; set it when training begins.

    Raises:
        RefusedError: E_NETWORK, if patches do not divide the cube or heads do not divide the channels.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), MONAI 1.6 `ViT` (Apache 2.0).
    """

    def __init__(
        self,
        *,
        network: str = "vit",
        cube_size: int,
        taps: tuple[int, ...] = (),
        patch_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
    ) -> None:
        super().__init__()
        require_multiple(network, cube_size=cube_size, factor=patch_size)
        _require_heads(network, hidden_size=hidden_size, num_heads=num_heads)
        self.token_dim = hidden_size
        self.cube_size = cube_size
        self.token_stride = patch_size
        self.taps = taps
        self.checkpointing = False
        self.vit = ViT(
            in_channels=1,
            img_size=cube_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
        )
        for block in self.vit.blocks:
            block.attn.use_flash_attention = True  # the same attention without a stored n x n matrix
            # Never used without cross-attention; DistributedDataParallel would wait for its gradient.
            block.norm_cross_attn.requires_grad_(False)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of tokens along each axis."""
        edge = self.cube_size // self.token_stride
        return edge, edge, edge

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> EncoderOutput:
        """Encode volumes with intensities in [0, 1]."""
        hidden = self.vit.patch_embedding(volume)
        tapped = []
        for number, block in enumerate(self.vit.blocks):
            hidden = run_block(block, hidden, checkpointing=self.checkpointing)
            if number in self.taps:
                tapped.append(hidden)
        tokens = self.vit.norm(hidden)
        return EncoderOutput(tokens, self.grid, [tokens_to_map(t, self.grid) for t in (*tapped, tokens)])


def vit(
    *,
    cube_size: int,
    patch_size: int = 16,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
) -> ViTEncoder:
    """Build the plain encoder; see `ViTEncoder` for the options."""
    return ViTEncoder(
        cube_size=cube_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
    )


def unetr(
    *,
    cube_size: int,
    patch_size: int = 16,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
) -> ViTEncoder:
    """Build UNETR's encoder: the same weights as `vit`, with a tap for each skip of UNETR's decoder.

    A patch of 2^s voxels needs s - 1 taps, evenly spread over the layers. For 12 layers and patches of 16
    they are MONAI's 3, 6 and 9 counted from 0, one later than z3, z6 and z9 of the UNETR paper.

    Raises:
        RefusedError: E_NETWORK, if the patch size is not a power of two of at least 2, or as for `ViTEncoder`.
    """
    num_steps = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 2**num_steps:
        raise RefusedError(
            "E_NETWORK",
            f"unetr needs patches of a power of two voxels, not {patch_size}",
            hint="its decoder doubles the resolution step by step: use patch_size 4, 8 or 16",
        )
    return ViTEncoder(
        network="unetr",
        cube_size=cube_size,
        taps=tuple(num_layers * step // num_steps for step in range(1, num_steps)),
        patch_size=patch_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
    )


def setr(
    *,
    cube_size: int,
    patch_size: int = 16,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_layers: int = 12,
    num_heads: int = 12,
) -> ViTEncoder:
    """Build SETR's encoder: the same weights as `vit`, with the four taps of SETR's MLA head.

    The taps are the ends of the four quarters of the layers: 2, 5, 8 and 11 of 12, counted from 0, as 5, 11, 17 and
    23 are of the 24 of the paper's ViT-L. The pyramid has them, without a norm, and then the final tokens.

    Raises:
        RefusedError: E_NETWORK, if four does not divide the number of layers, or as for `ViTEncoder`.

    Source: Zheng et al. 2021 (arXiv 2012.15840), section 3.3, with volumes for pictures and ViT-B for ViT-L.
    """
    if num_layers < SETR_TAPS or num_layers % SETR_TAPS:
        message = f"setr needs a number of layers that is a multiple of {SETR_TAPS}, not {num_layers}"
        raise RefusedError("E_NETWORK", message, hint="use num_layers 12 or 24")
    quarter = num_layers // SETR_TAPS
    return ViTEncoder(
        network="setr",
        cube_size=cube_size,
        taps=tuple(range(quarter - 1, num_layers, quarter)),
        patch_size=patch_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        num_heads=num_heads,
    )


def _require_heads(network: str, *, hidden_size: int, num_heads: int) -> None:
    if hidden_size % num_heads:
        raise RefusedError(
            "E_NETWORK",
            f"{network}: hidden_size {hidden_size} is not a multiple of num_heads {num_heads}",
            hint="choose a number of heads that divides the hidden size",
        )
