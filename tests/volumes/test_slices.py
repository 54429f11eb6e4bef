import numpy as np
import pytest

from m3di.volumes.preprocess import Cube, cube_grid
from m3di.volumes.resample import resample
from m3di.volumes.slices import displayed, nonblank, plane_grids, to_images
from stores.geometry import CubeChain, Geometry
from tests.phantoms import ras_affine

SHAPE = (16, 16, 16)


def mark(right, anterior, superior):
    """A scan that is bright in one octant only."""
    scan = np.zeros(SHAPE, np.float32)
    scan[tuple(slice(8, 16) if high else slice(0, 8) for high in (right, anterior, superior))] = 1
    return scan, CubeChain(Geometry(SHAPE, ras_affine((1.0, 1.0, 1.0))), 16)


def render_plane(scan, chain, plane, positions, size):
    """Slice images of one plane of a scan in [0, 1]."""
    stacks = resample(chain.to_canonical(scan), plane_grids(chain, positions, size))
    return to_images(stacks[plane], plane)


def brightest_quadrant(image):
    """(row, column) of the brightest quadrant: 0 top or left, 1 bottom or right."""
    half = len(image) // 2
    quadrants = {
        (r, c): image[r * half : (r + 1) * half, c * half : (c + 1) * half].mean() for r in (0, 1) for c in (0, 1)
    }
    return max(quadrants, key=quadrants.get)


def test_slices_are_shown_as_a_radiologist_expects():
    scan, chain = mark(right=True, anterior=True, superior=True)
    axial, coronal, sagittal = (render_plane(scan, chain, plane, np.array([12]), 32)[0] for plane in range(3))
    assert brightest_quadrant(axial) == (0, 0), "anterior is up, the patient's right is on the left"
    assert brightest_quadrant(coronal) == (0, 0), "superior is up, the patient's right is on the left"
    assert brightest_quadrant(sagittal) == (0, 0), "superior is up, anterior is on the left"


def test_positions_run_to_superior_anterior_and_right():
    scan, chain = mark(right=True, anterior=True, superior=True)
    for plane in range(3):
        low, high = render_plane(scan, chain, plane, np.array([3, 12]), 16)
        assert low.max() == 0
        assert high.max() == 255


def test_slices_come_from_the_scan_not_from_the_cube():
    stripes = np.zeros((64, 64, 8), np.float32)
    stripes[::2] = 1
    chain = CubeChain(Geometry(stripes.shape, ras_affine((1.0, 1.0, 8.0))), 16)
    image = render_plane(stripes, chain, 0, np.array([8]), 64)[0]
    assert image.std() > 120, "the stripes are one source voxel wide, four to a voxel of the cube"


def test_blank_slices_are_those_outside_or_empty():
    scan = np.zeros((8, 16, 16), np.float32)
    scan[:, :, 4:10] = 0.5
    chain = CubeChain(Geometry(scan.shape, ras_affine((1.0, 1.0, 1.0))), 16)
    (data,) = resample(chain.to_canonical(scan), [cube_grid(chain)])
    axial, coronal, sagittal = nonblank(Cube(data, chain))
    assert np.flatnonzero(axial).tolist() == list(range(4, 10))
    assert coronal.all()
    assert np.flatnonzero(sagittal).tolist() == list(range(4, 12)), "the rest is padding"


@pytest.mark.parametrize("plane", [0, 1, 2])
def test_images_are_the_rounded_stack_as_it_is_displayed(plane):
    stack = np.random.default_rng(plane).random((5, 6, 7), np.float32).transpose(2, 1, 0)
    for given in (stack, np.ascontiguousarray(stack)):
        images = to_images(given, plane)
        assert np.array_equal(images, np.rint(displayed(stack, plane) * np.float32(255)).astype(np.uint8))
        assert images.flags.c_contiguous
