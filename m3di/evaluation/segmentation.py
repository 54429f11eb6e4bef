"""Segmentation metrics of one case, class by class, on any grid with a spacing in mm.

Borders and distances are the CHAOS organisers' (Kavur et al., Medical Image Analysis 2021, and their published
evaluation code): a border is a mask without its 6-neighbour erosion, what lies outside the grid counted as
foreground, so that a structure that the field of view cuts has no surface there; distances go from the centre of
each border voxel to that of the nearest border voxel of the other mask, both ways.

Empty masks, in every metric:

| prediction | reference | Dice, surface Dice | HD95, ASSD, MSSD | RAVD |
|---|---|---|---|---|
| empty | empty | NaN | NaN | NaN |
| empty | not | 0 | the grid's diagonal, mm | 100 |
| not | empty | 0 | the grid's diagonal, mm | NaN, for there is nothing to relate it to |

NaN is left out of means: nobody could be right or wrong (so do nnU-Net and MONAI). A structure that was missed, or
made up, counts with the worst value that its metric can have, as BraTS and Metrics Reloaded (Maier-Hein et al.,
Nature Methods 2024) have it: were it left out, a network would gain by predicting nothing. MONAI gives infinity.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]

TOLERANCE_MM: Final = 2.0  # of surface Dice, where nobody says better
BETTER_HIGH: Final = frozenset({"dice", "surface_dice"})


@dataclass(frozen=True)
class MaskScores:
    """How well one mask fits another; the module says what empty masks give.

    Attributes:
        dice: 2 |P and R| / (|P| + |R|).
        surface_dice: Share of both borders' voxels that lie within the tolerance of the other border (Nikolov et al.
            2018), each border voxel counted once, as MONAI does, not weighed by its area.
        hd95_mm: The larger of the two directed 95th percentiles of the distances, as MONAI and Metrics Reloaded.
        assd_mm: Mean of all distances of both ways together (average symmetric surface distance).
        mssd_mm: The largest of them (maximum symmetric surface distance, Hausdorff's distance).
        ravd_percent: | |P| - |R| | / |R|, percent (relative absolute volume difference).
    """

    dice: float
    surface_dice: float
    hd95_mm: float
    assd_mm: float
    mssd_mm: float
    ravd_percent: float


METRICS: Final = tuple(field.name for field in fields(MaskScores))


def score_masks(
    prediction: npt.NDArray[np.integer[Any]],
    reference: npt.NDArray[np.integer[Any]],
    values: Sequence[int],
    *,
    spacing_mm: Spacing,
    tolerance_mm: float = TOLERANCE_MM,
    known: Mask | None = None,
) -> dict[int, MaskScores]:
    """Score each label value of a case.

    Args:
        prediction: (i, j, k) label map.
        reference: Label map on the same grid.
        values: Label values to score, all positive.
        spacing_mm: Distance between voxel centres along i, j and k.
        tolerance_mm: How far apart borders may lie for surface Dice.
        known: Where the reference is known, by default everywhere. The rest is treated as what lies outside the grid:
            no voxel of it counts, and a structure that reaches into it has no surface there.
    """
    _require_same_shape(prediction, reference)
    if known is not None:
        prediction, reference = np.where(known, prediction, 0), np.where(known, reference, 0)
    diagonal_mm = math.dist((0, 0, 0), [n * step for n, step in zip(prediction.shape, spacing_mm, strict=True)])
    boxes = [ndimage.find_objects(labels, max(values, default=1)) for labels in (prediction, reference)]
    scores = {}
    for value in values:
        crop = _joint([found[value - 1] for found in boxes], prediction.shape)
        masks = prediction[crop] == value, reference[crop] == value
        scores[value] = _score(
            *masks, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm, diagonal_mm=diagonal_mm,
            known=None if known is None else known[crop],
        )  # fmt: skip
    return scores


def dice_per_class(
    prediction: npt.NDArray[np.integer[Any]], reference: npt.NDArray[np.integer[Any]], values: Sequence[int]
) -> dict[int, float]:
    """Dice alone, of each label value: what training looks at.

    Args:
        prediction: Label map.
        reference: Label map of the same shape.
        values: Label values to score, background not among them.
    """
    _require_same_shape(prediction, reference)
    return {value: _dice(prediction == value, reference == value) for value in values}


def border(mask: Mask, known: Mask | None = None) -> Mask:
    """The voxels of a mask that have a face in common with what is not the mask, within the grid.

    A mask that fills its grid has none: then the grid's outermost voxels are taken. A face towards what is not known
    is none; where a mask has no other, these are taken.
    """
    if known is not None and not (mask | ~known).all():
        inward = border(mask | ~known) & mask
        return inward if inward.any() else border(mask)
    inner = mask.copy()
    for axis in range(mask.ndim):
        here, beside = inner.swapaxes(0, axis), mask.swapaxes(0, axis)
        here[1:] &= beside[:-1]
        here[:-1] &= beside[1:]
    if mask.all():
        inner[(slice(1, -1),) * mask.ndim] = False
        return inner
    return mask & ~inner


def border_distances(
    first: Mask, second: Mask, *, spacing_mm: Spacing, known: Mask | None = None
) -> tuple[npt.NDArray[np.float64], ...]:
    """Distance of each border voxel of a mask to the nearest of the other's border, mm: first to second, and back.

    Args:
        first: (i, j, k) mask, not empty.
        second: The same.
        spacing_mm: Along i, j and k.
        known: As in `border`.
    """
    borders = border(first, known), border(second, known)
    places = [np.argwhere(one) * np.asarray(spacing_mm) for one in borders]
    return (
        _nearest(places[0], places[1], known=borders[1][borders[0]]),
        _nearest(places[1], places[0], known=borders[0][borders[1]]),
    )


def _nearest(points: npt.NDArray[Any], others: npt.NDArray[Any], *, known: Mask) -> npt.NDArray[np.float64]:
    """Distance of each point to the nearest other; `known` tells those that are themselves among the others."""
    distances = np.zeros(len(points))
    if not known.all():
        tree = cKDTree(others, balanced_tree=False, compact_nodes=False)
        distances[~known] = tree.query(points[~known])[0]
    return distances


def _score(
    prediction: Mask, reference: Mask, *, spacing_mm: Spacing, tolerance_mm: float, diagonal_mm: float,
    known: Mask | None = None,
) -> MaskScores:  # fmt: skip
    sizes = int(prediction.sum()), int(reference.sum())
    if not any(sizes):
        return MaskScores(*[math.nan] * len(METRICS))
    if not all(sizes):
        ravd = 100.0 if sizes[1] else math.nan
        return MaskScores(0.0, 0.0, diagonal_mm, diagonal_mm, diagonal_mm, ravd)
    ways = border_distances(prediction, reference, spacing_mm=spacing_mm, known=known)
    both = np.concatenate(ways)
    return MaskScores(
        dice=_dice(prediction, reference),
        surface_dice=float((both <= tolerance_mm).mean()),
        hd95_mm=max(float(np.percentile(distances, 95)) for distances in ways),
        assd_mm=float(both.mean()),
        mssd_mm=float(both.max()),
        ravd_percent=100 * abs(sizes[0] - sizes[1]) / sizes[1],
    )


def _dice(prediction: Mask, reference: Mask) -> float:
    total = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / total if total else math.nan


def _joint(boxes: Sequence[tuple[slice, ...] | None], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The box around boxes and one voxel more where the grid has one: borders come out as on the whole grid."""
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),) * len(shape)
    return tuple(
        slice(max(min(side.start for side in sides) - 1, 0), min(max(side.stop for side in sides) + 1, size))
        for sides, size in zip(zip(*found, strict=True), shape, strict=True)
    )


def _require_same_shape(prediction: npt.NDArray[Any], reference: npt.NDArray[Any]) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
