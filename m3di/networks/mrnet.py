"""MRNet: AlexNet over every slice of a plane, the strongest response over slices, and three planes together.

Written from the paper (Bien et al. 2018, PLoS Medicine 15(11) e1002699); AlexNet is torchvision's (BSD 3-clause).
"""

from collections.abc import Iterable
from typing import Final

import torch
from torch import nn
from torchvision.models import AlexNet_Weights, alexnet

from m3di.networks.classification import head_dropout
from m3di.networks.imagenet import find_imagenet
from m3di.types import Float, Tensor
from stores.errors import RefusedError

PLANES: Final = {"sagittal": 2, "coronal": 3, "axial": 4}  # the axis of a batch of volumes that counts the slices
MIN_SIZE: Final = 63  # voxels: below, nothing is left after AlexNet's third pooling
NUM_FEATURES: Final = 256
MEAN: Final = 58.09 / 255  # of the intensities of the paper's knees, as public implementations standardise them
STD: Final = 49.73 / 255


class MRNet(nn.Module):
    """One `PlaneNetwork` for each plane, and their logits weighted by plane and class.

    Each plane has 2,469,696 parameters of AlexNet and 257 a class, so 2,469,953 with one class. Of several planes,
    the combination adds a weight for each plane and class and a bias for each class: 7,410,638 parameters with three
    planes and 2 classes.

    Deviation: the paper trains one network a plane and then fits a logistic regression to the three probabilities.
    A table of results has one line for MRNet, so by default it is one network over three planes, trained at once. The
    regression is over the planes' logits, and begins as their mean. `planes=["axial"]` is the paper's network alone.

    Args:
        num_classes: Number of classes.
        cube_size: Edge of the cube in voxels, at least 63.
        planes: Which planes are read, each at most once.
        imagenet: Whether AlexNet begins with ImageNet's weights, as in the paper: True refuses to go without them,
            None takes them where torchvision has them on the disk, False never does.
        dropout: Share of the pooled channels that is dropped in training.

    Attributes:
        initialisation: What AlexNet began with, `imagenet` or `random`.

    Raises:
        RefusedError: E_NETWORK, for a smaller cube, unknown or repeated planes, or a `dropout` not in [0, 1);
            E_WEIGHTS, as for `find_imagenet`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        cube_size: int,
        planes: Iterable[str] = ("axial", "coronal", "sagittal"),
        imagenet: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        names = list(planes)
        _require_planes(names)
        if cube_size < MIN_SIZE:
            message = f"mrnet needs a cube of at least {MIN_SIZE} voxels, not {cube_size}"
            raise RefusedError("E_NETWORK", message, hint="use a cube of 64 voxels, or another network")
        networks = {name: PlaneNetwork(num_classes, dropout=dropout) for name in names}
        self.planes = nn.ModuleDict(networks)
        state = find_imagenet(AlexNet_Weights.IMAGENET1K_V1.url, wanted=imagenet)
        self.initialisation = "random" if state is None else "imagenet"
        if state is not None:
            prefix = "features."
            features = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            for network in networks.values():
                network.features.load_state_dict(features)
        self.combine = PlaneCombination(len(names), num_classes) if len(names) > 1 else None

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b _"]:
        """Return one logit a class."""
        logits = [network(volume.movedim(PLANES[name], 1)) for name, network in self.planes.items()]
        return logits[0] if self.combine is None else self.combine(torch.stack(logits, dim=1))


class PlaneNetwork(nn.Module):
    """MRNet of one plane: AlexNet's features of each slice, their mean over pixels, their maximum over slices.

    Deviation: slices keep the cube's size, where the paper's have 256 pixels, and every volume is standardised by
    the same mean and deviation, as its intensities are on one scale already.

    Args:
        num_classes: Number of classes.
        dropout: Share of the pooled channels that is dropped in training.
    """

    def __init__(self, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = alexnet(weights=None).features
        self.dropout = head_dropout(dropout)
        self.classify = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, slices: Float[Tensor, "b s 1 y x"]) -> Float[Tensor, "b _"]:
        """Return one logit a class."""
        pictures = ((slices - MEAN) / STD).flatten(0, 1).expand(-1, 3, -1, -1)
        pooled = self.features(pictures).mean(dim=(2, 3))
        return self.classify(self.dropout(pooled.unflatten(0, slices.shape[:2]).amax(dim=1)))


class PlaneCombination(nn.Module):
    """A class's logit as a weighted sum of the planes' logits for it, and a bias; at first it is their mean.

    Args:
        num_planes: Number of planes.
        num_classes: Number of classes.
    """

    def __init__(self, num_planes: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_planes, num_classes), 1 / num_planes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, logits: Float[Tensor, "b p c"]) -> Float[Tensor, "b c"]:
        """Return one logit a class."""
        return (logits * self.weight).sum(dim=1) + self.bias


def _require_planes(names: list[str]) -> None:
    if not names or len(set(names)) < len(names) or not set(names) <= PLANES.keys():
        hint = f"name each at most once, of {', '.join(PLANES)}"
        raise RefusedError("E_NETWORK", f"mrnet cannot read planes {names}", hint=hint)
