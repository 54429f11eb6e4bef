"""Classification networks: an encoder under `.encoder` and a head that gives one logit a class, or a whole network.

`ClassificationNetwork` is the one composition; the head over any encoder lives here, ViT's own in `class_token`,
whole networks in `mrnet` and `m3t`. Norms belong to encoders: ViT, Video-Swin, nnFormer and DenseNet have their last
one within, MONAI's Swin normalises its levels without weights, and residual networks and U-Nets have none.
"""

from torch import nn

from m3di.networks.encoders import Encoder, as_module
from m3di.types import Float, Tensor
from stores.errors import RefusedError


class ClassificationNetwork(nn.Module):
    """An encoder and a head; `encoder` has the state-dict keys of the encoder that was pretrained.

    A frozen encoder, one with no weight that requires a gradient, stays in evaluation when the network trains:
    otherwise its batch norms would still change with every batch. So a linear probe is
    `network.encoder.requires_grad_(False)` before `network.train()`.

    Args:
        encoder: Encoder of the volume; None for a head that is a whole network.
        head: Module called with (volume, encoder), or with the volume alone where there is no encoder, giving logits.
    """

    def __init__(self, encoder: Encoder | None, head: nn.Module) -> None:
        super().__init__()
        self.encoder = None if encoder is None else as_module(encoder)
        self.head = head

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b _"]:
        """Return one logit a class."""
        return self.head(volume) if self.encoder is None else self.head(volume, self.encoder)

    def train(self, mode: bool = True) -> "ClassificationNetwork":
        """Set the mode of all but a frozen encoder, which is put into evaluation."""
        super().train(mode)
        if self.encoder is not None and not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        return self


class PooledHead(nn.Module):
    """The mean of an encoder's tokens (global average pooling of its last map), then a linear map to classes.

    With the encoders `resnet50`, `densenet121` and `video_swin` it is the classifier of MONAI's and torchvision's
    networks of these names. Parameters with 2 classes: 46,163,010; 11,244,674; and 27,845,864, which are those of
    torchvision, 27,852,008, less two of the stem's three channels (2 * 96 * 2 * 4 * 4).

    Args:
        encoder: Encoder whose tokens are pooled.
        num_classes: Number of classes.
        dropout: Share of the pooled channels that is dropped in training.

    Raises:
        RefusedError: E_NETWORK, if `dropout` is not in [0, 1).
    """

    def __init__(self, encoder: Encoder, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = head_dropout(dropout)
        self.classify = nn.Linear(encoder.token_dim, num_classes)

    def forward(self, volume: Float[Tensor, "b 1 d h w"], encoder: nn.Module) -> Float[Tensor, "b _"]:
        """Return one logit a class."""
        return self.classify(self.dropout(encoder(volume).tokens.mean(dim=1)))


def head_dropout(share: float) -> nn.Dropout:
    """Build a head's dropout.

    Raises:
        RefusedError: E_NETWORK, if `share` is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise RefusedError("E_NETWORK", f"dropout {share} is no share", hint="use 0 or more, and less than 1")
    return nn.Dropout(share)
