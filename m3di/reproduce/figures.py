"""Figures in the paper's style: Dice against labels (figure 3), predictions beside labels (figure 2)."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from m3di.report import PALETTE, Chart, Series, enlarge, overlay
from m3di.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing, draw
from m3di.reproduce.cells import Grid
from m3di.reproduce.pictures import Pixels, decode_png, encode_png
from m3di.reproduce.programme import SCRATCH, Table
from m3di.reproduce.records import Record
from m3di.reproduce.rows import Row
from m3di.reproduce.scores import Summary

NAMES: Final = ("without pretraining", "with pretraining")
COLOURS: Final = ("#0072b2", "#d55e00")  # Okabe and Ito's blue and vermilion
GREY: Final = "#d9d9d9"
SCALE: Final = 2  # pixels of a PNG for each unit of the drawing
WHISKER: Final = 4.0
ASIDE: Final = (-3.0, 3.0)  # of the two curves' points, so that their intervals can be told apart
METRICS: Final = {"dice": "Dice", "accuracy": "accuracy"}
EDGE: Final = 220  # pixels of a picture's longer side, at least
MARGIN: Final = 6
TITLE: Final = 34  # height of the headings


@dataclass(frozen=True)
class Panel:
    """One dataset's part of figure 3.

    Attributes:
        title: The dataset.
        chart: Both means, then the ends of both intervals.
        drawing: The chart in drawing units.
    """

    title: str
    chart: Chart
    drawing: Drawing

    def points(self, side: int) -> list[tuple[float, float, float, float]]:
        """(x, mean, low end, high end) of each point of a curve."""
        means, lows, highs = self.drawing.curves[side], *self.drawing.curves[2 + 2 * side : 4 + 2 * side]
        return [
            (round(x + ASIDE[side], 1), y, low, high)
            for (x, y), (_, low), (_, high) in zip(means, lows, highs, strict=True)
        ]


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """One panel a dataset whose rows have both ways to begin."""
    both = [row for row in rows if row.main.scratch is not None and row.main.pretrained is not None]
    targets = dict.fromkeys(row.target.name for row in both)
    return [_panel([row for row in both if row.target.name == name]) for name in targets]


def curves_svg(panels: Sequence[Panel]) -> bytes:
    """Figure 3 as SVG, the panels below each other."""
    size = f'width="{WIDTH:g}" height="{HEIGHT * len(panels):g}" viewBox="0 0 {WIDTH:g} {HEIGHT * len(panels):g}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        *(line for number, panel in enumerate(panels) for line in _panel_svg(panel, HEIGHT * number)),
        "</svg>",
    ]
    return ("\n".join(parts) + "\n").encode()


def curves_png(panels: Sequence[Panel]) -> bytes:
    """Figure 3 as PNG."""
    sheet = Image.new("RGB", (int(WIDTH * SCALE), int(HEIGHT * len(panels) * SCALE)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, panel in enumerate(panels):
        _panel_png(pen, panel, HEIGHT * number)
    return _png(np.asarray(sheet))


def pictures_png(grid: Grid, table: Table, records: Mapping[str, Record]) -> bytes | None:
    """Figure 2: a line a target: the image, the label, and what each method predicts; None without pictures."""
    lines = []
    for name in dict.fromkeys(one.target for one in grid.comparisons(table)):
        seeds = {seed for one in grid.comparisons(table) if one.target == name for seed in one.seeds}
        cells = [grid.pictures(table, name, seed) for seed in sorted(seeds)]
        record = next((records[cell.name] for cell in cells if cell.name in records), None)
        if record is not None:
            lines.append(_line(grid, table, name, record))
    if not lines:
        return None
    width = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    return _png(np.concatenate(padded))


def _panel(rows: Sequence[Row]) -> Panel:
    ordered = sorted(rows, key=lambda row: row.comparison.label_fraction)
    x = [100 * row.comparison.label_fraction for row in ordered]
    sides = [[row.main.scratch for row in ordered], [row.main.pretrained for row in ordered]]
    means = [Series(name, x, [_ends(one)[0] for one in side]) for name, side in zip(NAMES, sides, strict=True)]
    ends = [Series(name, x, [_ends(one)[end] for one in side]) for name, side in zip(NAMES, sides, strict=True)
            for end in (1, 2)]  # fmt: skip
    title = f"{rows[0].target.title}, {rows[0].network.title}"
    chart = Chart([*means, *ends], "Training subjects with labels, %", f"Average {METRICS[rows[0].metric]}, %", title)
    return Panel(title, chart, draw(chart))


def _ends(summary: Summary | None) -> tuple[float, float, float]:
    """Mean, low and high end in percent; without an interval all are the mean."""
    assert summary is not None
    mean, low, high = (100 * value for value in summary.interval)
    return (mean, mean, mean) if math.isnan(low) else (mean, low, high)


def _panel_svg(panel: Panel, top: float) -> list[str]:
    lines = [
        f'<g transform="translate(0 {top:g})">',
        f'<text x="{LEFT:g}" y="16" font-weight="bold">{escape(panel.title)}</text>',
    ]
    for tick in panel.drawing.y_ticks:
        lines.append(f'<path d="M{LEFT:g},{tick.position}H{RIGHT:g}" stroke="{GREY}"/>')
        lines.append(f'<text x="{LEFT - 8:g}" y="{tick.position + 4:g}" text-anchor="end">{tick.label}</text>')
    for tick in panel.drawing.x_ticks:
        lines.append(f'<path d="M{tick.position},{BOTTOM:g}v5" stroke="black"/>')
        lines.append(f'<text x="{tick.position}" y="{BOTTOM + 20:g}" text-anchor="middle">{tick.label}</text>')
    lines.append(f'<path d="M{LEFT:g},{BOTTOM:g}H{RIGHT:g}" stroke="black"/>')
    middle = (LEFT + RIGHT) / 2
    lines.append(
        f'<text x="{middle:g}" y="{HEIGHT - 12:g}" text-anchor="middle">{escape(panel.chart.x_label)}</text>'
    )
    turned = f'transform="rotate(-90 16 {(TOP + BOTTOM) / 2:g})"'
    label = escape(panel.chart.y_label)
    lines.append(f'<text x="16" y="{(TOP + BOTTOM) / 2:g}" text-anchor="middle" {turned}>{label}</text>')
    for side in (0, 1):
        lines += _curve_svg(panel, side)
    return [*lines, "</g>"]


def _curve_svg(panel: Panel, side: int) -> list[str]:
    colour, points = COLOURS[side], panel.points(side)
    places = " ".join(f"{x},{y}" for x, y, _, _ in points)
    lines = [f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for x, y, low, high in points:
        ends = f"M{x - WHISKER:g},{low}h{2 * WHISKER:g}M{x - WHISKER:g},{high}h{2 * WHISKER:g}M{x},{low}V{high}"
        lines.append(f'<path d="{ends}" fill="none" stroke="{colour}"/>')
        lines.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>')
    key_x, key_y = RIGHT - 170, BOTTOM - 38 + 18 * side
    lines.append(f'<path d="M{key_x:g},{key_y:g}h24" stroke="{colour}" stroke-width="2"/>')
    lines.append(f'<text x="{key_x + 32:g}" y="{key_y + 4:g}">{NAMES[side]}</text>')
    return lines


def _panel_png(pen: ImageDraw.ImageDraw, panel: Panel, top: float) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        return x * SCALE, (y + top) * SCALE

    font = _font(13 * SCALE)
    pen.text(at(LEFT, 16.0), panel.title, "black", font, anchor="ls")
    for tick in panel.drawing.y_ticks:
        pen.line([at(LEFT, tick.position), at(RIGHT, tick.position)], GREY, SCALE)
        pen.text(at(LEFT - 8, tick.position), tick.label, "black", font, anchor="rm")
    for tick in panel.drawing.x_ticks:
        pen.line([at(tick.position, BOTTOM), at(tick.position, BOTTOM + 5)], "black", SCALE)
        pen.text(at(tick.position, BOTTOM + 8), tick.label, "black", font, anchor="ma")
    pen.line([at(LEFT, BOTTOM), at(RIGHT, BOTTOM)], "black", SCALE)
    pen.text(at((LEFT + RIGHT) / 2, HEIGHT - 12), panel.chart.x_label, "black", font, anchor="ms")
    pen.text(at(RIGHT, 16.0), panel.chart.y_label, "black", font, anchor="rs")
    for side, colour in enumerate(COLOURS):
        points = panel.points(side)
        pen.line([at(x, y) for x, y, _, _ in points], colour, 2 * SCALE)
        for x, y, low, high in points:
            pen.line([at(x, low), at(x, high)], colour, SCALE)
            for end in (low, high):
                pen.line([at(x - WHISKER, end), at(x + WHISKER, end)], colour, SCALE)
            pen.circle(at(x, y), 4 * SCALE, colour)
        key_x, key_y = RIGHT - 170, BOTTOM - 38 + 18 * side
        pen.line([at(key_x, key_y), at(key_x + 24, key_y)], colour, 2 * SCALE)
        pen.text(at(key_x + 32, key_y), NAMES[side], "black", font, anchor="lm")


def _line(grid: Grid, table: Table, target: str, record: Record) -> Pixels:
    """A target's pictures beside each other, each under its heading."""
    result = record.result
    image = decode_png(result["image"])
    shown = [(grid.programme.targets[target].title, np.repeat(image[..., None], 3, axis=2))]
    shown.append(("Label", overlay(image, decode_png(result["label"]), PALETTE)))
    for comparison in grid.comparisons(table):
        if comparison.target != target:
            continue
        title = grid.programme.networks[comparison.network].title
        for arm in grid.arms(comparison):
            name = grid.finetuning(comparison, arm, record_seed(record)).name
            if name in result["masks"]:
                dice = result["dice"][name]
                heading = title if arm == SCRATCH else f"{title} + pretraining"
                score = "" if dice is None else f"\n{100 * dice:.1f}"
                shown.append((heading + score, overlay(image, decode_png(result["masks"][name]), PALETTE)))
    factor = max(1, -(-EDGE // max(image.shape)))
    return np.concatenate([_headed(title, enlarge(picture, factor)) for title, picture in shown], axis=1)


def record_seed(record: Record) -> int:
    """The seed of a cell of pictures, which its name ends with."""
    return int(record.name.rpartition("seed")[2])


def _headed(title: str, picture: Pixels) -> Pixels:
    """A picture under a heading, with a margin."""
    height, width = picture.shape[:2]
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + TITLE + 2 * MARGIN), "white")
    ImageDraw.Draw(sheet).multiline_text((MARGIN, MARGIN), title, "black", _font(13))
    sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (MARGIN, MARGIN + TITLE))
    return np.asarray(sheet)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _png(picture: Pixels) -> bytes:
    return base64.b64decode(encode_png(picture))
