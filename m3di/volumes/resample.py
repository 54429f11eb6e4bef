"""One separable, anti-aliased resampling in physical coordinates, fast: banded matrices over slabs of the scan.

A target voxel is a weighted mean of the few source voxels near it, so the matrix of an axis is a band, and only the
blocks that the band touches are multiplied. The scan is taken a slab at a time, along its canonical axes whatever
its own are: memory stays at the size of the scan as it was read, and copies of one scan that are stored along other
axes give equal bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from stores.geometry import CubeChain

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

SLAB_VOXELS: Final = 1 << 20  # source voxels taken at a time
BLOCK_ROWS: Final = 16


@dataclass(frozen=True)
class Window:
    """The intensities that are mapped to 0 and 1; what lies outside is clipped."""

    low: float
    high: float

    def apply(self, values: Array) -> Floats:
        """Scale values to [0, 1], as float32 in C order."""
        with np.errstate(over="ignore"):  # too large for float32 is infinite, and clipped to 1
            scaled = values.astype(np.float32, order="C")
            scaled -= np.float32(self.low)
            scaled *= np.float32(1 / (self.high - self.low))
        return np.clip(scaled, 0, 1, out=scaled)


@dataclass(frozen=True, eq=False)
class AxisWeights:
    """Weights that resample one canonical axis: (targets, sources), most of them 0."""

    matrix: Floats

    @cached_property
    def blocks(self) -> list[tuple[slice, slice, Floats]]:
        """Blocks of rows, each with the range of columns that it touches; rows of zeros are in none."""
        found = []
        for start in range(0, len(self.matrix), BLOCK_ROWS):
            rows = self.matrix[start : start + BLOCK_ROWS]
            (touched,) = np.nonzero(rows.any(axis=0))
            if touched.size:
                columns = slice(int(touched[0]), int(touched[-1]) + 1)
                found.append((slice(start, start + len(rows)), columns, np.ascontiguousarray(rows[:, columns])))
        return found

    def along_last(self, array: Floats) -> Floats:
        """Apply to the last axis of (z, y, x)."""
        out = np.zeros((*array.shape[:2], len(self.matrix)), np.float32)
        for rows, columns, block in self.blocks:
            out[:, :, rows] = array[:, :, columns] @ block.T
        return out

    def along_middle(self, array: Floats) -> Floats:
        """Apply to the middle axis of (z, y, x)."""
        out = np.zeros((array.shape[0], len(self.matrix), array.shape[2]), np.float32)
        for rows, columns, block in self.blocks:
            out[:, rows] = block @ array[:, columns]
        return out

    def add_along_first(self, slab: Floats, start: int, out: Floats) -> None:
        """Add the share of slab [start, start + s) of the first axis of (z, y, x)."""
        part = self.matrix[:, start : start + len(slab)]
        (touched,) = np.nonzero(part.any(axis=1))
        if touched.size:
            rows = slice(int(touched[0]), int(touched[-1]) + 1)
            flat = part[rows] @ slab.reshape(len(slab), -1)
            out[rows] += flat.reshape(-1, *slab.shape[1:])


Grid = tuple[AxisWeights, AxisWeights, AxisWeights]  # of the canonical axes x, y, z


def resample(canonical: Array, grids: Sequence[Grid], window: Window | None = None) -> list[Floats]:
    """Resample a scan to several grids in one pass.

    Args:
        canonical: (x, y, z) voxels along the canonical axes, of any type and memory layout.
        grids: Weights of each grid; grids that share the weights of an axis share its work.
        window: Intensities to scale to [0, 1] first; without it, values are taken as they are.

    Returns:
        For each grid, (x, y, z) float32.
    """
    outputs = [np.zeros((len(z.matrix), len(y.matrix), len(x.matrix)), np.float32) for x, y, z in grids]
    depth = canonical.shape[2]
    step = max(1, SLAB_VOXELS // max(1, canonical.shape[0] * canonical.shape[1]))
    for start in range(0, depth, step):
        voxels = canonical[:, :, start : start + step].transpose(2, 1, 0)
        slab = window.apply(voxels) if window else voxels.astype(np.float32, order="C")
        along_x: dict[int, Floats] = {}
        for (x, y, z), out in zip(grids, outputs, strict=True):
            if id(x) not in along_x:
                along_x[id(x)] = x.along_last(slab)
            z.add_along_first(y.along_middle(along_x[id(x)]), start, out)
    return [out.transpose(2, 1, 0) for out in outputs]


def axis_weights(chain: CubeChain, axis: int, *, count: int | None = None) -> AxisWeights:
    """Weights that resample one canonical axis of the scan to `count` voxels over the cube's edge.

    A triangle kernel, widened to the target voxel when that is the larger one (anti-aliasing). Rows add up to 1
    over the scan's voxels where the target's centre lies in the scan, and are 0 outside: padding. For a chain in two
    steps (the paper's, literally) this is the product of the steps: to 1 mm, into the padded grid, to the cube.

    Args:
        chain: The scan's chain to its cube.
        axis: Canonical axis.
        count: Target voxels; by default those of the cube.
    """
    count = chain.cube_size if count is None else count
    size, spacing = chain.canonical_shape[axis], chain.canonical_spacing_mm[axis]
    voxel_mm = chain.edge_mm / count
    centres_mm = (np.arange(count) + 0.5) * voxel_mm + chain.start_mm[axis]
    if chain.two_step:
        steps = chain.steps[axis]
        padded = np.zeros((chain.num_steps, size))
        positions = (np.arange(steps) + 0.5) / spacing - 0.5
        begin = -round(chain.start_mm[axis])
        padded[begin : begin + steps] = _triangle(positions, size, width=max(1.0, 1 / spacing))
        targets = (np.arange(count) + 0.5) * voxel_mm - 0.5
        weights = _triangle(targets, chain.num_steps, width=max(1.0, voxel_mm)) @ padded
    else:
        weights = _triangle(centres_mm / spacing - 0.5, size, width=max(1.0, voxel_mm / spacing))
    extent = chain.extent_mm[axis]
    inside = (centres_mm >= -1e-9 * extent) & (centres_mm <= extent * (1 + 1e-9))
    if count == chain.cube_size:
        start, stop = chain.inside[axis]
        inside[start:stop] = True
    return AxisWeights(np.where(inside[:, None], weights, 0).astype(np.float32))


def restore(scores: Floats, chain: CubeChain) -> Iterator[tuple[slice, Floats]]:
    """Resample scores of a cube to the scanner's own grid, a slab at a time.

    Args:
        scores: (c, x, y, z) on the cube, for example class probabilities.
        chain: The cube's chain.

    Yields:
        A range of canonical z, and the scores (c, x, y, s) of those slices along the canonical axes of the scan.
    """
    per_slice = len(scores) * chain.canonical_shape[0] * chain.canonical_shape[1]
    step = max(1, 8 * SLAB_VOXELS // per_slice)
    back = Restorer(scores, chain)
    for start in range(0, chain.canonical_shape[2], step):
        rows = slice(start, min(start + step, chain.canonical_shape[2]))
        yield rows, back.slices(rows)


class Restorer:
    """Resamples scores of a cube to any slices of the scanner's own grid.

    Args:
        scores: (c, x, y, z) on the cube, for example class probabilities.
        chain: The cube's chain.
    """

    def __init__(self, scores: Floats, chain: CubeChain) -> None:
        self._planes = scores.transpose(0, 3, 2, 1)
        self._weights = [_inverse_weights(chain, axis) for axis in range(3)]

    def slices(self, rows: slice) -> Floats:
        """The scores (c, x, y, s) of a range of canonical z, along the canonical axes of the scan."""
        x, y, z = self._weights
        parts = []
        for score in self._planes:
            thin = np.tensordot(z.matrix[rows], score, axes=1)
            parts.append(x.along_last(y.along_middle(thin)).transpose(2, 1, 0))
        return np.stack(parts)


def _inverse_weights(chain: CubeChain, axis: int) -> AxisWeights:
    """Weights that resample one axis of the cube to the scan's voxels."""
    size, spacing = chain.canonical_shape[axis], chain.canonical_spacing_mm[axis]
    centres_mm = (np.arange(size) + 0.5) * spacing - chain.start_mm[axis]
    positions = centres_mm / chain.voxel_mm - 0.5
    return AxisWeights(_triangle(positions, chain.cube_size, width=max(1.0, spacing / chain.voxel_mm)).astype("f4"))


def _triangle(positions: npt.NDArray[np.floating[Any]], size: int, *, width: float) -> npt.NDArray[np.float64]:
    """Rows of triangle weights around positions among `size` voxels, each normalised; at least the nearest counts."""
    distance = np.abs(positions[:, None] - np.arange(size)) / width
    weights = np.maximum(0.0, 1.0 - distance)
    nearest = np.clip(np.rint(positions), 0, size - 1).astype(int)
    empty = weights.sum(axis=1) == 0
    weights[empty, nearest[empty]] = 1.0
    return weights / weights.sum(axis=1, keepdims=True)
