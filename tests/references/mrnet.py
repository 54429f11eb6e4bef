"""MRNet of one plane written down literally: slice by slice, pixel by pixel, the maximum found by comparing."""

import torch


def classify(network, volume, axis):
    """Logits (c) of a volume (d h w) whose slices are counted by `axis`."""
    best = None
    for index in range(volume.shape[axis]):
        described = _describe(network, volume.select(axis, index))
        best = described if best is None else torch.where(described > best, described, best)
    return network.classify.weight @ best + network.classify.bias


def _describe(network, picture):
    grey = (255 * picture - 58.09) / 49.73
    maps = network.features(torch.stack([grey, grey, grey])[None])[0]
    num_channels, height, width = maps.shape
    total = torch.zeros(num_channels)
    for row in range(height):
        for column in range(width):
            total += maps[:, row, column]
    return total / (height * width)
