from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from m3di.demo.variation import Template, draw, evaluate_spline, render, sampling_points
from stores.geometry import Geometry

SHAPE = (20, 24, 16)


@pytest.fixture
def template():
    """White matter in the right half of a box, grey in the left, a CSF core, air around."""
    channels = np.zeros((4, *SHAPE), np.float32)
    channels[3, 10:16, 4:20, 4:12] = 1
    channels[2, 4:10, 4:20, 4:12] = 1
    channels[1:, 8:12, 10:14, 7:9] = np.array([1, 0, 0])[:, None, None, None]
    channels[0] = channels[3] * 0.8 + channels[2] * 0.6 + channels[1] * 0.3
    affine = np.eye(4)
    affine[:3, 3] = (-9, -12, 5)
    return Template(channels, Geometry(SHAPE, affine))


@pytest.fixture
def nothing():
    """The variation that changes nothing but the unit of intensity."""
    drawn = draw(np.random.default_rng(0))
    flat = {"displacement_mm": np.zeros((3, 7, 8, 7)), "bias": np.zeros((5, 5, 5)), "gamma": 1.0, "noise": 0.0}
    still = {"rotation_deg": (0.0,) * 3, "scale": (1.0,) * 3, "shift_mm": (0.0,) * 3, "peak": 1000.0}
    return replace(drawn, **flat, **still)


def scan(template, variation, spacing_mm=1.0):
    return render(template, variation, template.grid(spacing_mm), np.random.default_rng(1))


def test_no_variation_gives_the_template_back(template, nothing):
    image, labels = scan(template, nothing)
    np.testing.assert_array_equal(image, np.rint(template.channels[0] * 1000))
    assert [int(np.sum(labels == code)) for code in (1, 2, 3)] == [752, 752, 32]
    np.testing.assert_array_equal(labels == 2, template.channels[3] == 1)


def test_shift_moves_image_and_labels_by_its_voxels(template, nothing):
    image, labels = scan(template, nothing)
    shifted_image, shifted_labels = scan(template, replace(nothing, shift_mm=(2.0, 0.0, -1.0)))
    np.testing.assert_array_equal(shifted_image, np.roll(image, (-2, 0, 1), axis=(0, 1, 2)))
    np.testing.assert_array_equal(shifted_labels, np.roll(labels, (-2, 0, 1), axis=(0, 1, 2)))


def test_quarter_turn_about_z_sends_x_to_y(template, nothing):
    points = sampling_points(template, replace(nothing, rotation_deg=(0.0, 0.0, 90.0)), template.grid(1.0))
    # 3 mm right of the centre (9.5, 11.5, 7.5) is taken from 3 mm anterior of it.
    np.testing.assert_allclose(points[:, 12, 11, 7] - points[:, 9, 11, 7], (0, 3, 0), atol=1e-12)


def test_grid_covers_the_template_around_its_centre(template):
    grid = template.grid(3.0)
    assert grid.shape == (7, 8, 6)
    assert grid.spacing_mm == (3.0, 3.0, 3.0)
    # The template's centre is voxel (9.5, 11.5, 7.5): 0.5, -0.5, 12.5 mm; the grid's is voxel (3, 3.5, 2.5).
    np.testing.assert_allclose(grid.affine @ [3, 3.5, 2.5, 1], (0.5, -0.5, 12.5, 1))


def test_sampling_points_of_a_coarse_grid_stay_on_the_templates_places(template, nothing):
    points = sampling_points(template, nothing, template.grid(3.0))
    np.testing.assert_allclose(points[:, 0, 0, 0], (9.5 - 9, 11.5 - 10.5, 7.5 - 7.5))
    np.testing.assert_allclose(points[:, 1, 1, 1] - points[:, 0, 0, 0], 3)


def test_rim_voxels_keep_the_intensity_of_their_tissue(template, nothing):
    image, labels = scan(template, replace(nothing, shift_mm=(0.0, 0.25, 0.0)))
    # A quarter of these voxels' sample is empty; without a correction they would read 600 and 450.
    assert set(np.unique(image[10:16, 19, 4:12])) == {800}
    assert set(np.unique(image[4:9, 19, 4:12])) == {600}
    assert not image[labels == 0].any()


def test_gamma_and_bias_act_on_the_signal(template, nothing):
    image, labels = scan(template, replace(nothing, gamma=2.0, bias=np.full((5, 5, 5), np.log(1.5))))
    # 1000 * 1.5 * 0.8^2 and so on
    assert {int(image[labels == code][0]) for code in (1, 2, 3)} == {540, 960, 135}


def test_noise_has_the_second_moment_of_rice(template, nothing):
    image, labels = scan(template, replace(nothing, noise=0.05))
    white = image[labels == 2].astype(float)
    # E[m^2] = signal^2 + 2 sigma^2; the estimate's own deviation over 752 voxels is about 0.45%.
    assert np.mean(white**2) == pytest.approx(800**2 + 2 * 50**2, rel=0.02)
    assert np.std(white) == pytest.approx(50, rel=0.1)


def test_spline_of_equal_coefficients_is_constant():
    np.testing.assert_allclose(evaluate_spline(np.full((2, 5, 6, 7), 3.5), (4, 9, 5)), 3.5)


def test_spline_of_linear_coefficients_is_linear():
    ramp = np.broadcast_to(np.arange(6.0)[:, None, None], (6, 4, 4))
    # A uniform cubic B-spline reproduces lines; its domain starts at the second coefficient.
    np.testing.assert_allclose(evaluate_spline(ramp, (7, 3, 3))[:, 1, 1], np.linspace(1, 4, 7))


def test_spline_is_that_of_scipys_interpolator():
    coefficients = np.random.default_rng(0).normal(size=(6, 7, 5))
    axes = [np.linspace(1, n - 2, m) for n, m in zip(coefficients.shape, (9, 8, 7), strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    expected = map_coordinates(coefficients, points, order=3, prefilter=False)
    np.testing.assert_allclose(evaluate_spline(coefficients, (9, 8, 7)), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_deformations_have_no_folds_and_move_by_millimetres(seed):
    shape = (197, 233, 189)
    brain = Template(np.zeros((4, 1, 1, 1), np.float32), Geometry(shape, np.eye(4)))
    grid = brain.grid(8.0)
    variation = draw(np.random.default_rng(seed))
    points = sampling_points(brain, variation, grid)
    jacobian = np.stack([np.stack(np.gradient(axis, 8.0)) for axis in points])
    determinants = np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1)))
    assert determinants.min() > 0.3
    assert determinants.max() < 2.5
    displacement = evaluate_spline(variation.displacement_mm, grid.shape)
    assert 2 < displacement.std() < 4.5


def test_smoothing_blurs_to_the_voxel_size():
    channels = np.zeros((4, 31, 31, 31), np.float32)
    channels[:, 15, 15, 15] = 1
    profile = Template(channels, Geometry((31, 31, 31), np.eye(4))).smoothed(4.0).channels[0].sum(axis=(1, 2))
    offsets = np.arange(31) - 15
    # FWHM^2 = 4^2 - 1^2 and sigma = FWHM / 2.355, so the variance is 15 / 5.546; the kernel ends at 3 sigma.
    assert np.sum(profile * offsets**2) / np.sum(profile) == pytest.approx(15 / 5.546, rel=0.05)
    assert profile.sum() == pytest.approx(1, rel=1e-5)
