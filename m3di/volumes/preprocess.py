"""The canonical cube: intensities to [0, 1], one anti-aliased resampling, and the way back (paper, section 3.1).

Deviation: the paper resamples to 1 mm, pads to a cube and scales to 128^3; one resampling straight to the cube has
the same field of view without the blur and the rounding of the steps between. `resampling="two_step"` is the paper's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from m3di.volumes.readers import Volume
from m3di.volumes.resample import AxisWeights, Floats, Grid, Window, axis_weights, resample
from stores.errors import CaseError
from stores.geometry import CubeChain
from stores.recipe import Recipe

MAX_SAMPLE: Final = 1 << 22  # voxels that percentiles are taken of
THIN_SHARE: Final = 0.1  # a thin structure keeps a cube voxel of which it fills so much


@dataclass(frozen=True, eq=False)
class Cube:
    """A canonical cube.

    Attributes:
        data: (J, J, J) float32 in [0, 1], axes to the patient's right, anterior, superior; padding is 0.
        chain: How it came from the scan.
    """

    data: Floats
    chain: CubeChain


def chain_of(volume: Volume, recipe: Recipe) -> CubeChain:
    """The way from a scan to its cube."""
    return CubeChain(volume.geometry, recipe.cube_size, recipe.resampling == "two_step", recipe.aligned)


def window_of(volume: Volume, recipe: Recipe) -> Window:
    """Intensities that become 0 and 1: of CT a window in HU, else percentiles.

    The lower percentile is taken over voxels above the minimum, which is background; the upper over the body, which
    is what lies above their mean, so that a wide margin of noise does not decide the contrast. Bright outliers have
    no part in either. Percentiles of large scans are taken over every n-th voxel along the canonical axes.

    Raises:
        CaseError: E_NO_SIGNAL, when the intensities that count are all equal.
    """
    if volume.modality == "CT":
        low, high = recipe.ct_window_hu
    else:
        canonical = CubeChain(volume.geometry, 1).to_canonical(volume.data)
        step = int(np.ceil((canonical.size / MAX_SAMPLE) ** (1 / 3)))
        sample = canonical[::step, ::step, ::step].astype(np.float64).ravel()
        foreground = sample[sample > sample.min()]
        if not foreground.size:
            raise CaseError("E_NO_SIGNAL", "nearly all voxels have one value", hint="leave the scan out")
        top = np.percentile(foreground, 99.9)
        body = foreground[foreground >= np.minimum(foreground, top).mean()]
        low = float(np.percentile(foreground, recipe.mr_percentiles[0]))
        high = float(np.percentile(body, recipe.mr_percentiles[1]))
        if low == high:
            low = float(sample.min())
    if not low < high:
        raise CaseError("E_NO_SIGNAL", f"intensities from {low} to {high} are one value", hint="leave the scan out")
    return Window(low, high)


def make_cube(volume: Volume, recipe: Recipe) -> Cube:
    """Resample a scan to its canonical cube.

    Raises:
        CaseError: E_NO_SIGNAL.
    """
    return canonicalise(volume, recipe)[0]


def canonicalise(volume: Volume, recipe: Recipe, grids: Sequence[Grid] = ()) -> tuple[Cube, list[Floats]]:
    """Resample a scan to its canonical cube and to other grids of the same chain, in one pass.

    Raises:
        CaseError: E_NO_SIGNAL, when nothing would be seen.
    """
    chain = chain_of(volume, recipe)
    window = window_of(volume, recipe)
    data, *others = resample(chain.to_canonical(volume.data), [cube_grid(chain), *grids], window)
    inside = data[tuple(slice(*bounds) for bounds in chain.inside)]
    if inside.min() == inside.max():
        message = f"every voxel lies on one side of the window {window.low:g} to {window.high:g}"
        raise CaseError("E_NO_SIGNAL", message, hint="check the intensities, the modality and volumes.ct_window_hu")
    return Cube(np.ascontiguousarray(data), chain), others


def cube_grid(chain: CubeChain) -> Grid:
    """The cube's own grid."""
    return axis_weights(chain, 0), axis_weights(chain, 1), axis_weights(chain, 2)


def make_label_cube(label: npt.NDArray[np.uint8], chain: CubeChain) -> npt.NDArray[np.uint8]:
    """Resample a label map to its cube: every class as an anti-aliased share of the voxel, the largest share wins.

    So that structures thinner than a voxel of the cube survive, a class also keeps a voxel of background of which it
    fills at least a tenth, where its share is a ridge along an axis on which the cube is coarser than the scan:
    larger than on both sides, and beside a voxel that the class has won, larger than both together. That holds
    vessels and sheets together without moving the border of anything thick. A class that would still vanish keeps
    its best voxel.

    Args:
        label: Along the scan's own axes.
        chain: The scan's chain to its cube.
    """
    canonical = chain.to_canonical(label)
    shares = {
        value: _share(canonical, value, where, chain)
        for value, where in enumerate(ndimage.find_objects(np.ascontiguousarray(canonical)), start=1)
        if where is not None
    }
    size = (chain.cube_size,) * 3
    winner, best, background = np.zeros(size, np.uint8), np.zeros(size, np.float32), _inside(chain).astype(np.float32)
    for share in shares.values():
        background -= share
    for value, share in shares.items():
        wins = share > best + 1e-6
        winner[wins], best[wins] = value, share[wins]
    thick = np.where(best > background + 1e-6, winner, 0).astype(np.uint8)
    result = thick.copy()
    coarser = [axis for axis in range(3) if chain.voxel_mm > chain.canonical_spacing_mm[axis]]
    for value, share in shares.items():
        thin = (thick == 0) & (winner == value) & (share >= THIN_SHARE)
        result[thin & _ridge(share, thick == value, coarser)] = value
    for value, share in shares.items():
        if not (result == value).any():
            result[np.unravel_index(int(share.argmax()), size)] = value
    return result


def _share(canonical: npt.NDArray[np.uint8], value: int, where: tuple[slice, ...], chain: CubeChain) -> Floats:
    """How much of each cube voxel a class fills; worked out where the class is, 0 elsewhere."""
    full = np.zeros((chain.cube_size,) * 3, np.float32)
    grid, rows = [], []
    for axis, within in enumerate(where):
        part = axis_weights(chain, axis).matrix[:, within]
        (touched,) = np.nonzero(part.any(axis=1))
        if not touched.size:
            return full
        rows.append(slice(int(touched[0]), int(touched[-1]) + 1))
        grid.append(AxisWeights(np.ascontiguousarray(part[rows[-1]])))
    (share,) = resample(canonical[where] == value, [(grid[0], grid[1], grid[2])])
    full[tuple(rows)] = share
    return full


def _ridge(share: Floats, won: npt.NDArray[np.bool_], axes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Where a share is larger than both neighbours' along one of some axes; beside won voxels, than their sum."""
    ridge = np.zeros(share.shape, bool)
    strong = np.zeros(share.shape, bool)
    padded = np.pad(share, 1)
    inner = (slice(1, -1),) * 3
    for axis in axes:
        before, after = (
            padded[tuple(side if other == axis else inner[other] for other in range(3))]
            for side in (slice(0, -2), slice(2, None))
        )
        ridge |= (share > before) & (share >= after)
        strong |= share > before + after
    return strong | (ridge & ~ndimage.binary_dilation(won))


def _inside(chain: CubeChain) -> npt.NDArray[np.bool_]:
    inside = np.zeros((chain.cube_size,) * 3, bool)
    inside[tuple(slice(*bounds) for bounds in chain.inside)] = True
    return inside
