import math

import pytest

from m3di.report.numbers import format_bytes, format_column, format_number, format_tick


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("-", "-"),
        (24, "24"),
        (-3, "−3"),
        (12800, "12800"),
        (0.0, "0"),
        (0.5, "0.5"),
        (0.87123, "0.8712"),
        (-0.87126, "−0.8713"),
        (100.0, "100"),
        (123.456, "123.5"),
        (123456.7, "123457"),
        (0.001, "0.001"),
        (0.00012345, "1.234·10⁻⁴"),
        (1e-5, "10⁻⁵"),
        (-2.5e12, "−2.5·10¹²"),
        (math.nan, "–"),
        (-math.inf, "−inf"),
    ],
)
def test_single_values(value, text):
    assert format_number(value) == text


def test_floats_of_a_column_get_equal_decimals():
    assert format_column([0.8612, 0.912, -0.77309]) == ["0.8612", "0.9120", "−0.7731"]
    assert format_column([12.5, 100.0]) == ["12.5", "100.0"]
    assert format_column([1.0, 2.0]) == ["1", "2"]


def test_column_keeps_text_whole_numbers_and_what_is_not_finite():
    assert format_column(["-", 3, 0.25, math.nan]) == ["-", "3", "0.25", "–"]


def test_column_of_unlike_sizes_keeps_the_small_ones():
    assert format_column([1e-6, 1000.0]) == ["10⁻⁶", "1000"]
    assert format_column([0.0, 0.0]) == ["0", "0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.1, "0.1"), (-2.5, "−2.5"), (200000.0, "200000"), (1e6, "10⁶"), (2e-4, "2·10⁻⁴")],
)
def test_ticks_are_short(value, text):
    assert format_tick(value) == text


def test_fewer_digits_can_be_asked_for():
    assert format_column([0.87123, 0.8512], digits=3) == ["0.871", "0.851"]
    assert format_column([29.618, 23.45], digits=3) == ["29.6", "23.4"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_bytes_are_told_in_the_largest_unit_they_fill(count, text):
    assert format_bytes(count) == text
