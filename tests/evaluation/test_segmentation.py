"""Ours against a literal reference, against MONAI, and against figures that others published."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)

from m3di.evaluation.segmentation import METRICS, border, dice_per_class, score_masks
from tests.references import surface

SPACING = (0.7, 1.1, 3.5)
WORST = ("hd95_mm", "assd_mm", "mssd_mm")


def score(prediction, reference, *, spacing_mm=SPACING, tolerance_mm=2.0):
    """Scores of two masks as a list, in the order of the metrics."""
    (found,) = score_masks(
        prediction.astype(np.uint8), reference.astype(np.uint8), [1], spacing_mm=spacing_mm, tolerance_mm=tolerance_mm
    ).values()
    return [getattr(found, name) for name in METRICS]


def literal(prediction, reference, *, spacing_mm=SPACING, tolerance_mm=2.0):
    return surface.scores_of(prediction, reference, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)


def blob(seed, shape=(11, 9, 8), share=0.3):
    """A smooth random mask, which touches the edges of its grid."""
    noise = np.random.default_rng(seed).normal(size=shape)
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise > np.quantile(noise, 1 - share)


def box(shape, *sides):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


@settings(max_examples=100)
@given(
    data=st.data(),
    shape=array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6),
    spacing=st.tuples(*[st.sampled_from((0.5, 1.0, 1.3, 4.0))] * 3),
    tolerance=st.sampled_from((0.0, 0.9, 1.0, 2.6)),
)
def test_every_metric_is_the_literal_one(data, shape, spacing, tolerance):
    masks = [data.draw(arrays(bool, shape, elements=st.booleans())) for _ in range(2)]
    found = score(*masks, spacing_mm=spacing, tolerance_mm=tolerance)
    expected = literal(*masks, spacing_mm=spacing, tolerance_mm=tolerance)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_smooth_masks_that_touch_the_edges_give_the_literal_figures(seed):
    masks = blob(seed), blob(seed + 100, share=0.2)
    np.testing.assert_allclose(score(*masks), literal(*masks), rtol=1e-12)


@pytest.mark.parametrize("place", [(0, 0, 0), (9, 8, 6), (4, 3, 2)])
def test_structures_in_corners_give_the_literal_figures(place):
    """A box of scoring ends at the grid's edges on some sides, not on others."""
    first, second = (box((12, 11, 9), *[(p, p + n) for p, n in zip(place, sizes, strict=True)])
                     for sizes in ((3, 2, 3), (2, 3, 2)))  # fmt: skip
    np.testing.assert_allclose(score(first, second), literal(first, second), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls itself in the old way
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
@pytest.mark.parametrize("seed", range(4))
def test_within_the_grid_the_figures_are_monais(seed, spacing):
    """MONAI takes the outside for background: no difference for masks that do not touch it."""
    prediction, reference = (np.pad(blob(s), 2) for s in (seed, seed + 50))
    given = [torch.from_numpy(one)[None, None].float() for one in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    expected = [
        compute_dice(*given, include_background=True),
        compute_surface_dice(*given, class_thresholds=[1.2], **options),
        compute_hausdorff_distance(*given, percentile=95, **options),
        compute_average_surface_distance(*given, symmetric=True, **options),
        compute_hausdorff_distance(*given, **options),
    ]
    found = score(prediction, reference, spacing_mm=spacing, tolerance_mm=1.2)[:5]
    np.testing.assert_allclose(found, [float(one) for one in expected], rtol=1e-5)


def test_where_the_field_of_view_cuts_a_structure_there_is_no_border():
    """The slabs differ by one row inside; MONAI would count all six faces of each, which mostly agree."""
    first, second = box((8, 8, 8), (0, 4), (0, 8), (0, 8)), box((8, 8, 8), (0, 5), (0, 8), (0, 8))
    assert border(first).sum() == 64
    assert score(first, second, spacing_mm=(3.0, 1.0, 1.0))[1:5] == [0.0, 3.0, 3.0, 3.0]


def test_a_mask_that_fills_its_grid_has_its_faces_for_a_border():
    full = np.ones((4, 5, 6), bool)
    assert border(full).sum() == 4 * 5 * 6 - 2 * 3 * 4
    assert score(full, full) == [1, 1, 0, 0, 0, 0]


def test_by_hand():
    """A bar of four voxels 2 mm long, the other moved by one: its ends are 2 mm from the other's, one each way."""
    first, second = box((9, 5, 5), (2, 6), (2, 3), (2, 3)), box((9, 5, 5), (3, 7), (2, 3), (2, 3))
    found = score(first, second, spacing_mm=(2.0, 1.0, 1.0), tolerance_mm=1.9)
    assert found == pytest.approx([6 / 8, 6 / 8, 0.85 * 2, 4 / 8, 2, 0])


@pytest.mark.parametrize("tolerance, expected", [(1.99, 0.0), (2.0, 1.0)])
def test_a_distance_equal_to_the_tolerance_is_within_it(tolerance, expected):
    one, other = box((9, 3, 3), (2, 3), (1, 2), (1, 2)), box((9, 3, 3), (3, 4), (1, 2), (1, 2))
    assert score(one, other, spacing_mm=(2.0, 1.0, 1.0), tolerance_mm=tolerance)[1] == expected


def test_empty_masks_follow_the_written_rule():
    shape = (240, 240, 155)
    empty, some = np.zeros(shape, bool), box(shape, (100, 110), (100, 110), (70, 80))
    brats = 373.1287  # what BraTS gives a structure that is missed or made up, on this grid of 1 mm
    missed, made_up = score(empty, some, spacing_mm=(1.0, 1.0, 1.0)), score(some, empty, spacing_mm=(1.0, 1.0, 1.0))
    assert missed == pytest.approx([0, 0, brats, brats, brats, 100], abs=1e-4)
    assert made_up[:5] == pytest.approx([0, 0, brats, brats, brats], abs=1e-4)
    assert math.isnan(made_up[5])
    assert all(math.isnan(value) for value in score(empty, empty))


def test_classes_are_scored_each_by_itself():
    random = np.random.default_rng(3)
    prediction, reference = random.integers(0, 5, (2, 7, 6, 5)).astype(np.uint8)
    found = score_masks(prediction, reference, [1, 4, 9], spacing_mm=SPACING, tolerance_mm=1.0)
    assert list(found) == [1, 4, 9]
    for value, scores in found.items():
        expected = literal(prediction == value, reference == value, tolerance_mm=1.0)
        np.testing.assert_allclose([getattr(scores, name) for name in METRICS], expected, rtol=1e-12)


def test_a_label_map_scores_alike_however_it_lies_in_memory():
    prediction, reference = (blob(seed).astype(np.uint8) for seed in (1, 2))
    plain = score_masks(prediction, reference, [1], spacing_mm=SPACING)
    turned = score_masks(prediction.T, np.asfortranarray(reference.T), [1], spacing_mm=SPACING[::-1])
    for name in METRICS:
        assert getattr(turned[1], name) == pytest.approx(getattr(plain[1], name), rel=1e-12)


def test_dice_by_hand():
    prediction = np.array([[0, 1, 1, 2], [0, 1, 0, 0]])
    reference = np.array([[0, 1, 0, 0], [0, 1, 1, 3]])
    scores = dice_per_class(prediction, reference, [1, 2, 3, 4])
    assert scores[1] == pytest.approx(2 * 2 / 6)
    assert scores[2] == 0
    assert scores[3] == 0
    assert math.isnan(scores[4]), "nobody has it"


@pytest.mark.parametrize("metric", [dice_per_class, lambda *masks: score_masks(*masks, spacing_mm=SPACING)])
def test_shapes_must_fit(metric):
    with pytest.raises(ValueError, match="differ in shape"):
        metric(np.zeros((2, 2, 2), int), np.zeros((2, 3, 2), int), [1])


def test_what_is_not_known_counts_as_what_lies_outside_the_grid():
    """Cutting the grid off where nothing is known gives the same scores."""
    prediction, reference = (blob(seed).astype(np.uint8) for seed in (1, 2))
    cut = prediction.shape[0] // 2
    assert prediction[cut - 1].any(), "the structure reaches into what is not known"
    assert reference[cut:].any()
    known = np.zeros(prediction.shape, bool)
    known[:cut] = True
    found = score_masks(prediction, reference, [1], spacing_mm=SPACING, known=known)[1]
    expected = score_masks(prediction[:cut], reference[:cut], [1], spacing_mm=SPACING)[1]
    for name in METRICS:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)
    whole = score_masks(prediction, reference, [1], spacing_mm=SPACING)[1]
    assert whole != found
    everywhere = score_masks(prediction, reference, [1], spacing_mm=SPACING, known=np.ones(known.shape, bool))[1]
    assert everywhere == whole


def test_a_mask_that_touches_only_what_is_not_known_has_its_surface_there():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 2, 2] = True
    known = mask.copy()
    known[4] = True
    np.testing.assert_array_equal(border(mask, known), mask)
