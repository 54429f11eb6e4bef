import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.report import Chart, Series
from m3di.report.chart import BOTTOM, FRAMES, LEFT, RIGHT, TOP, Charts, draw, linear_ticks, log_ticks


def chart(*series, **scales):
    return Chart(series, "step", "loss", "Loss", **scales)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, (0, 2, 4, 6, 8, 10)),
        (0.03, 0.97, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (-1, 1, (-1, -0.5, 0, 0.5, 1)),
        (1.2e6, 2.9e6, (1e6, 1.5e6, 2e6, 2.5e6, 3e6)),
        (7, 7, (3, 4, 5, 6, 7, 8, 9, 10, 11)),
    ],
)
def test_linear_ticks_are_round_and_enclose(low, high, ticks):
    assert linear_ticks(float(low), float(high)) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0006, 0.5, (1e-4, 1e-3, 1e-2, 1e-1, 1)),
        (3, 40, (2, 5, 10, 20, 50)),
        (1, 10, (1, 2, 5, 10)),
        (5, 5, (5, 10)),
        (1e-9, 1e3, (1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 10, 1e3)),
    ],
)
def test_log_ticks_are_powers_or_1_2_5_steps(low, high, ticks):
    assert log_ticks(float(low), float(high)) == pytest.approx(ticks)


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e9))
def test_linear_ticks_enclose_any_range_in_few_even_steps(low, span):
    high = low + span
    if span < 1e-9 * abs(low):
        return  # the range is below what the numbers themselves resolve
    ticks = linear_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 3 <= len(ticks) <= 10
    assert all(b > a for a, b in pairwise(ticks))


@given(st.floats(1e-12, 1e12), st.floats(1, 1e12))
def test_log_ticks_enclose_any_range(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low * (1 + 1e-6)
    assert ticks[-1] >= low * ratio * (1 - 1e-6)
    assert 2 <= len(ticks) <= 11


def test_points_lie_where_the_axes_say():
    drawing = draw(chart(Series("a", [0, 5, 10], [0, 1, 4])))
    # The axes run 0 to 10 and 0 to 4 over the whole area, the vertical one upwards.
    assert drawing.curves == [[(LEFT, BOTTOM), ((LEFT + RIGHT) / 2, BOTTOM - (BOTTOM - TOP) / 4), (RIGHT, TOP)]]
    assert [tick.label for tick in drawing.y_ticks] == ["0", "1", "2", "3", "4"]
    assert [tick.label for tick in drawing.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert (drawing.x_ticks[0].position, drawing.x_ticks[-1].position) == (LEFT, RIGHT)


def test_equal_ratios_are_equal_steps_on_logarithmic_axes():
    drawing = draw(chart(Series("a", [1, 10, 100, 1000], [1e-3, 1e-2, 1e-1, 1]), x_scale="log", y_scale="log"))
    (points,) = drawing.curves
    steps = [(b[0] - a[0], a[1] - b[1]) for a, b in pairwise(points)]
    for x, y in steps:
        assert x == pytest.approx((RIGHT - LEFT) / 3, abs=0.2)
        assert y == pytest.approx((BOTTOM - TOP) / 3, abs=0.2)


def test_horizontal_axis_ends_with_the_data():
    drawing = draw(chart(Series("a", [0, 1230], [0, 1])))
    assert drawing.curves[0][-1][0] == RIGHT
    assert drawing.x_ticks[-1].label == "1200"


def test_series_of_unlike_length_share_the_axes():
    drawing = draw(chart(Series("long", [0, 100], [1, 0]), Series("short", [50], [0.5])))
    assert drawing.curves[1] == [((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)]


def test_single_point_and_flat_curve_can_be_drawn():
    (points,) = draw(chart(Series("a", [3], [0]))).curves
    assert LEFT < points[0][0] < RIGHT
    assert TOP < points[0][1] < BOTTOM
    (points,) = draw(chart(Series("a", [3, 4], [2.5, 2.5]))).curves
    assert points[0][1] == points[1][1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_numbers_that_are_not_finite_are_refused(axis, bad):
    values = {"x": [0.0, 1.0], "y": [0.0, 1.0]} | {axis: [0.0, bad]}
    with pytest.raises(ValueError, match=rf"series 'loss': {axis}\[1\] is {bad}, not finite"):
        Series("loss", **values)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1], []), ([1], [1, 2])])
def test_empty_or_uneven_series_are_refused(x, y):
    with pytest.raises(ValueError, match=f"has {len(x)} x and {len(y)} y values"):
        Series("loss", x, y)


def test_chart_without_series_is_refused():
    with pytest.raises(ValueError, match="chart 'Loss' has no series"):
        chart()


@pytest.mark.parametrize("scale", ["x_scale", "y_scale"])
def test_logarithmic_axis_refuses_what_is_not_positive(scale):
    with pytest.raises(ValueError, match="logarithmic axis"):
        chart(Series("loss", [0, 1], [0, 1]), **{scale: "log"})


def test_axes_show_what_they_are_asked_to():
    drawing = draw(chart(Series("a", [0.5], [0.25]), x_range=(0.0, 1.0), y_range=(0.0, 1.0)))
    assert drawing.curves == [[((LEFT + RIGHT) / 2, BOTTOM - (BOTTOM - TOP) / 4)]]
    assert (drawing.y_ticks[0].label, drawing.y_ticks[-1].label) == ("0", "1")


def test_a_square_chart_has_equal_scales():
    frame = FRAMES["square"]
    assert frame.right - frame.left == pytest.approx(frame.bottom - frame.top)
    (points,) = draw(chart(Series("a", [0, 1], [0, 1]), shape="square")).curves
    assert points == [(frame.left, frame.bottom), (frame.right, frame.top)]


def test_guides_take_no_colour_from_the_curves():
    looks = [Series("expected", [0, 1], [0, 1], "guide"), Series("a", [0], [1]), Series("b", [0], [1], "points")]
    assert chart(*looks).styles == ["guide", "s1", "s2"]


def test_charts_side_by_side_need_charts():
    with pytest.raises(ValueError, match="no charts"):
        Charts([])
