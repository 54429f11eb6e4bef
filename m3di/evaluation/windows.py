"""Scans larger than the network's field: overlapping windows along the scan, blended on the scanner's own grid.

Cubes are whole scans, whatever their size; what a network is used to is their width in mm. A scan that is much wider
is cut into windows of a width that it knows, each a small scan with a cube of its own. Intensities are scaled by the
whole scan's window: that of a part would make air or one organ as bright as a body.

Probabilities of windows are averaged with Gaussian weights (Isensee et al., nnU-Net, Nature Methods 2021: standard
deviation an eighth of the window), slab by slab: of all windows only those that touch a slab are held.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m3di.volumes import preprocess
from m3di.volumes.readers import Volume
from m3di.volumes.resample import SLAB_VOXELS, Floats, Restorer, resample
from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe

Score = Callable[[Floats], Floats]  # a cube (J, J, J) -> scores (c, J, J, J)

DEVIATION: Final = 0.125  # of the Gaussian weights, as a share of the window
FLOOR: Final = 1e-3  # of the weights along an axis: at the edges of a scan there is but one window


@dataclass(frozen=True)
class Box:
    """A part of a scan along its canonical axes: the first voxel of each axis, and the one behind the last."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Indices of the part."""
        x, y, z = (slice(*ends) for ends in zip(self.start, self.stop, strict=True))
        return x, y, z


def boxes_of(chain: CubeChain, width_mm: float, *, overlap: float) -> list[Box]:
    """Windows that cover a scan, from below to above.

    Args:
        chain: The scan's chain; a side that is shorter than a window is taken whole.
        width_mm: Of a window.
        overlap: Share of a window that the next one covers too, at least.
    """
    sides = [
        _spans(count, min(count, max(1, round(width_mm / spacing))), overlap)
        for count, spacing in zip(chain.canonical_shape, chain.canonical_spacing_mm, strict=True)
    ]
    return [
        Box((x[0], y[0], z[0]), (x[1], y[1], z[1])) for z in sides[2] for y in sides[1] for x in sides[0]
    ]  # fmt: skip


def part_chain(chain: CubeChain, box: Box) -> CubeChain:
    """The chain of a part of a scan, as if it were a scan of its own."""
    source = chain.source
    start, shape = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        along = chain.axes[axis]
        shape[along] = box.stop[axis] - box.start[axis]
        start[along] = source.shape[along] - box.stop[axis] if chain.flips[axis] else box.start[axis]
    affine = source.affine.copy()
    affine[:3, 3] = source.affine[:3, :3] @ np.array(start, np.float64) + source.affine[:3, 3]
    return replace(chain, source=Geometry((shape[0], shape[1], shape[2]), affine))


def blend(volume: Volume, recipe: Recipe, boxes: Sequence[Box], score: Score) -> Iterator[tuple[slice, Floats]]:
    """Score a scan window by window.

    Args:
        volume: The scan.
        recipe: How scans become cubes.
        boxes: The windows, from below to above; together they cover the scan.
        score: What the network makes of a window's cube.

    Yields:
        A range of canonical z, and the scores (c, x, y, s) of those slices, as `resample.restore` does.

    Raises:
        CaseError: E_NO_SIGNAL.
    """
    chain, window = preprocess.chain_of(volume, recipe), preprocess.window_of(volume, recipe)
    canonical = chain.to_canonical(volume.data)

    def begin(box: Box) -> tuple[Box, Restorer, int]:
        part = part_chain(chain, box)
        (cube,) = resample(canonical[box.slices], [preprocess.cube_grid(part)], window)
        scores = score(np.ascontiguousarray(cube))
        return box, Restorer(scores, part), len(scores)

    waiting, live = list(boxes), [begin(boxes[0])]
    waiting.pop(0)
    width, height, depth = chain.canonical_shape
    channels = live[0][2]
    step = max(1, 8 * SLAB_VOXELS // (channels * width * height))
    for start in range(0, depth, step):
        rows = slice(start, min(start + step, depth))
        while waiting and waiting[0].start[2] < rows.stop:
            live.append(begin(waiting.pop(0)))
        total = np.zeros((channels, width, height, rows.stop - start), np.float32)
        weight = np.zeros(total.shape[1:], np.float32)
        for box, back, _ in live:
            _add(box, back, rows, total, weight)
        live = [one for one in live if one[0].stop[2] > rows.stop]
        total /= weight
        yield rows, total


def _add(box: Box, back: Restorer, rows: slice, total: Floats, weight: Floats) -> None:
    """Add the share of one window in a slab."""
    low, high = max(rows.start, box.start[2]), min(rows.stop, box.stop[2])
    x, y, _ = box.slices
    place = (x, y, slice(low - rows.start, high - rows.start))
    inner = slice(low - box.start[2], high - box.start[2])
    along = [gaussian(stop - start) for start, stop in zip(box.start, box.stop, strict=True)]
    weights = along[0][:, None, None] * along[1][:, None] * along[2][inner]
    total[(slice(None), *place)] += back.slices(inner) * weights
    weight[place] += weights


def gaussian(size: int) -> npt.NDArray[np.float32]:
    """(n,) weights along one axis of a window of n voxels, 1 in its middle."""
    offsets = np.arange(size) - (size - 1) / 2
    return np.maximum(np.exp(-0.5 * (offsets / (DEVIATION * size)) ** 2), FLOOR).astype(np.float32)


def _spans(count: int, size: int, overlap: float) -> list[tuple[int, int]]:
    """Ranges of `size` that cover `count` voxels evenly."""
    number = math.ceil((count - size) / (size * (1 - overlap))) + 1
    starts: Any = np.rint(np.linspace(0, count - size, number)).astype(int)
    return [(int(start), int(start) + size) for start in dict.fromkeys(starts.tolist())]
