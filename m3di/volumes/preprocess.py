"""The canonical cube: one anti-aliased resampling from the scanner's grid, and its way back (paper, section 3.1).

Deviation: the paper resamples to 1 mm, pads to a cube and scales to 128^3; one resampling straight to the cube has
the same field of view without the blur and the rounding of the steps between.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.volumes.readers import Volume
from stores.errors import CaseError
from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Cube:
    """A canonical cube.

    Attributes:
        data: (J, J, J) float32 in [0, 1], axes to the patient's right, anterior, superior; padding is 0.
        chain: How it came from the scan.
    """

    data: Floats
    chain: CubeChain


def normalise(volume: Volume, recipe: Recipe) -> Floats:
    """Map intensities to [0, 1] on the scanner's grid: CT by a window in HU, else by percentiles.

    Percentiles are taken over voxels above the minimum, which is background, so that a wide black margin does not
    decide the contrast; and what lies outside them is clipped, so that one bright voxel does not either.

    Raises:
        CaseError: E_NO_SIGNAL, when the intensities that count are all equal.
    """
    if volume.modality == "CT":
        low, high = recipe.ct_window_hu
    else:
        foreground = volume.data[volume.data > volume.data.min()]
        low, high = (float(value) for value in np.percentile(foreground, recipe.mr_percentiles))
        if low == high:
            low = float(volume.data.min())
    if not low < high:
        raise CaseError("E_NO_SIGNAL", f"intensities from {low} to {high} are one value", hint="leave the scan out")
    scaled = volume.data.astype(np.float32)
    scaled -= np.float32(low)
    scaled *= np.float32(1 / (high - low))
    return np.clip(scaled, 0, 1, out=scaled)


def make_cube(normalised: Floats, geometry: Geometry, cube_size: int) -> Cube:
    """Resample a scan to its canonical cube.

    Args:
        normalised: The scan in [0, 1], along its own axes.
        geometry: Its grid.
        cube_size: J.
    """
    chain = CubeChain(geometry, cube_size)
    weights = [axis_weights(chain, axis, to_voxel_mm=chain.voxel_mm) for axis in range(3)]
    return Cube(apply_separable(chain.to_canonical(normalised), weights), chain)


def make_label_cube(label: npt.NDArray[np.uint8], geometry: Geometry, cube_size: int) -> npt.NDArray[np.uint8]:
    """Resample a label map to its cube: every class as an anti-aliased share of the voxel, the largest share wins.

    A structure thinner than half a cube voxel loses to what surrounds it, as it would to a partial-volume reader;
    ties go to the smaller label value.
    """
    chain = CubeChain(geometry, cube_size)
    weights = [axis_weights(chain, axis, to_voxel_mm=chain.voxel_mm) for axis in range(3)]
    canonical = chain.to_canonical(label)
    winner = np.zeros((cube_size,) * 3, np.uint8)
    best = np.full(winner.shape, -1, np.float32)
    for value in np.unique(label):
        share = apply_separable((canonical == value).astype(np.float32), weights)
        wins = share > best + 1e-6
        winner[wins], best[wins] = value, share[wins]
    inside = np.zeros(winner.shape, bool)
    inside[tuple(slice(*bounds) for bounds in chain.inside)] = True
    return np.where(inside, winner, 0).astype(np.uint8)


def restore(scores: Floats, chain: CubeChain) -> Floats:
    """Resample scores of a cube to the scanner's own grid.

    Args:
        scores: (c, J, J, J), for example class probabilities.
        chain: The cube's chain.

    Returns:
        (c, i, j, k) on the grid and axes of the scan.
    """
    weights = [_inverse_weights(chain, axis) for axis in range(3)]
    return np.stack([chain.from_canonical(apply_separable(score, weights)) for score in scores])


def axis_weights(chain: CubeChain, axis: int, *, to_voxel_mm: float, count: int | None = None) -> Floats:
    """Matrix that resamples one canonical axis of the scan to voxels of `to_voxel_mm` over the cube's edge.

    A triangle kernel, widened to the target voxel when that is the larger one (anti-aliasing). Rows add up to 1
    over the scan's voxels where the target's centre lies in the scan, and are 0 outside: padding.

    Returns:
        (count, n) for n voxels of the scan.
    """
    count = chain.cube_size if count is None else count
    size, spacing = chain.canonical_shape[axis], chain.canonical_spacing_mm[axis]
    extent = chain.extent_mm[axis]
    centres_mm = (np.arange(count) + 0.5) * to_voxel_mm - chain.edge_mm / 2
    weights = _triangle((centres_mm + extent / 2) / spacing - 0.5, size, width=max(1.0, to_voxel_mm / spacing))
    inside = np.abs(centres_mm) <= extent / 2 * (1 + 1e-9)
    if count == chain.cube_size:
        start, stop = chain.inside[axis]
        inside[start:stop] = True
    return np.where(inside[:, None], weights, 0).astype(np.float32)


def apply_separable(array: Floats, weights: list[Floats]) -> Floats:
    """Apply one matrix along each of three axes, the one that shrinks the array most first."""
    for axis in sorted(range(3), key=lambda a: weights[a].shape[0] / weights[a].shape[1]):
        array = _apply(weights[axis], array, axis)
    return np.ascontiguousarray(array)


def _apply(matrix: Floats, array: Floats, axis: int) -> Floats:
    """Matrix product along one axis."""
    return np.moveaxis(np.tensordot(matrix, array, axes=(1, axis)), 0, axis)


def _inverse_weights(chain: CubeChain, axis: int) -> Floats:
    """Matrix that resamples one axis of the cube to the scan's voxels."""
    size, spacing = chain.canonical_shape[axis], chain.canonical_spacing_mm[axis]
    centres_mm = (np.arange(size) + 0.5) * spacing - chain.extent_mm[axis] / 2
    positions = (centres_mm + chain.edge_mm / 2) / chain.voxel_mm - 0.5
    return _triangle(positions, chain.cube_size, width=max(1.0, spacing / chain.voxel_mm)).astype(np.float32)


def _triangle(positions: npt.NDArray[np.floating[Any]], size: int, *, width: float) -> npt.NDArray[np.float64]:
    """Rows of triangle weights around positions among `size` voxels, each normalised; at least the nearest counts."""
    distance = np.abs(positions[:, None] - np.arange(size)) / width
    weights = np.maximum(0.0, 1.0 - distance)
    nearest = np.clip(np.rint(positions), 0, size - 1).astype(int)
    empty = weights.sum(axis=1) == 0
    weights[empty, nearest[empty]] = 1.0
    return weights / weights.sum(axis=1, keepdims=True)
