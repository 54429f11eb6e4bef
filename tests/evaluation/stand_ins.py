"""Networks whose answer is known, in place of trained ones."""

import torch
from torch import nn

from m3di.evaluation.inference import Predictor
from m3di.networks.segmentation import SegmentationOutput
from stores.recipe import Recipe

CLASSES = {0: "background", 1: "bright"}
SURE = 1000.0  # a logit so large that the probability is 1


class Threshold(nn.Module):
    """Calls every voxel over a value bright: the same for every mirror image."""

    def __init__(self, value=0.5):
        super().__init__()
        self.value = value
        self.seen = []

    def forward(self, volume):
        self.seen.append(volume)
        return SegmentationOutput(SURE * torch.cat([self.value - volume, volume - self.value], dim=1))


class Soft(Threshold):
    """A threshold that is in doubt near it."""

    def forward(self, volume):
        return SegmentationOutput(10 * torch.cat([self.value - volume, volume - self.value], dim=1))


class Sided(nn.Module):
    """Calls the half with the lower x bright, whatever it sees."""

    def forward(self, volume):
        low = torch.arange(volume.shape[2]) < volume.shape[2] // 2
        bright = torch.where(low, SURE, -SURE)[None, None, :, None, None].expand_as(volume)
        return SegmentationOutput(torch.cat([-bright, bright], dim=1))


class Oracle(nn.Module):
    """Gives back a label cube."""

    def __init__(self, label, num_classes):
        super().__init__()
        one_hot = nn.functional.one_hot(torch.from_numpy(label).long(), num_classes).permute(3, 0, 1, 2)
        self.logits = SURE * one_hot[None].float()

    def forward(self, volume):
        return SegmentationOutput(self.logits)


class Constant(nn.Module):
    """Gives every voxel the same logits."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, volume):
        shape = (1, len(self.logits), *volume.shape[2:])
        return SegmentationOutput(self.logits[None, :, None, None, None].expand(shape))


def predictor(*networks, cube_size=32, classes=None, **fields):
    """A predictor of stand-ins, of MR."""
    return Predictor(
        networks, "segmentation", Recipe(cube_size=cube_size), classes or CLASSES, "MR", torch.device("cpu"), **fields
    )
