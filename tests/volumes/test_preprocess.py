from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.volumes.preprocess import make_cube, make_label_cube, normalise, restore
from m3di.volumes.readers import Volume
from stores.errors import CaseError
from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe
from tests.phantoms import head, ras_affine
from tests.references.resampling import resample_axis

FLIPS = list(product((False, True), repeat=3))


def reoriented(array, affine, axes, flips):
    """The same scan with its array axes permuted and flipped, and the affine that says so."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, old in enumerate(axes):
        matrix[old, new] = -1 if flips[new] else 1
        matrix[old, 3] = array.shape[old] - 1 if flips[new] else matrix[old, 3]
    moved = array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(moved), Geometry(moved.shape, affine @ matrix)


@settings(max_examples=25, deadline=None)
@given(
    axes=st.sampled_from(list(permutations(range(3)))),
    flips=st.sampled_from(FLIPS),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
    shape=st.tuples(*[st.integers(5, 20)] * 3),
)
def test_reoriented_copies_of_a_scan_give_equal_cubes(axes, flips, spacing, shape):
    image, label = head(shape, spacing=spacing)
    affine = ras_affine(spacing, (3.0, -20.0, 7.0))
    plain = make_cube(image, Geometry(shape, affine), 12)
    moved, geometry = reoriented(image, affine, axes, flips)
    np.testing.assert_allclose(make_cube(moved, geometry, 12).data, plain.data, atol=1e-3)
    moved_label, _ = reoriented(label, affine, axes, flips)
    expected = make_label_cube(label, Geometry(shape, affine), 12)
    np.testing.assert_array_equal(make_label_cube(moved_label, geometry, 12), expected)
    np.testing.assert_allclose(CubeChain(geometry, 12).cube.affine, plain.chain.cube.affine, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 30), spacing=st.floats(0.3, 8), longest=st.floats(1, 4), count=st.integers(3, 40))
def test_one_axis_agrees_with_the_literal_form(size, spacing, longest, count):
    values = np.random.default_rng(size).random(size).astype(np.float32)
    edge = size * spacing * longest
    scan = np.broadcast_to(values[:, None, None], (size, 2, 2)).copy()
    geometry = Geometry(scan.shape, ras_affine((spacing, edge / 2, spacing)))
    cube = make_cube(scan, geometry, count).data
    expected = resample_axis(values, spacing, edge, count)
    (start, stop), *_ = CubeChain(geometry, count).inside
    middle = count // 2
    np.testing.assert_allclose(cube[start:stop, middle, middle], expected[start:stop], atol=1e-5)


@pytest.mark.parametrize("shape, spacing", [((40, 36, 30), (1.0, 1.2, 1.5)), ((60, 64, 12), (0.7, 0.7, 4.0))])
def test_a_blob_lands_where_it_is(shape, spacing):
    centre_mm = np.array([4.3, -3.1, 2.2])
    affine = ras_affine(spacing, -np.array(shape) * spacing / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    blob = np.exp(-((world - centre_mm) ** 2).sum(-1) / (2 * 5.0**2)).astype(np.float32)
    cube = make_cube(blob, Geometry(shape, affine), 32)
    found = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1)
    mass = (found * cube.data[..., None]).sum((0, 1, 2)) / cube.data.sum()
    landed = cube.chain.cube.affine[:3, :3] @ mass + cube.chain.cube.affine[:3, 3]
    source = (index * blob[..., None]).sum((0, 1, 2)) / blob.sum() @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(landed - source).max() / cube.chain.voxel_mm < 0.05


@pytest.mark.parametrize("axes, flips", [((0, 1, 2), FLIPS[0]), ((2, 0, 1), FLIPS[5]), ((1, 0, 2), FLIPS[3])])
def test_labels_survive_the_way_to_the_cube_and_back(axes, flips):
    _, label = head((26, 30, 22), spacing=(1.0, 0.9, 1.1))
    moved, geometry = reoriented(label, ras_affine((1.0, 0.9, 1.1)), axes, flips)
    cube = make_label_cube(moved, geometry, 32)
    chain = CubeChain(geometry, 32)
    scores = np.stack([(cube == value).astype(np.float32) for value in range(3)])
    back = restore(scores, chain)
    assert back.shape == (3, *geometry.shape)
    prediction = back.argmax(0)
    for value in (1, 2):
        both = ((prediction == value) & (moved == value)).sum()
        assert 2 * both / ((prediction == value).sum() + (moved == value).sum()) > 0.93


def test_padding_is_zero_and_the_inside_is_known():
    geometry = Geometry((10, 20, 6), ras_affine((1.0, 1.0, 1.0)))
    cube = make_cube(np.ones((10, 20, 6), np.float32), geometry, 20)
    assert cube.chain.inside == ((5, 15), (0, 20), (7, 13))
    inside = np.zeros_like(cube.data)
    inside[tuple(slice(*bounds) for bounds in cube.chain.inside)] = 1
    np.testing.assert_allclose(cube.data, inside, atol=1e-6)


def test_ct_is_windowed_and_mr_follows_its_foreground():
    recipe = Recipe(ct_window_hu=(-100.0, 300.0), mr_percentiles=(0.0, 100.0))
    data = np.array([[[-2000.0, -100.0], [100.0, 3000.0]]], np.float32)
    geometry = Geometry((1, 2, 2), np.eye(4))
    np.testing.assert_allclose(normalise(Volume(data, geometry, "CT"), recipe).ravel(), [0, 0, 0.5, 1])
    mr = np.array([[[0.0, 10.0], [20.0, 30.0]]], np.float32)
    np.testing.assert_allclose(normalise(Volume(mr, geometry, "MR"), recipe).ravel(), [0, 0, 0.5, 1])


def test_one_outlier_does_not_flatten_the_rest():
    image, _ = head()
    image[3, 3, 3] = 1e30
    scaled = normalise(Volume(image, Geometry(image.shape, np.eye(4)), "MR"), Recipe())
    assert scaled.max() == 1
    assert 0.2 < scaled[image > 100].mean() < 0.8


def test_a_window_of_nothing_is_refused():
    volume = Volume(np.zeros((2, 2, 2), np.float32), Geometry((2, 2, 2), np.eye(4)), "CT")
    with pytest.raises(CaseError, match="E_NO_SIGNAL"):
        normalise(volume, Recipe(ct_window_hu=(5.0, 5.0)))
