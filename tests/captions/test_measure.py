import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from m3di.captions.captioner import SliceFacts
from m3di.captions.describe import exact
from m3di.captions.measure import block_sums, measure
from tests.references.measuring import measured

SIZE = 224
Y, X = np.mgrid[:SIZE, :SIZE] + 0.5
AXIAL = SliceFacts(0, 0.5, "MR", "head", pixel_mm=1.0)
CT = SliceFacts(0, 0.5, "CT", "chest", pixel_mm=1.0, hu_range=(-1000.0, 1000.0))


def ellipse(row, column, half_height, half_width):
    return ((Y - row) / half_height) ** 2 + ((X - column) / half_width) ** 2 <= 1


def drawn(*layers):
    """An image of (mask, grey) layers, later ones on top."""
    image = np.zeros((SIZE, SIZE), np.uint8)
    for mask, grey in layers:
        image[mask] = grey
    return image


def grey_of(hu):
    return round((hu + 1000) / 2000 * 255)


def test_a_circle_is_round_and_as_large_as_it_was_drawn():
    form = measure(drawn((ellipse(112, 112, 60, 60), 128)), AXIAL).form
    assert (form.parts, form.width_mm, form.height_mm) == (1, 120, 120)
    assert form.area_mm2 == pytest.approx(np.pi * 60**2, rel=0.02)
    assert form.elongation == pytest.approx(1, abs=0.02)
    assert form.roundness == pytest.approx(1, abs=0.02)
    assert form.cut_sides == ()


@pytest.mark.parametrize(("half_height", "half_width"), [(30, 90), (90, 30)])
def test_an_ellipse_has_its_axes(half_height, half_width):
    form = measure(drawn((ellipse(112, 112, half_height, half_width), 128)), AXIAL).form
    assert form.elongation == pytest.approx(3, rel=0.03)
    assert form.roundness == pytest.approx(1, abs=0.02)
    assert (form.width_mm, form.height_mm) == (2 * half_width, 2 * half_height)


def test_lengths_follow_the_size_of_a_pixel_and_are_unknown_without():
    image = drawn((ellipse(112, 112, 30, 60), 128))
    half = measure(image, SliceFacts(0, 0.5, "MR", "head", pixel_mm=0.5)).form
    assert (half.width_mm, half.height_mm) == (60, 30)
    unknown = measure(image, SliceFacts(0, 0.5, "MR", "head")).form
    assert unknown.width_mm is unknown.height_mm is unknown.area_mm2 is None


def test_a_ring_has_a_cavity_that_counts_as_cross_section():
    ring = drawn((ellipse(112, 112, 80, 80), 150), (ellipse(112, 152, 20, 20), 0))
    found = measure(ring, AXIAL)
    (cavity,) = found.cavities
    assert cavity.share == pytest.approx(400 / 6400, rel=0.1)
    assert cavity.column == pytest.approx((152 - 32) / 160, abs=0.02)
    assert cavity.row == pytest.approx(0.5, abs=0.02)
    assert found.form.roundness == pytest.approx(1, abs=0.02)
    assert found.fill == pytest.approx(np.pi * 80**2 / SIZE**2, rel=0.02)


def test_a_bay_is_no_cavity():
    bay = drawn((ellipse(112, 112, 80, 80), 150), ((np.abs(Y - 112) < 15) & (X > 112), 0))
    assert measure(bay, AXIAL).cavities == ()


def test_two_lobes_are_two_parts_and_specks_are_none():
    lobes = [(ellipse(112, column, 40, 30), 150) for column in (60, 164)]
    assert measure(drawn(*lobes), AXIAL).form.parts == 2
    assert measure(drawn(*lobes, (ellipse(20, 20, 3, 3), 200)), AXIAL).form.parts == 2


def test_a_field_of_view_that_cuts_tissue_off_shows_at_the_edges():
    assert measure(np.full((SIZE, SIZE), 99, np.uint8), AXIAL).form.cut_sides == ("top", "bottom", "left", "right")
    head = drawn((ellipse(112, 112, 90, 60) & (Y < 150), 99))
    assert measure(head, AXIAL).form.cut_sides == ("bottom",)
    assert measure(drawn((ellipse(112, 112, 17, 17), 99)), AXIAL).form.cut_sides == ()


def test_mirrored_halves_are_symmetric_and_others_are_not():
    body = (ellipse(112, 112, 60, 90), 80)
    pair = [(ellipse(112, column, 25, 25), 220) for column in (62, 162)]
    assert measure(drawn(body, *pair), AXIAL).symmetry == pytest.approx(1, abs=0.01)
    assert measure(drawn(body, pair[0]), AXIAL).symmetry < 0.35
    moved = drawn((ellipse(112, 90, 60, 80), 80), (ellipse(112, 45, 25, 25), 220), (ellipse(112, 135, 25, 25), 220))
    assert measure(moved, AXIAL).symmetry > 0.9, "whatever the body's place in the image"
    thin = drawn(((Y > 220) & (X < 100), 200), ((Y > 220) & (X > 100) & (X < 150), 30))
    assert measure(thin, AXIAL).symmetry < 0.35, "at the edge, too"
    assert measure(drawn(body), SliceFacts(2, 0.5, "MR", "head")).symmetry is None


@pytest.mark.parametrize(("row", "column"), [(70, 60), (70, 164), (154, 60), (154, 164)])
def test_the_brightest_region_is_where_it_was_drawn(row, column):
    image = drawn((ellipse(112, 112, 90, 90), 90), (ellipse(row, column, 10, 10), 250))
    found = measure(image, AXIAL).brightest
    assert (found.row, found.column) == pytest.approx(((row - 22) / 180, (column - 22) / 180), abs=0.03)
    assert found.excess == pytest.approx((250 - 92) / 255, abs=0.1)


def test_tissues_of_ct_by_their_share():
    body = drawn((ellipse(112, 112, 100, 100), grey_of(-100)), (ellipse(112, 112, 80, 80), grey_of(40)))
    lung, bone, metal = ellipse(112, 80, 30, 20), ellipse(170, 112, 10, 10), ellipse(140, 150, 8, 8)
    for mask, hu in ((lung, -850), (bone, 500), (metal, 1000)):
        body[mask] = grey_of(hu)
    noise = np.random.default_rng(0).integers(-2, 3, body.shape)
    found = measure(np.clip(body + noise, 0, 255).astype(np.uint8), CT)
    assert found.tissues["fat"] == pytest.approx(0.36, abs=0.03)
    assert found.tissues["air"] == pytest.approx(600 / 10000, abs=0.01)
    assert found.tissues["bone or contrast"] == pytest.approx(100 / 10000, abs=0.005)
    assert found.tissues["very dense"] == pytest.approx(64 / 10000, abs=0.003)
    assert len(found.cavities) == 1


def test_tissues_outside_the_window_are_not_claimed():
    noisy = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE)).astype(np.uint8)
    narrow = SliceFacts(0, 0.5, "CT", "liver", hu_range=(-160.0, 240.0))
    assert set(measure(noisy, narrow).tissues) == {"soft tissue"}
    assert measure(noisy, AXIAL).tissues is None


def test_a_masked_ct_says_nothing_of_tissue():
    masked = drawn((np.ones((SIZE, SIZE), bool), grey_of(0)), (ellipse(60, 60, 10, 10), grey_of(300)))
    assert measure(masked, CT).tissues is None


def test_block_sums_by_hand():
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert block_sums(image, 2).tolist() == [[16, 24, 32], [72, 80, 88]]


@given(
    seed=st.integers(0, 99), height=st.integers(1, 40), width=st.integers(1, 40), level=st.integers(0, 255),
    plane=st.integers(0, 2), is_ct=st.booleans(),
)  # fmt: skip
def test_any_image_has_facts_that_are_json_and_the_same_again(seed, height, width, level, plane, is_ct):
    noise = np.random.default_rng(seed).normal(level, 60, (height, width))
    image = np.clip(noise, 0, 255).astype(np.uint8)
    known = SliceFacts(plane, 0.5, "CT" if is_ct else "MR", "", hu_range=(-1000.0, 1000.0) if is_ct else None)
    facts = exact(measure(image, known), known)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts == exact(measure(image.copy(), known), known)


@st.composite
def pictures(draw):
    """Blobs, rings and specks on a dark ground, of any size from a few pixels to several blocks an edge."""
    height, width = draw(st.tuples(st.integers(3, 260), st.integers(3, 260)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smooth = ndimage.gaussian_filter(random.normal(size=(height, width)), draw(st.sampled_from([0.5, 2.0, 8.0])))
    image = smooth / (smooth.std() or 1) * draw(st.integers(10, 90)) + draw(st.integers(-60, 160))
    if draw(st.booleans()):
        image[height // 4 : height // 2, : width // 2] = draw(st.integers(0, 255))
    return image.clip(0, 255).astype(np.uint8)


@given(
    pictures(), st.integers(0, 2), st.sampled_from([0.0, 0.7]),
    st.sampled_from([None, (-1000.0, 1000.0), (-160.0, 240.0), (0.0, 80.0)]),
)  # fmt: skip
def test_the_facts_are_those_of_the_plain_way(image, plane, pixel_mm, hu_range):
    facts = SliceFacts(plane, 0.5, "CT" if hu_range else "MR", "", pixel_mm=pixel_mm, hu_range=hu_range)
    assert measure(image, facts).to_dict() == measured(image, plane, pixel_mm, hu_range)
