"""Slice images as the 2D models see them: from the scanner's grid, in the radiologist's orientation."""

from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.volumes.preprocess import Cube
from m3di.volumes.resample import AxisWeights, Floats, Grid, axis_weights
from stores.geometry import NORMAL_AXIS, PLANES, CubeChain

SIGNAL = 0.05  # intensity above which a pixel shows something
MIN_SHARE = 0.01  # share of in-scan pixels that must show something


def plane_grids(chain: CubeChain, positions: npt.NDArray[np.integer[Any]], size: int) -> list[Grid]:
    """Grids of the slice stacks of the three planes.

    Along the normal a slice is as thick as a voxel of the cube; in plane the cube's square field of view becomes
    `size` x `size` pixels.

    Args:
        chain: The scan's chain to its cube.
        positions: (s,) positions in the cube along the planes' normals.
        size: Edge of the images, pixels.
    """
    pixels = [axis_weights(chain, axis, count=size) for axis in range(3)]
    normals = [AxisWeights(axis_weights(chain, axis).matrix[positions]) for axis in range(3)]
    grids = []
    for normal in (NORMAL_AXIS[plane] for plane in range(len(PLANES))):
        x, y, z = (normals[axis] if axis == normal else pixels[axis] for axis in range(3))
        grids.append((x, y, z))
    return grids


def displayed(stack: npt.NDArray[Any], plane: int) -> npt.NDArray[Any]:
    """View a stack (x, y, z) as slices (s, rows, columns) of a plane, as a radiologist expects them.

    Axial rows run to posterior and columns to the patient's left; coronal rows to inferior and columns to the left;
    sagittal rows to inferior and columns to posterior.
    """
    return stack.transpose(_display_axes(plane))[:, ::-1, ::-1]


def _display_axes(plane: int) -> tuple[int, int, int]:
    """Axes of a stack along which slices, rows and columns run."""
    normal = NORMAL_AXIS[plane]
    rows, columns = (axis for axis in (2, 1, 0) if axis != normal)
    return normal, rows, columns


def to_images(stack: Floats, plane: int) -> npt.NDArray[np.uint8]:
    """Grey images (s, y, x) of a plane's stack in [0, 1]."""
    images = np.empty(displayed(stack, plane).shape, np.uint8)
    grey = images[:, ::-1, ::-1].transpose(np.argsort(_display_axes(plane)))  # along the stack's axes
    # A layer at a time, in the order that the stack has in memory: it stays in the processor's cache.
    for source, target in zip(stack.transpose(2, 1, 0), grey.transpose(2, 1, 0), strict=True):
        scaled = source * np.float32(255)
        target[...] = np.rint(scaled, out=scaled)
    return images


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
