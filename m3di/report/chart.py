"""Line charts: from series of numbers to places in a drawing, with round ticks on linear or logarithmic axes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal

from m3di.report.numbers import format_tick

Scale = Literal["linear", "log"]
Look = Literal["line", "points", "guide"]
Range = tuple[float, float]

WIDTH, HEIGHT = 760.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 740.0, 38.0, 288.0  # edges of the area between the axes
NUM_COLOURS: Final = 6  # of curves; more of them begin again


@dataclass(frozen=True)
class Frame:
    """Size of a drawing, and the edges of the area between its axes."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float


FRAMES: Final = {
    "wide": Frame(WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM),
    "square": Frame(400.0, 428.0, 50.0, 388.0, 38.0, 376.0),  # for two shares from 0 to 1
}


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: Its name in the legend.
        x: Places along the horizontal axis.
        y: Values, as many as `x`.
        look: A `line`, a line with its `points` marked, or a thin `guide` to compare the others with.

    Raises:
        ValueError: When it is empty, uneven, or holds a number that is not finite: a gap would hide it.
    """

    name: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    look: Look = "line"

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not self.x:
            raise ValueError(f"series {self.name!r} has {len(self.x)} x and {len(self.y)} y values")
        for axis, values in (("x", self.x), ("y", self.y)):
            bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
            if bad:
                raise ValueError(f"series {self.name!r}: {axis}[{bad[0]}] is {values[bad[0]]}, not finite")


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes.

    Attributes:
        series: At least one.
        x_label: What runs to the right, with its unit.
        y_label: What runs up, with its unit.
        title: What the chart shows.
        x_scale: `linear` or `log`.
        y_scale: `linear` or `log`.
        x_range: What the horizontal axis shows at least; None for what the data need.
        y_range: The same of the vertical axis.
        shape: `wide`, or `square` for one beside another.

    Raises:
        ValueError: Without series, or for values that are not positive on a logarithmic axis.
    """

    template: ClassVar[str] = "chart.html"
    series: Sequence[Series]
    x_label: str
    y_label: str
    title: str
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    x_range: Range | None = None
    y_range: Range | None = None
    shape: Literal["wide", "square"] = "wide"

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"chart {self.title!r} has no series")
        for axis, scale in (("x", self.x_scale), ("y", self.y_scale)):
            for series in self.series:
                if scale == "log" and min(getattr(series, axis)) <= 0:
                    raise ValueError(
                        f"series {series.name!r} has {axis} = {min(getattr(series, axis))}, "
                        "which a logarithmic axis cannot show"
                    )

    @property
    def frame(self) -> Frame:
        """Size of the drawing and its edges."""
        return FRAMES[self.shape]

    @property
    def styles(self) -> list[str]:
        """The name of each series' colour and dashes; guides have one of their own."""
        numbers = itertools.count()
        return ["guide" if one.look == "guide" else f"s{next(numbers) % NUM_COLOURS + 1}" for one in self.series]


@dataclass(frozen=True)
class Charts:
    """Charts side by side, below each other on a narrow screen.

    Attributes:
        items: At least one chart.
    """

    template: ClassVar[str] = "charts.html"
    items: Sequence[Chart]

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError("there are no charts to set side by side")


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it lies in the drawing, and what it says."""

    position: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """A chart in drawing units.

    Attributes:
        curves: For each series the places of its points.
        x_ticks: Marks along the horizontal axis.
        y_ticks: Marks along the vertical axis.
    """

    curves: Sequence[Sequence[tuple[float, float]]]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


def draw(chart: Chart) -> Drawing:
    """Lay a chart out: the vertical axis ends at ticks, the horizontal one with the data."""
    points = [[(float(x), float(y)) for x, y in zip(s.x, s.y, strict=True)] for s in chart.series]
    frame = chart.frame
    across = [*(chart.x_range or ()), *(x for curve in points for x, _ in curve)]
    upward = [*(chart.y_range or ()), *(y for curve in points for _, y in curve)]
    right = _axis(across, chart.x_scale, (frame.left, frame.right)).trimmed()
    up = _axis(upward, chart.y_scale, (frame.bottom, frame.top))
    curves = [[(round(right.place(x), 1), round(up.place(y), 1)) for x, y in curve] for curve in points]
    return Drawing(curves, right.marks(), up.marks())


@dataclass(frozen=True)
class _Axis:
    """The map from values to one direction of the drawing."""

    values: tuple[float, float]  # smallest and largest of the data
    ticks: tuple[float, ...]  # enclose the values, or lie within them
    scale: Scale
    ends: tuple[float, float]  # of the axis in the drawing

    def place(self, value: float) -> float:
        shown = (min(self.values[0], self.ticks[0]), max(self.values[1], self.ticks[-1]))
        low, high, at = (math.log10(v) if self.scale == "log" else v for v in (*shown, value))
        return self.ends[0] + (at - low) / (high - low) * (self.ends[1] - self.ends[0])

    def trimmed(self) -> "_Axis":
        """Return the axis without ticks beyond the data, as long as two remain."""
        low, high = self.values
        within = tuple(tick for tick in self.ticks if low <= tick <= high)
        return replace(self, ticks=within) if len(within) > 1 else self

    def marks(self) -> list[Tick]:
        return [Tick(round(self.place(value), 1), format_tick(value)) for value in self.ticks]


def _axis(values: Sequence[float], scale: Scale, ends: tuple[float, float]) -> _Axis:
    low, high = min(values), max(values)
    ticks = log_ticks(low, high) if scale == "log" else linear_ticks(low, high)
    return _Axis((low, high), ticks, scale, ends)


def linear_ticks(low: float, high: float, *, num_steps: int = 5) -> tuple[float, ...]:
    """Return multiples of 1, 2 or 5 times a power of ten that enclose `low` to `high` in about `num_steps`."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / num_steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda size: abs(math.log(size / rough)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return tuple(round(k * step, decimals) + 0.0 for k in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return powers of ten that enclose `low` to `high`, or 1-2-5 steps where those would be few."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first >= 3:
        stride = -(-(last - first) // 6)
        return tuple(10.0**k for k in range(first, last + stride, stride))
    steps = [m * 10.0**k for k in range(first, max(last, first + 1) + 1) for m in (1, 2, 5)]
    start = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
    stop = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return tuple(steps[start : max(stop, start + 1) + 1])
