import base64
import io

import numpy as np
import pytest
from PIL import Image

from m3di.report import PALETTE, enlarge, montage, overlay
from m3di.report.pictures import data_uri


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (7, 5), dtype=np.uint8)


def decode(uri):
    head, payload = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(payload))))


def test_data_uri_decodes_to_the_same_pixels(grey):
    colour = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    np.testing.assert_array_equal(decode(data_uri(grey)), grey)
    np.testing.assert_array_equal(decode(data_uri(colour)), colour)
    np.testing.assert_array_equal(decode(data_uri(colour[::-1, ::2])), colour[::-1, ::2])


def test_overlay_mixes_colour_and_slice_where_labelled(grey):
    labels = np.zeros_like(grey)
    labels[2, 3] = 1
    painted = overlay(np.full_like(grey, 100), labels)
    # Half of orange (230, 159, 0) and half of 100; 129.5 rounds to even.
    assert painted[2, 3].tolist() == [165, 130, 50]
    untouched = np.delete(painted.reshape(-1, 3), 2 * 5 + 3, axis=0)
    assert (untouched == 100).all()


def test_overlay_alpha_reaches_from_slice_to_colour(grey):
    labels = np.full_like(grey, 2)
    np.testing.assert_array_equal(overlay(grey, labels, alpha=0.0), np.stack([grey] * 3, axis=-1))
    assert (overlay(grey, labels, alpha=1.0) == PALETTE[2]).all()


def test_contour_paints_the_outermost_pixels_only():
    labels = np.zeros((7, 7), np.uint8)
    labels[1:6, 1:6] = 3
    painted = (overlay(np.zeros_like(labels), labels, style="contour") == PALETTE[3]).all(axis=-1)
    expected = labels > 0
    expected[2:5, 2:5] = False
    np.testing.assert_array_equal(painted, expected)


def test_contour_separates_touching_labels_but_not_the_picture_edge():
    labels = np.ones((4, 6), np.uint8)
    labels[:, 3:] = 2
    painted = overlay(np.zeros_like(labels), labels, style="contour").any(axis=-1)
    assert painted.all(axis=0).tolist() == [False, False, True, True, False, False]


def test_overlay_refuses_other_shapes_and_labels_without_colour(grey):
    with pytest.raises(ValueError, match="are not one"):
        overlay(grey, grey[1:])
    with pytest.raises(ValueError, match="label 8 has no colour in a palette of 8"):
        overlay(grey, np.full_like(grey, 8))


def test_montage_fills_rows_and_centres_smaller_pictures():
    pictures = [np.full((2, 2), value, np.uint8) for value in (1, 2)] + [np.full((4, 4), 3, np.uint8)]
    sheet = montage(pictures, columns=2, gap=1, background=9)
    assert sheet.shape == (9, 9)
    assert sheet[1:3, 1:3].tolist() == [[1, 1], [1, 1]]
    assert sheet[1:3, 6:8].tolist() == [[2, 2], [2, 2]]
    assert (sheet[5:9, :4] == 3).all()
    assert sum(int((sheet == value).sum()) for value in (1, 2, 3)) == 4 + 4 + 16
    assert (sheet[4] == 9).all()


def test_montage_of_grey_and_colour_is_colour(grey):
    colour = np.zeros((*grey.shape, 3), np.uint8)
    colour[..., 0] = 200
    sheet = montage([grey, colour], columns=5, gap=0)
    assert sheet.shape == (7, 10, 3)
    np.testing.assert_array_equal(sheet[:, :5], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(sheet[:, 5:], colour)


@pytest.mark.parametrize(("count", "columns"), [(0, 2), (1, 0)])
def test_montage_needs_pictures_and_columns(count, columns):
    with pytest.raises(ValueError, match="cannot lay"):
        montage([np.zeros((2, 2), np.uint8)] * count, columns=columns)


def test_nearest_enlargement_repeats_pixels(grey):
    large = enlarge(grey, 3)
    assert large.shape == (21, 15)
    for offset in range(3):
        np.testing.assert_array_equal(large[offset::3, offset::3], grey)


def test_bilinear_enlargement_interpolates_between_pixel_centres():
    large = enlarge(np.array([[0, 100]], np.uint8), 2, method="bilinear")
    # Centres at a quarter, three quarters, ... of the old pixels: 0, 25, 75, 100.
    assert large.tolist() == [[0, 25, 75, 100]] * 2
    assert enlarge(np.zeros((2, 3, 3), np.uint8), 2, method="bilinear").shape == (4, 6, 3)


def test_pictures_are_not_shrunk(grey):
    with pytest.raises(ValueError, match="cannot enlarge a picture 0 times"):
        enlarge(grey, 0)


def test_palette_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        PALETTE[0, 0] = 1
