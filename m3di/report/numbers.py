"""Numbers as a page writes them: enough digits to compare, no more, with a real minus sign."""

import math
from collections.abc import Sequence
from typing import Final

Cell = str | int | float

UNKNOWN: Final = "–"  # in place of a number that there is not

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_DIGITS = 4  # significant digits of the largest float


def format_number(value: Cell) -> str:
    """Write a value on its own: floats with at most four significant digits, text and whole numbers unchanged.

    NaN is a dash.
    """
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return UNKNOWN
    if isinstance(value, int) or not math.isfinite(value) or value == 0:
        return _signed(f"{value:g}" if isinstance(value, float) else str(value))
    return _fixed([value], digits=_DIGITS)[0] if 1e-3 <= abs(value) < 1e9 else _power(value)


def format_column(cells: Sequence[Cell], *, digits: int = _DIGITS) -> list[str]:
    """Write a table's column: floats of like size get equally many decimals, so that their points align.

    Args:
        cells: Of any kind; floats are aligned among themselves.
        digits: Significant digits of the largest float.
    """
    floats = [cell for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    sizes = [abs(value) for value in floats if value]
    if not sizes or max(sizes) >= 1e9 or max(sizes) < 1e-3 or max(sizes) >= min(sizes) * 10**digits:
        return [format_number(cell) for cell in cells]
    fixed = iter(_fixed(floats, digits=digits))
    return [next(fixed) if _is_finite_float(cell) else format_number(cell) for cell in cells]


def format_bytes(count: int) -> str:
    """Write a number of bytes in the largest unit that it fills."""
    power = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{count / 1024**power:.{1 if power else 0}f} {_UNITS[power]}"


def format_tick(value: float) -> str:
    """Write the round number of an axis's tick: plain where short, else with a power of ten."""
    return _signed(f"{value:.10g}") if value == 0 or 1e-3 <= abs(value) < 1e6 else _power(value)


def _is_finite_float(cell: Cell) -> bool:
    return isinstance(cell, float) and math.isfinite(cell)


def _fixed(values: Sequence[float], *, digits: int) -> list[str]:
    """Write values with as many decimals as the largest has digits left, less the zeros that all would end in."""
    largest = max(abs(value) for value in values)
    decimals = max(0, digits - 1 - math.floor(math.log10(largest)))
    texts = [f"{value:.{decimals}f}" for value in values]
    while decimals and all(text.endswith("0") for text in texts):
        decimals -= 1
        texts = [text[:-1].removesuffix(".") for text in texts]
    return [_signed(text) for text in texts]


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.{_DIGITS - 1}e}".split("e")
    digits = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return power if digits == "1" else _signed(f"{digits}·{power}")


def _signed(text: str) -> str:
    return text.replace("-", "−")
