"""Slice images as the 2D models see them: from the scanner's grid, in the radiologist's orientation."""

import numpy as np
import numpy.typing as npt

from m3di.volumes.preprocess import Cube, Floats, apply_separable, axis_weights
from stores.geometry import NORMAL_AXIS, CubeChain

SIGNAL = 0.05  # intensity above which a pixel shows something
MIN_SHARE = 0.01  # share of in-scan pixels that must show something


def render_plane(
    normalised: Floats, chain: CubeChain, plane: int, indices: npt.NDArray[np.integer], size: int
) -> npt.NDArray[np.uint8]:
    """Render slices of one plane straight from the scan.

    Along the normal a slice is as thick as a voxel of the cube; in plane the cube's square field of view becomes
    `size` x `size` pixels. Axial rows run to posterior and columns to the patient's left; coronal rows to inferior
    and columns to the left; sagittal rows to inferior and columns to posterior.

    Args:
        normalised: The scan in [0, 1], along its own axes.
        chain: The scan's chain to its cube.
        plane: Number in `PLANES`.
        indices: (s,) positions in the cube along the plane's normal.
        size: Edge of the images, pixels.

    Returns:
        (s, y, x) images.
    """
    normal = NORMAL_AXIS[plane]
    pixel_mm = chain.edge_mm / size
    weights = [axis_weights(chain, axis, to_voxel_mm=pixel_mm, count=size) for axis in range(3)]
    weights[normal] = axis_weights(chain, normal, to_voxel_mm=chain.voxel_mm)[indices]
    stack = apply_separable(chain.to_canonical(normalised), weights)
    rows, columns = (axis for axis in (2, 1, 0) if axis != normal)
    images = stack.transpose(normal, rows, columns)[:, ::-1, ::-1]
    return np.rint(images * 255).astype(np.uint8)


def nonblank(cube: Cube) -> npt.NDArray[np.bool_]:
    """(3, J): per plane, the positions whose slice lies in the scan and shows something."""
    positions = np.arange(cube.data.shape[0])
    found = np.zeros((3, len(positions)), bool)
    shown = cube.data > SIGNAL
    for plane, normal in enumerate(NORMAL_AXIS):
        others = tuple(axis for axis in range(3) if axis != normal)
        area = np.prod([stop - start for start, stop in (cube.chain.inside[axis] for axis in others)])
        start, stop = cube.chain.inside[normal]
        enough = shown.sum(axis=others) >= MIN_SHARE * area
        found[plane] = enough & (positions >= start) & (positions < stop)
    return found
