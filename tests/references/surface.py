"""Segmentation metrics written down literally: every distance between every two border voxels of the whole grid."""

import math

import numpy as np
from scipy import ndimage


def border_of(mask):
    """Mask XOR erosion by the six neighbours with the outside as foreground (CHAOS); all faces of a full grid."""
    six = ndimage.generate_binary_structure(3, 1)
    found = mask ^ ndimage.binary_erosion(mask, structure=six, border_value=1)
    if mask.any() and not found.any():
        found = mask ^ ndimage.binary_erosion(mask, structure=np.ones((3, 3, 3), bool), border_value=0)
    return found


def distances_between(prediction, reference, spacing_mm):
    """All nearest distances, prediction to reference and reference to prediction, mm."""
    places = [np.argwhere(border_of(mask)) * np.array(spacing_mm) for mask in (prediction, reference)]
    table = np.sqrt(((places[0][:, None] - places[1][None]) ** 2).sum(axis=-1))
    return table.min(axis=1), table.min(axis=0)


def scores_of(prediction, reference, *, spacing_mm, tolerance_mm):
    """Dice, surface Dice, HD95, ASSD, MSSD, RAVD of two masks, by the written rule for empty ones."""
    num_predicted, num_true = prediction.sum(), reference.sum()
    diagonal = math.sqrt(sum((n * step) ** 2 for n, step in zip(prediction.shape, spacing_mm, strict=True)))
    if num_predicted == 0 and num_true == 0:
        return [math.nan] * 6
    if num_predicted == 0:
        return [0, 0, diagonal, diagonal, diagonal, 100]
    if num_true == 0:
        return [0, 0, diagonal, diagonal, diagonal, math.nan]
    there, back = distances_between(prediction, reference, spacing_mm)
    near = sum(d <= tolerance_mm for d in there) + sum(d <= tolerance_mm for d in back)
    return [
        2 * (prediction & reference).sum() / (num_predicted + num_true),
        near / (len(there) + len(back)),
        max(np.percentile(there, 95), np.percentile(back, 95)),
        (there.sum() + back.sum()) / (len(there) + len(back)),
        max(there.max(), back.max()),
        100 * abs(int(num_predicted) - int(num_true)) / num_true,
    ]
