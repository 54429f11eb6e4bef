"""Parts that the pages of scores share: means with intervals, what is known of leaks, what was refused."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from m3di.evaluation.results import Refusal
from m3di.evaluation.statistics import Interval
from m3di.evaluation.summaries import ALL, Spread
from m3di.evaluation.titles import title_of
from m3di.report.numbers import Cell, format_column
from m3di.report.page import Block, Notice, Paragraph, Section, Table

DIGITS: Final = 3  # significant ones of a mean
MAX_NAMED: Final = 50  # leaks that a page names; all are in `evaluation.json`
INTERVAL: Final = "mean [95% interval over subjects]"
EMPTY: Final = "–: neither mask has the structure, or the score is not defined; it has no part in means."


def estimate(interval: Interval, spread: Spread | None = None, *, between: str = " ") -> str:
    """A mean and its interval with equal decimals, and how far seeds lie apart; one subject has no interval.

    Args:
        interval: Mean and ends.
        spread: Of seeds.
        between: What stands between the mean and the rest: in tables the end of a line.
    """
    known = [value for value in interval if not math.isnan(value)]
    mean, *ends = format_column(known or [math.nan], digits=DIGITS)
    parts = [f"[{ends[0]}, {ends[1]}]"] if len(ends) == 2 else []
    if spread is not None:
        parts.append(f"± {format_column([spread.spread], digits=2)[0]}")
    return between.join([mean, *parts])


def means_table(
    found: Mapping[str, Mapping[str, Interval]], metrics: Sequence[str], caption: str, *, tolerance_mm: float,
    seeds: Mapping[str, Mapping[str, Spread]] | None = None,
) -> Table:  # fmt: skip
    """Means by class and metric.

    Args:
        found: By class name and metric; `all` is the mean over a case's classes.
        metrics: Those that are shown.
        caption: What the means are of.
        tolerance_mm: Of surface Dice.
        seeds: How far seeds lie apart, by class name and metric.
    """
    spreads = seeds or {}
    rows = [
        ("mean of the classes" if name == ALL else name,
         *(estimate(own[metric], spreads.get(name, {}).get(metric), between="\n") for metric in metrics))
        for name, own in found.items()
    ]  # fmt: skip
    return Table(("class", *(title_of(metric, tolerance_mm) for metric in metrics)), rows, caption)


def leak_notice(line: str, *, doubtful: bool) -> Notice:
    """What is known of leaks, without which no score is shown.

    Args:
        line: What was looked for and found.
        doubtful: Whether something was found, or nobody looked.
    """
    return Notice("Leak check:", line, "doubt" if doubtful else "sound")


def refusal_sections(refused: Sequence[Refusal], warnings: Sequence[str] = ()) -> list[Section]:
    """Sections of what was refused and of leaks, each only where there is something."""
    sections = []
    if warnings:
        rows = [(number, warning) for number, warning in enumerate(warnings[:MAX_NAMED], start=1)]
        blocks: list[Block] = [Table(("", "what is shared"), rows, f"{len(warnings)} leaks, the strongest first")]
        if len(warnings) > MAX_NAMED:
            blocks.append(Paragraph(f"{len(warnings) - MAX_NAMED} more are named in evaluation.json."))
        sections.append(Section("Leaks", blocks))
    if refused:
        cells: list[tuple[Cell, ...]] = [(one.case, one.code, one.message) for one in refused]
        table = Table(("case", "code", "why"), cells, "Cases that were not scored")
        sections.append(Section("Refused cases", [table]))
    return sections
