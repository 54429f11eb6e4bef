import numpy as np
import pytest

from m3di.report import PALETTE, ColourKey, Matrix, Order, Page, Picture, Pictures, Section, Table

GREY = np.zeros((4, 5), np.uint8)


def test_table_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="row 2 of table 'Scores' has 1 cells for 2 columns"):
        Table(["a", "b"], [[1, 2], [3]], "Scores")


def test_table_needs_columns():
    with pytest.raises(ValueError, match="no columns"):
        Table([], [], "Scores")


def test_only_columns_of_numbers_are_numeric():
    table = Table(["a", "b", "c", "d"], [["x", 1, 0.5, 1], ["y", 2, 0.25, "-"]], "mixed")
    assert table.numeric == [False, True, True, False]
    assert Table(["a"], [], "empty").numeric == [False]


@pytest.mark.parametrize("counts", [[[1, 2]], [[1], [2]], [[1, 2], [3]], [[1, 2, 3]] * 3])
def test_confusion_must_be_square(counts):
    with pytest.raises(ValueError, match="is not square"):
        Matrix(["a", "b"], counts, "confusion")


def test_a_page_needs_a_script_only_for_tables_to_order():
    fixed, ordered = Table(["a"], [["x"]], "fixed"), Table(["a"], [["x"]], "ordered", Order(0))
    assert not Page("T", "L", [Section("S", [fixed])]).is_sortable
    assert Page("T", "L", [Section("S", [fixed]), Section("S", [fixed, ordered])]).is_sortable


@pytest.mark.parametrize("shape", [(0, 3), (4,), (4, 5, 4), (4, 5, 1), (1, 4, 5, 3)])
def test_picture_must_be_grey_or_rgb(shape):
    with pytest.raises(ValueError, match=r"not \[y, x\] or \[y, x, 3\]"):
        Picture(np.zeros(shape, np.uint8), "slice", "a slice")


def test_picture_needs_an_alternative_text():
    with pytest.raises(ValueError, match="picture 'slice' has no alternative text"):
        Picture(GREY, "slice", " ")


@pytest.mark.parametrize(("items", "columns"), [([], 2), ([Picture(GREY, "slice", "a slice")], 0)])
def test_pictures_need_pictures_and_columns(items, columns):
    with pytest.raises(ValueError, match="cannot be shown"):
        Pictures(items, columns)


def test_colour_key_takes_a_palette_row():
    # Okabe and Ito's orange and bluish green, as published
    assert ColourKey("grey matter", PALETTE[1]).hex == "#e69f00"
    assert ColourKey("CSF", PALETTE[3]).hex == "#009e73"
