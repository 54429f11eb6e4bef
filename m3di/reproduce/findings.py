"""What a table says: rows for programs, blocks of text in the paper's shape for people, notes, and what it cost."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from m3di.evaluation.results import jsonable
from m3di.reproduce.cells import Grid
from m3di.reproduce.datasets import DATASETS
from m3di.reproduce.programme import MAIN, SCRATCH, Table
from m3di.reproduce.published import Published, published_table
from m3di.reproduce.records import Cost, Record, total_cost
from m3di.reproduce.rows import Row, rows_against, rows_of
from m3di.reproduce.scores import Gain, Measure, Summary

SCHEMA: Final = "m3di.table/1"
PRETRAINED: Final = "+ pretraining"
NONE: Final = "-"
HOW: Final = (
    "Means over test cases, each averaged over the seeds, in percent, with 95% intervals from resampled subjects. "
    "Differences are of the same test cases and seeds, pretrained minus scratch, in points; p is of a sign-flip test."
)


@dataclass(frozen=True)
class Block:
    """A table of text.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: Cells, as many a row as there are headings.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Findings:
    """What a table or figure says.

    Attributes:
        name: The table's name.
        title: What it shows.
        scale: Of the programme.
        rows: One a comparison.
        against_main: In an ablation, the gains of the other ways to pretrain over the main recipe.
        blocks: For people, in the paper's shape first.
        notes: What has to be said with it: how numbers were made, leaks, what is missing.
        cost: Of the cells that it is made of.
        num_cells: How many of its cells are finished, and how many there are.
    """

    name: str
    title: str
    scale: str
    rows: tuple[Row, ...]
    against_main: tuple[Row, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    cost: Cost
    num_cells: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON."""
        published = published_table(self.name)
        return jsonable(
            {
                "schema": SCHEMA,
                "table": self.name,
                "title": self.title,
                "scale": self.scale,
                "units": "scores from 0 to 1; gain_*: points (hundredths), 95% intervals over test subjects",
                "rows": [row.to_dict() for row in self.rows],
                "against_main": [row.gain_dict(MAIN) for row in self.against_main],
                "cells": {"finished": self.num_cells[0], "wanted": self.num_cells[1]},
                "cost": asdict(self.cost),
                "notes": list(self.notes),
                "published": None if published is None else asdict(published),
            }
        )


def findings_of(grid: Grid, table: Table, records: Mapping[str, Record]) -> Findings:
    """Put a table together from the finished cells; the same cells give the same findings.

    Args:
        grid: The programme's grid.
        table: The table.
        records: Finished cells by name.
    """
    rows = rows_of(grid, table, records)
    against_main = rows_against(MAIN, grid, table, records)
    cells = grid.cells([table])
    finished = [records[name] for name in cells if name in records]
    published = published_table(table.name)
    blocks = [_comparison_block(rows), _class_block(rows)]
    if table.shape in ("methods", "arms"):
        blocks.insert(0, _paper_block(table, rows, published))
    if table.shape == "arms":
        blocks += [_against_block(against_main), _retrieval_block(rows)]
    if published is not None:
        blocks.append(_published_block(published))
    cost = total_cost(finished)
    blocks.append(_cost_block(finished))
    notes = (HOW, *_leaks(rows), *_missing(grid, table, records))
    return Findings(
        table.name, table.title, grid.programme.name, tuple(rows), tuple(against_main),
        tuple(block for block in blocks if block.rows), notes, cost, (len(finished), len(cells)),
    )  # fmt: skip


def percent(value: float) -> str:
    """A score from 0 to 1 as the paper prints it."""
    return NONE if math.isnan(value) else f"{100 * value:.1f}"


def _comparison_block(rows: Sequence[Row]) -> Block:
    columns = ("Dataset", "Network", "Labels", "Pretraining", "Metric", "Seeds", "Test cases", "Scratch",
               "Pretrained", "Difference", "p")  # fmt: skip
    lines = []
    for row in rows:
        for name, measure in {row.metric.capitalize(): row.main, **row.others}.items():
            lines.append((*_compared(row), name, str(len(row.seeds)), str(row.test_cases), *_measured(measure)))
    return Block("Comparisons", columns, tuple(lines))


def _against_block(rows: Sequence[Row]) -> Block:
    """Other ways to pretrain against the main recipe."""
    columns = ("Dataset", "Network", "Labels", "Pretraining", "Metric", "Seeds", "Test cases", "Main recipe",
               "This one", "Difference", "p")  # fmt: skip
    lines = [
        (*_compared(row), row.metric.capitalize(), str(len(row.seeds)), str(row.test_cases), *_measured(row.main))
        for row in rows
    ]
    return Block("Against the main recipe", columns, tuple(lines))


def _class_block(rows: Sequence[Row]) -> Block:
    """Every structure or class by itself, with the number of test cases that show it."""
    columns = ("Dataset", "Network", "Labels", "Pretraining", "Class", "Metric", "Test cases", "Scratch",
               "Pretrained", "Difference", "p")  # fmt: skip
    lines = [
        (*_compared(row), name, row.class_metric.capitalize(), str(measure.num_cases), *_measured(measure))
        for row in rows
        for name, measure in row.classes.items()
    ]
    return Block("By class", columns, tuple(lines))


def _compared(row: Row) -> tuple[str, ...]:
    return row.target.title, _method(row), f"{100 * row.comparison.label_fraction:g}%", row.arm_title or NONE


def _measured(measure: Measure) -> tuple[str, ...]:
    sides = _interval(measure.scratch), _interval(measure.pretrained)
    return *sides, _difference(measure.gain), _p_value(measure.gain)


def _paper_block(table: Table, rows: Sequence[Row], published: Published | None) -> Block:
    """Methods down, structures across: a line from scratch, one for each pretraining, and its gain below."""
    targets = list(dict.fromkeys(row.target.name for row in rows))
    of = {name: next(row for row in rows if row.target.name == name) for name in targets}
    headings = {name: _headings(of[name]) for name in targets}
    columns = [f"{of[name].target.title} {one}" for name in targets for one in headings[name]]
    keys = list(dict.fromkeys((_method(row), row.comparison.label_fraction) for row in rows))
    lines: list[tuple[str, ...]] = []
    for method, fraction in keys:
        own = [row for row in rows if (_method(row), row.comparison.label_fraction) == (method, fraction)]
        lines += _method_lines(table, own, headings, published)
    beside = " (in brackets: the paper)" if published and any(of[name].target.published for name in targets) else ""
    return Block(f"{table.title}, percent{beside}", ("Method", "Labels", *columns), tuple(lines))


def _method_lines(
    table: Table, own: Sequence[Row], headings: Mapping[str, Sequence[str]], published: Published | None
) -> list[tuple[str, ...]]:  # fmt: skip
    """The lines of one method at one label fraction."""
    labels = f"{100 * own[0].comparison.label_fraction:g}%"
    lines = []
    if any(row.main.scratch for row in own):
        first = {row.target.name: row for row in reversed(own)}
        lines.append((_method(own[0]), labels, *_values(first, headings, published, pretrained=False)))
    for arm in dict.fromkeys(row.arm for row in own if row.arm != SCRATCH):
        of_arm = {row.target.name: row for row in own if row.arm == arm}
        title = PRETRAINED if table.shape == "methods" else next(iter(of_arm.values())).arm_title
        lines.append((title, labels, *_values(of_arm, headings, published, pretrained=True)))
        lines.append(("", "", *_gains(of_arm, headings)))
    return lines


def _values(
    rows: Mapping[str, Row], headings: Mapping[str, Sequence[str]], published: Published | None, *, pretrained: bool
) -> list[str]:  # fmt: skip
    texts = []
    for target, names in headings.items():
        for name in names:
            row = rows.get(target)
            summary = None if row is None else _side(_by_heading(row, name), pretrained=pretrained)
            text = NONE if summary is None else percent(summary.interval.mean)
            known = None if row is None else _published_value(published, row, name, pretrained=pretrained)
            texts.append(text if known is None else f"{text} ({known:.1f})")
    return texts


def _published_value(published: Published | None, row: Row, heading: str, *, pretrained: bool) -> float | None:
    """The paper's number for the same thing: all labels, the same network and dataset."""
    if published is None or not row.target.published or row.comparison.label_fraction < 1 or row.comparison.probe:
        return None
    by_arm = published.value(row.arm_title, row.target.published, heading, pretrained=False) if pretrained else None
    return by_arm or published.value(row.network.title, row.target.published, heading, pretrained=pretrained)


def _gains(rows: Mapping[str, Row], headings: Mapping[str, Sequence[str]]) -> list[str]:
    """The gain of each target, below its average."""
    texts = []
    for target, names in headings.items():
        measures = {name: _by_heading(rows[target], name) if target in rows else Measure() for name in names}
        shown = names if "AUC" in names else names[-1:]
        texts += [_difference(measures[name].gain) if name in shown else "" for name in names]
    return texts


def _headings(row: Row) -> list[str]:
    if row.metric == "accuracy":
        return ["Accuracy", "AUC"]
    return [*row.classes, "Avg."] if len(row.classes) > 1 else list(row.classes)


def _by_heading(row: Row, heading: str) -> Measure:
    measures = {**row.classes, **row.others, "Avg.": row.main, "Accuracy": row.main}
    return measures.get(heading, Measure())


def _side(measure: Measure, *, pretrained: bool) -> Summary | None:
    return measure.pretrained if pretrained else measure.scratch


def _retrieval_block(rows: Sequence[Row]) -> Block:
    columns = ("Pretraining", "Network", "Image recall@10", "Text recall@10", "By chance", "Right plane",
               "Place off, share of the cube")  # fmt: skip
    seen = {(row.arm, row.network.name, row.target.store): row for row in reversed(rows) if row.retrieval}
    lines = [
        (
            row.arm_title, row.network.title,
            *(_known(row.retrieval, name) for name in ("image_recall_at_10", "text_recall_at_10", "chance_at_10",
                                                        "plane_accuracy")),
            f"{row.retrieval['position_error']:.3f}" if "position_error" in row.retrieval else NONE,
        )
        for row in reversed(seen.values())
    ]  # fmt: skip
    return Block("Retrieval among held-out slices, percent", columns, tuple(lines))


def _known(values: Mapping[str, float], name: str) -> str:
    return percent(values[name]) if name in values else NONE


def _published_block(published: Published) -> Block:
    columns = [f"{dataset} {heading}" for dataset, headings in published.columns.items() for heading in headings]
    lines = tuple(
        (
            f"{line.method} + Med3DInsight" if line.pretrained else line.method,
            *(f"{value:.1f}" for dataset in published.columns for value in line.values[dataset]),
        )
        for line in published.lines
    )
    return Block("The paper's own numbers, on its own data", ("Method", *columns), lines)


def _cost_block(records: Sequence[Record]) -> Block:
    columns = ("Cells", "Number", "Encoder passes", "Teacher passes", "Wall time, h", "CPU time, h",
               "Peak memory, GiB", "Disk, GiB")  # fmt: skip
    kinds = list(dict.fromkeys(record.kind for record in records))
    groups = [(kind, [record for record in records if record.kind == kind]) for kind in kinds]
    lines = []
    for name, group in [*groups, ("all", list(records))] if records else []:
        cost = total_cost(group)
        lines.append((
            name, str(len(group)), str(cost.encoder_passes), str(cost.teacher_passes), f"{cost.wall_s / 3600:.2f}",
            f"{cost.cpu_s / 3600:.2f}", f"{cost.peak_memory_mib / 1024:.2f}", f"{cost.disk_bytes / 2**30:.2f}",
        ))  # fmt: skip
    return Block("Cost", columns, tuple(lines))


def _leaks(rows: Sequence[Row]) -> list[str]:
    """What was looked for between training and test, each finding once, with how many runs it is of."""
    used = {record.name: (row.target.title, record) for row in rows for record in row.used}
    lines = Counter((title, one.result["leaks"]) for title, one in used.values() if "leaks" in one.result)
    return [f"Leaks, {title} ({count} runs): {line}" for (title, line), count in lines.items()]


def _missing(grid: Grid, table: Table, records: Mapping[str, Record]) -> list[str]:
    """Cells that are not finished, and datasets of which none is."""
    cells = grid.cells([table])
    unfinished = [name for name in cells if name not in records]
    notes = (
        [f"Not finished: {len(unfinished)} of {len(cells)} cells, {unfinished[0]} the first."] if unfinished else []
    )
    wanted = dict.fromkeys(grid.programme.targets[one.target].dataset for one in table.comparisons)
    done = {name for cell in cells.values() if cell.name in records for name in cell.datasets}
    return [*notes, *(f"Without {DATASETS[name].advice}." for name in wanted if name not in done)]


def _method(row: Row) -> str:
    return f"{row.network.title}, linear probe" if row.comparison.probe else row.network.title


def _interval(summary: Summary | None) -> str:
    if summary is None:
        return NONE
    mean, low, high = summary.interval
    return percent(mean) if math.isnan(low) else f"{percent(mean)} [{percent(low)}, {percent(high)}]"


def _difference(gain: Gain | None) -> str:
    if gain is None:
        return NONE
    ends = "" if math.isnan(gain.low) else f" [{gain.low:+.1f}, {gain.high:+.1f}]"
    return f"{gain.mean:+.1f}{ends}"


def _p_value(gain: Gain | None) -> str:
    return NONE if gain is None or math.isnan(gain.p_value) else f"{gain.p_value:.2g}"
