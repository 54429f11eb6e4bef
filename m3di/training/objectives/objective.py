"""The objective of pretraining in its two halves: over the slices of a whole batch, and over each volume alone."""

import torch
from torch import nn

from m3di.config import ObjectiveConfig
from m3di.networks.encoders import EncoderOutput, tokens_to_map
from m3di.training.objectives.dense import DenseObjective, DenseSpec
from m3di.training.objectives.infonce import InfoNCE
from m3di.training.objectives.reconstruction import Reconstruction
from m3di.training.objectives.sigmoid import SigmoidLoss
from m3di.training.objectives.soft import SoftInfoNCE
from m3di.training.objectives.transport import PartialTransport
from m3di.training.objectives.vectors import unit
from m3di.types import Bool, Float, Int64, Tensor
from stores.errors import RefusedError

SAME_TEXT = 1 - 1e-4  # cosine above which two rows, kept in float16, are of the same caption


class PooledObjective(nn.Module):
    """Alignment of slices' vectors with the teacher's image and text rows; terms with a weight of 0 are not built.

    Deviation: the paper leaves open whether both alignments share a temperature. Here each has its own: captions of
    different slices lie closer together than their images do.

    Args:
        config: Kind and weights.
        embedding_dim: Width of the teacher's embeddings.
    """

    def __init__(self, config: ObjectiveConfig, embedding_dim: int) -> None:
        super().__init__()
        self.image_weight, self.text_weight = config.image_weight, config.text_weight
        self.image = _alignment(config, embedding_dim) if config.image_weight else None
        self.text = _alignment(config, embedding_dim) if config.text_weight else None

    def forward(
        self,
        vectors: Float[Tensor, "s e"],
        targets: Float[Tensor, "s 2 e"],
        *,
        planes: Int64[Tensor, " s"],
        slices: Int64[Tensor, " s"],
        volumes: Int64[Tensor, " s"],
    ) -> dict[str, Tensor]:
        """Return the weighted terms by name, `image_loss` and `text_loss`; their sum is to be minimised.

        A slice that occurs twice is no negative of itself against the images, nor are slices with equal captions
        against the texts.

        Args:
            vectors: The model's vector of each slice of the whole batch.
            targets: The teacher's image and text row of each.
            planes: Plane number of each.
            slices: Position of each in its volume.
            volumes: Number of the volume of each.
        """
        image, text = targets[:, 0], targets[:, 1]
        terms = {}
        if self.image is not None:
            same = _same_slice(planes, slices, volumes)
            terms["image_loss"] = self.image_weight * self.image(vectors, image, duplicate=same)
        if self.text is not None:
            terms["text_loss"] = self.text_weight * self.text(vectors, text, duplicate=_same_text(text))
        return terms


class LocalObjective(nn.Module):
    """What each volume is compared with by itself; terms with a weight of 0 are not built.

    Args:
        config: Kinds and weights.
        token_dim: Channels of the encoder's tokens.
        cube_size: Edge of the cube, voxels.
        dense: The store's dense rows; None when there are none.
        token_stride: Edge of the block of voxels that a token stands for.

    Raises:
        RefusedError: E_CONFIG, when a weight asks for dense rows that the store does not have.
    """

    def __init__(
        self, config: ObjectiveConfig, token_dim: int, cube_size: int, dense: DenseSpec | None, *, token_stride: int
    ) -> None:
        super().__init__()
        self.dense_weight, self.reconstruction_weight = config.dense_weight, config.reconstruction_weight
        self.dense, self.reconstruction = None, None
        if config.dense_weight:
            spec = _require_dense(config, dense)
            self.dense = DenseObjective(
                token_dim, spec, cube_size=cube_size, kind=config.dense_kind, hidden=config.dense_hidden
            )
        if config.reconstruction_weight:
            self.reconstruction = Reconstruction(token_dim, token_stride=token_stride)

    def forward(
        self,
        encoded: EncoderOutput,
        volumes: Float[Tensor, "b 1 d h w"],
        planes: Int64[Tensor, "b k"],
        slices: Int64[Tensor, "b k"],
        patches: Float[Tensor, "b k p f"] | None,
    ) -> dict[str, Tensor]:
        """Return the weighted terms by name, `dense_loss` and `reconstruction_loss`, each a mean over the volumes.

        So the mean over equal parts of a batch is that of the whole. Without terms the result is empty.

        Args:
            encoded: What the encoder made of the volumes.
            volumes: The cubes, as the encoder saw them.
            planes: Plane number of each slice.
            slices: Position of each slice in the cube.
            patches: The teacher's patch features of each slice; not needed without the dense term.
        """
        terms = {}
        tokens = tokens_to_map(encoded.tokens, encoded.grid)
        if self.dense is not None:
            assert patches is not None, "the dense term needs Batch.patches: give BatchReader the dense rows"
            loss = self.dense(tokens, volumes, planes=planes, slices=slices, patches=patches)
            terms["dense_loss"] = self.dense_weight * loss
        if self.reconstruction is not None:
            terms["reconstruction_loss"] = self.reconstruction_weight * self.reconstruction(tokens, volumes)
        return terms


def _alignment(config: ObjectiveConfig, embedding_dim: int) -> nn.Module:
    match config.kind:
        case "infonce":
            return InfoNCE()
        case "sigmoid":
            return SigmoidLoss()
        case "soft":
            return SoftInfoNCE(share=config.soft_share, temperature=config.soft_temperature)
        case "transport":
            return PartialTransport(
                embedding_dim,
                regularisation=config.transport_regularisation,
                mass=config.transport_mass,
                iterations=config.transport_iterations,
            )


def _require_dense(config: ObjectiveConfig, dense: DenseSpec | None) -> DenseSpec:
    if dense is None:
        message = f"objective.dense_weight={config.dense_weight:g}, but the store has no dense rows"
        hint = "build it with --set teacher.dense_dim=48, or leave them out: --set objective.dense_weight=0"
        raise RefusedError("E_CONFIG", message, hint=hint)
    return dense


def _same_slice(*facts: Int64[Tensor, " s"]) -> Bool[Tensor, "s s"]:
    return torch.stack([fact[:, None] == fact for fact in facts]).all(dim=0)


def _same_text(text: Float[Tensor, "s e"]) -> Bool[Tensor, "s s"]:
    with torch.autocast(text.device.type, enabled=False):  # a cosine in bf16 has an error of 1e-2
        rows = unit(text)
        return rows @ rows.T > SAME_TEXT
