import pytest

from m3di.query.conditions import allowed_blocks, plane_named_in


@pytest.mark.parametrize(
    "text, plane",
    [
        ("Sagittal slice through the middle of the brain", "sagittal"),
        ("liver, AXIAL.", "axial"),
        ("axial or coronal", None),
        ("an axially cut liver", None),
        ("liver", None),
    ],
)
def test_the_plane_that_a_text_names(text, plane):
    assert plane_named_in(text) == plane


def test_conditions_on_planes_need_no_records():
    def records():
        raise AssertionError("not needed")

    allowed = allowed_blocks(["plane=coronal"], records, count=4)
    assert allowed.tolist() == [[False, True, False]] * 4
