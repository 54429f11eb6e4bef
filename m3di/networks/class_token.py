"""Classification by a vision transformer's class token, which belongs to the head and not to the encoder."""

from typing import Final

import torch
from torch import nn

from m3di.networks.classification import PooledHead, head_dropout
from m3di.networks.encoders import run_block
from m3di.networks.vit import ViTEncoder
from m3di.types import Float, Tensor
from stores.errors import RefusedError

TOKEN_STD: Final = 0.02
POOLINGS: Final = ("class_token", "mean")


class ClassTokenHead(nn.Module):
    """A learned token that passes through a ViT's layers before the patches' tokens, then a linear map to classes.

    The token belongs to the head, so that an encoder pretrained without one still loads strictly. With `vit` at 128^3
    and 2 classes the network has the 88,588,802 parameters of MONAI's `ViT(classification=True)` and its outputs.

    Deviation: MONAI ends in a tanh by default, which holds logits within [-1, 1] and cross entropy of two classes
    above 0.12; here logits are free, as with MONAI's `post_activation=""`. Its token starts at zero, this one drawn.

    Args:
        encoder: A `ViTEncoder`.
        num_classes: Number of classes.
        dropout: Share of the token's channels that is dropped in training, after the layers.

    Raises:
        RefusedError: E_NETWORK, if `dropout` is not in [0, 1).

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.1; MONAI 1.6 `ViT` (Apache 2.0).
    """

    def __init__(self, encoder: ViTEncoder, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, encoder.token_dim))
        nn.init.trunc_normal_(self.class_token, std=TOKEN_STD)
        self.dropout = head_dropout(dropout)
        self.classify = nn.Linear(encoder.token_dim, num_classes)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoder: ViTEncoder) -> Float[Tensor, "b _"]:
        """Return one logit a class."""
        patches = encoder.vit.patch_embedding(volume)
        hidden = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        for block in encoder.vit.blocks:
            hidden = run_block(block, hidden, checkpointing=encoder.checkpointing)
        return self.classify(self.dropout(encoder.vit.norm(hidden[:, 0])))


def vit_head(
    encoder: ViTEncoder, num_classes: int, *, pooling: str = "class_token", dropout: float = 0.0
) -> ClassTokenHead | PooledHead:
    """Build the head of `vit`.

    Args:
        encoder: A `ViTEncoder`.
        num_classes: Number of classes.
        pooling: `class_token`, as in the paper of ViT and in MONAI, or `mean` of the patches' tokens, which are what
            pretraining has taught: the better choice for a linear probe, where a class token could not learn to ask.
        dropout: Share of the channels that is dropped in training before the linear map.

    Raises:
        RefusedError: E_NETWORK, for an unknown pooling or a `dropout` not in [0, 1).
    """
    if pooling not in POOLINGS:
        raise RefusedError("E_NETWORK", f"vit: unknown pooling {pooling!r}", hint=f"use {' or '.join(POOLINGS)}")
    head = ClassTokenHead if pooling == "class_token" else PooledHead
    return head(encoder, num_classes, dropout=dropout)
