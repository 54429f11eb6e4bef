from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from m3di.volumes.preprocess import chain_of, cube_grid, make_cube, make_label_cube, window_of
from m3di.volumes.readers import Volume
from m3di.volumes.resample import resample, restore
from stores.errors import CaseError
from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe
from tests.phantoms import head, ras_affine
from tests.references.resampling import resample_axis

FLIPS = list(product((False, True), repeat=3))


def to_cube(array, chain):
    """The cube of values as they are, without a window."""
    return resample(chain.to_canonical(array), [cube_grid(chain)])[0]


def from_cube(scores, chain):
    """Scores on the scan's own grid and axes."""
    canonical = np.empty((len(scores), *chain.canonical_shape), np.float32)
    for z, part in restore(scores, chain):
        canonical[..., z] = part
    return np.stack([chain.from_canonical(score) for score in canonical])


def reoriented(array, affine, axes, flips):
    """The same scan with its array axes permuted and flipped, and the affine that says so."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, old in enumerate(axes):
        matrix[old, new] = -1 if flips[new] else 1
        matrix[old, 3] = array.shape[old] - 1 if flips[new] else matrix[old, 3]
    moved = array.transpose(axes)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.ascontiguousarray(moved), Geometry(moved.shape, affine @ matrix)


@settings(max_examples=25)
@given(
    axes=st.sampled_from(list(permutations(range(3)))),
    flips=st.sampled_from(FLIPS),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
    shape=st.tuples(*[st.integers(5, 20)] * 3),
)
def test_reoriented_copies_of_a_scan_give_equal_cubes(axes, flips, spacing, shape):
    image, label = head(shape, spacing=spacing)
    affine = ras_affine(spacing, (3.0, -20.0, 7.0))
    recipe = Recipe(cube_size=12)
    plain = make_cube(Volume(image, Geometry(shape, affine), "MR"), recipe)
    moved, geometry = reoriented(image, affine, axes, flips)
    cube = make_cube(Volume(np.asfortranarray(moved), geometry, "MR"), recipe)
    np.testing.assert_array_equal(cube.data, plain.data)
    moved_label, _ = reoriented(label, affine, axes, flips)
    np.testing.assert_array_equal(make_label_cube(moved_label, cube.chain), make_label_cube(label, plain.chain))
    np.testing.assert_allclose(cube.chain.cube.affine, plain.chain.cube.affine, atol=1e-9)


@settings(max_examples=40)
@given(size=st.integers(2, 30), spacing=st.floats(0.3, 8), longest=st.floats(1, 4), count=st.integers(3, 40))
def test_one_axis_agrees_with_the_literal_form(size, spacing, longest, count):
    values = np.random.default_rng(size).random(size).astype(np.float32)
    edge = size * spacing * longest
    scan = np.broadcast_to(values[:, None, None], (size, 2, 2)).copy()
    chain = CubeChain(Geometry(scan.shape, ras_affine((spacing, edge / 2, spacing))), count)
    cube = to_cube(scan, chain)
    expected = resample_axis(values, spacing, edge, count)
    (start, stop), *_ = chain.inside
    middle = count // 2
    np.testing.assert_allclose(cube[start:stop, middle, middle], expected[start:stop], atol=1e-5)


@pytest.mark.parametrize("shape, spacing", [((40, 36, 30), (1.0, 1.2, 1.5)), ((60, 64, 12), (0.7, 0.7, 4.0))])
@pytest.mark.parametrize("two_step", [False, True])
def test_a_blob_lands_where_it_is(shape, spacing, two_step):
    centre_mm = np.array([4.3, -3.1, 2.2])
    affine = ras_affine(spacing, -np.array(shape) * spacing / 2)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    blob = np.exp(-((world - centre_mm) ** 2).sum(-1) / (2 * 5.0**2)).astype(np.float32)
    chain = CubeChain(Geometry(shape, affine), 32, two_step)
    cube = to_cube(blob, chain)
    found = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1)
    mass = (found * cube[..., None]).sum((0, 1, 2)) / cube.sum()
    landed = chain.cube.affine[:3, :3] @ mass + chain.cube.affine[:3, 3]
    source = (index * blob[..., None]).sum((0, 1, 2)) / blob.sum() @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(landed - source).max() / chain.voxel_mm < 0.05


@pytest.mark.parametrize("axes, flips", [((0, 1, 2), FLIPS[0]), ((2, 0, 1), FLIPS[5]), ((1, 0, 2), FLIPS[3])])
def test_labels_survive_the_way_to_the_cube_and_back(axes, flips):
    _, label = head((26, 30, 22), spacing=(1.0, 0.9, 1.1))
    moved, geometry = reoriented(label, ras_affine((1.0, 0.9, 1.1)), axes, flips)
    chain = CubeChain(geometry, 32)
    cube = make_label_cube(moved, chain)
    scores = np.stack([(cube == value).astype(np.float32) for value in range(3)])
    back = from_cube(scores, chain)
    assert back.shape == (3, *geometry.shape)
    prediction = back.argmax(0)
    for value in (1, 2):
        both = ((prediction == value) & (moved == value)).sum()
        assert 2 * both / ((prediction == value).sum() + (moved == value).sum()) > 0.93


def parts_back(label, chain):
    """What comes back of the cube of a label map, as a prediction would."""
    cube = make_label_cube(label, chain)
    values = np.unique(label)
    return values[from_cube((cube[None] == values.reshape(-1, 1, 1, 1)).astype(np.float32), chain).argmax(0)]


@pytest.mark.parametrize("shape", [(24, 32, 20), (25, 32, 21), (25, 32, 20)])
@pytest.mark.parametrize("axes, flips", [((0, 1, 2), FLIPS[0]), ((2, 0, 1), FLIPS[5])])
def test_a_cube_of_the_scans_voxel_size_is_the_scan(shape, axes, flips):
    """Sides of odd and even voxels: half a voxel off, every border would be a tie, and lost twice."""
    image, label = head(shape, spacing=(1.3,) * 3)
    image, _ = reoriented(image, ras_affine((1.3,) * 3), axes, flips)
    label, geometry = reoriented(label, ras_affine((1.3,) * 3), axes, flips)
    volume = Volume(image, geometry, "MR")
    recipe = Recipe(cube_size=32)
    cube = make_cube(volume, recipe)
    inside = tuple(slice(*bounds) for bounds in cube.chain.inside)
    np.testing.assert_array_equal(parts_back(label, cube.chain), label)
    np.testing.assert_array_equal(make_label_cube(label, cube.chain)[inside], cube.chain.to_canonical(label))
    windowed = window_of(volume, recipe).apply(cube.chain.to_canonical(image))
    np.testing.assert_allclose(cube.data[inside], windowed, atol=1e-6)
    assert cube.data.sum(dtype=float) == pytest.approx(windowed.sum(dtype=float)), "nothing is outside"


def test_cubes_of_before_and_of_other_voxels_stay_where_they_were():
    geometry = Geometry((25, 32, 21), ras_affine((1.0, 1.0, 1.5)))
    volume = Volume(np.zeros((25, 32, 21), np.float32), geometry, "MR")
    now, before = (chain_of(volume, Recipe(cube_size=32, rendering_version=version)) for version in (3, 2))
    assert before.start_mm == (-3.5, 0.0, -0.25)
    assert now.start_mm == (-3.0, 0.0, -0.25)
    assert chain_of(volume, Recipe(cube_size=31)).start_mm == before.start_mm
    two_step = Recipe(cube_size=32, resampling="two_step")
    assert chain_of(volume, two_step) == CubeChain(geometry, 32, two_step=True)


def test_padding_is_zero_and_the_inside_is_known():
    geometry = Geometry((10, 20, 6), ras_affine((1.0, 1.0, 1.0)))
    chain = CubeChain(geometry, 20)
    cube = to_cube(np.ones((10, 20, 6), np.float32), chain)
    assert chain.inside == ((5, 15), (0, 20), (7, 13))
    inside = np.zeros_like(cube)
    inside[tuple(slice(*bounds) for bounds in chain.inside)] = 1
    np.testing.assert_allclose(cube, inside, atol=1e-6)


def scaled(data, modality, recipe):
    volume = Volume(np.asarray(data, np.float32), Geometry(np.shape(data), np.eye(4)), modality)
    return window_of(volume, recipe).apply(volume.data)


def test_ct_is_windowed():
    recipe = Recipe(ct_window_hu=(-100.0, 300.0))
    np.testing.assert_allclose(scaled([[[-2000, -100], [100, 3000]]], "CT", recipe).ravel(), [0, 0, 0.5, 1])


def test_mr_runs_from_the_foregrounds_low_to_the_bodys_high_percentile():
    data = [[[0, 10], [20, 30]]]  # foreground 10, 20, 30; body (its mean and above) 20, 30
    assert scaled(data, "MR", Recipe(mr_percentiles=(0.0, 100.0))).ravel() == pytest.approx([0, 0, 0.5, 1])
    assert scaled(data, "MR", Recipe(mr_percentiles=(0.0, 50.0))).ravel() == pytest.approx([0, 0, 10 / 15, 1])


def test_a_wide_margin_of_noise_does_not_decide_the_contrast():
    random = np.random.default_rng(0)
    data = random.uniform(0, 20, (40, 40, 40))
    data[10:25, 10:25, 10:25] = random.uniform(500, 1000, (15, 15, 15))  # 5% of the voxels
    window = window_of(Volume(data, Geometry(data.shape, np.eye(4)), "MR"), Recipe(mr_percentiles=(0.5, 90.0)))
    assert window.high == pytest.approx(950, abs=10), "the 90th percentile of the body, not of everything"


@pytest.mark.parametrize("outlier", [1e30, 3e38, -1e30])
def test_one_outlier_does_not_flatten_the_rest(outlier):
    image, _ = head()
    image[3, 3, 3] = outlier
    shown = scaled(image, "MR", Recipe())
    assert shown.max() == 1
    assert 0.2 < shown[image > 100].mean() < 0.8


@pytest.mark.parametrize("modality, value", [("CT", -1900.0), ("CT", 2500.0)])
def test_a_scan_that_lies_outside_the_window_is_refused(modality, value):
    data = np.full((4, 4, 4), value, np.float32)
    data[0, 0, 0] += 1
    with pytest.raises(CaseError, match="E_NO_SIGNAL"):
        make_cube(Volume(data, Geometry((4, 4, 4), np.eye(4)), modality), Recipe(cube_size=4))


def test_a_window_of_nothing_is_refused():
    volume = Volume(np.arange(8, dtype=np.float32).reshape(2, 2, 2), Geometry((2, 2, 2), np.eye(4)), "CT")
    with pytest.raises(CaseError, match="E_NO_SIGNAL"):
        window_of(volume, Recipe(ct_window_hu=(5.0, 5.0)))


def test_a_thin_sheet_and_a_small_lesion_survive():
    label = np.zeros((64, 64, 64), np.uint8)
    label[20:40, 20:40, 31] = 1  # a quarter of a cube voxel thick
    label[50, 50, 50] = 2
    cube = make_label_cube(label, CubeChain(Geometry(label.shape, ras_affine((1.0, 1.0, 1.0))), 16))
    assert (cube[5:10, 5:10] == 1).any(axis=2).all(), "the sheet has no holes"
    assert ((cube == 1).sum(axis=2) <= 1).all(), "and is one voxel thick"
    assert (cube == 2).sum() == 1


def test_borders_of_thick_structures_do_not_move():
    label = np.zeros((60, 60, 60), np.uint8)
    label[10:41, 13:44, 17:50] = 3
    chain = CubeChain(Geometry(label.shape, ras_affine((1.0, 1.0, 1.0))), 20)
    (share,) = resample(chain.to_canonical(label == 3), [cube_grid(chain)])
    np.testing.assert_array_equal(make_label_cube(label, chain) == 3, share > 0.5 + 1e-6)


@settings(max_examples=30)
@given(
    axes=st.sampled_from(list(permutations(range(3)))),
    flips=st.sampled_from(FLIPS),
    angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 6)] * 3),
    shape=st.tuples(*[st.integers(6, 24)] * 3),
    two_step=st.booleans(),
)
def test_a_linear_ramp_comes_back_on_the_scanners_grid(axes, flips, angles, spacing, shape, two_step):
    affine = ras_affine(spacing, (3.0, -20.0, 7.0))
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() @ affine[:3, :3]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    ramp = (index / (np.array(shape) - 1)).mean(-1).astype(np.float32)
    moved, geometry = reoriented(ramp, affine, axes, flips)
    chain = CubeChain(geometry, 48, two_step)
    (back,) = from_cube(to_cube(moved, chain)[None], chain)
    assert back.shape == moved.shape
    coarsest = [max(chain.voxel_mm, two_step * 1.0, own) for own in geometry.spacing_mm]
    rim = [int(np.ceil(2 * mm / own)) for mm, own in zip(coarsest, geometry.spacing_mm, strict=True)]
    core = tuple(slice(r, n - r) for r, n in zip(rim, geometry.shape, strict=True))  # the border meets the padding
    step = sum(mm / (own * n) for mm, own, n in zip(coarsest, geometry.spacing_mm, geometry.shape, strict=True)) / 3
    assert np.abs(back[core] - moved[core]).max(initial=0) < 0.02 + step / 2
