"""Rows of a table: every comparison of a way to begin with the first one, from the cells that are finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from m3di.reproduce.cells import Grid
from m3di.reproduce.programme import SCRATCH, Comparison, Network, Table, Target
from m3di.reproduce.records import Record
from m3di.reproduce.scores import (
    Measure,
    Runs,
    auc,
    balanced_accuracy,
    compare,
    compare_statistic,
    dice_of,
    is_right,
    mean_dice,
    recall_of,
    runs_of,
    subjects_of,
)

DIGITS: Final = 6  # of a score or gain in files


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        comparison: What was compared.
        target: Its target.
        network: Its network.
        arm: Name of the way to begin that is compared with scratch; `scratch` where there is nothing else.
        arm_title: Its name for people.
        seeds: Those that all numbers are from.
        test_cases: Test cases.
        main: Dice averaged over structures, or accuracy.
        others: Further metrics by heading: of a classification, its AUC and balanced accuracy.
        classes: By heading: Dice of each structure, or recall of each class.
        retrieval: Of the pretraining on held-out slices, averaged over seeds; empty from scratch.
        used: The records that the numbers are from.
    """

    comparison: Comparison
    target: Target
    network: Network
    arm: str
    arm_title: str
    seeds: tuple[int, ...]
    test_cases: int
    main: Measure
    others: Mapping[str, Measure] = field(default_factory=dict)
    classes: Mapping[str, Measure] = field(default_factory=dict)
    retrieval: Mapping[str, float] = field(default_factory=dict)
    used: tuple[Record, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return "dice" if self.target.kind == "segmentation" else "accuracy"

    @property
    def class_metric(self) -> str:
        """Name of the metric of each class."""
        return "dice" if self.target.kind == "segmentation" else "recall"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: scores from 0 to 1, gains in points."""
        keys = {heading: heading.lower().replace(" ", "_") for heading in self.others}
        others = [_measure(key, self.others[heading], gain=f"gain_{key}_") for heading, key in keys.items()]
        return {
            "dataset": self.target.name,
            "network": self.network.name + (" linear probe" if self.comparison.probe else ""),
            "label_fraction": self.comparison.label_fraction,
            "pretraining": self.arm,
            "seeds": list(self.seeds),
            **_measure(self.metric, self.main, gain="gain_"),
            "p_value": _p_value(self.main),
            "test_cases": self.test_cases,
            **{name: value for other in others for name, value in other.items()},
            "classes": {name: self._class(measure) for name, measure in self.classes.items()},
            **({"retrieval": {k: _rounded(v) for k, v in self.retrieval.items()}} if self.retrieval else {}),
        }

    def gain_dict(self, base: str) -> dict[str, Any]:
        """The gain over another way to begin, as JSON-ready values."""
        whole = self.to_dict()
        kept = ("dataset", "network", "label_fraction", "pretraining", "seeds", "test_cases", "p_value")
        gains = (f"gain_{self.metric}", "gain_low", "gain_high")
        return {"against": base, **{name: whole[name] for name in (*kept, *gains)}}

    def _class(self, measure: Measure) -> dict[str, float | None]:
        found = _measure(self.class_metric, measure, gain="gain_")
        return {**found, "p_value": _p_value(measure), "test_cases": measure.num_cases}


def rows_of(grid: Grid, table: Table, records: Mapping[str, Record]) -> list[Row]:
    """The rows of a table of which any cell is finished, in the table's order."""
    found = []
    for comparison in grid.comparisons(table):
        arms = grid.arms(comparison)
        compared = [name for name in arms if name != SCRATCH] or [SCRATCH]
        found += [row for name in compared if (row := _row(grid, comparison, name, records)) is not None]
    return found


def rows_against(base: str, grid: Grid, table: Table, records: Mapping[str, Record]) -> list[Row]:
    """Ways to begin compared with another than scratch, which has its place in the rows, where both are finished."""
    found = []
    for comparison in grid.comparisons(table):
        arms = grid.arms(comparison)
        compared = [name for name in arms if name not in (SCRATCH, base)] if base in arms else []
        rows = [_row(grid, comparison, name, records, base=base) for name in compared]
        found += [row for row in rows if row is not None and row.main.gain is not None]
    return found


def _row(
    grid: Grid, comparison: Comparison, arm: str, records: Mapping[str, Record], *, base: str = SCRATCH
) -> Row | None:  # fmt: skip
    programme = grid.programme
    first = _finished(grid, comparison, base, records) if base in comparison.arms else {}
    second = {} if arm == SCRATCH else _finished(grid, comparison, arm, records)
    common = sorted(first.keys() & second.keys())
    if common:
        first, second = ({seed: side[seed] for seed in common} for side in (first, second))
    if not first and not second:
        return None
    used = [*first.values(), *second.values()]
    subjects = subjects_of(used)
    sides = [runs_of(list(side.values()), list(subjects)) if side else None for side in (first, second)]
    target = programme.targets[comparison.target]
    main, others, classes = _measures(target, sides[0], sides[1], list(subjects.values()), used)
    pretrained = [grid.pretraining(comparison, arm, seed) for seed in second]
    teachers = [records[cell.name] for cell in pretrained if cell is not None and cell.name in records]
    return Row(
        comparison, target, programme.networks[comparison.network], arm,
        "" if arm == SCRATCH else programme.arms[arm].title,
        tuple(sorted(first.keys() | second.keys())), len(subjects), main, others, classes, _retrieval(teachers),
        (*used, *teachers),
    )  # fmt: skip


def _finished(grid: Grid, comparison: Comparison, arm: str, records: Mapping[str, Record]) -> dict[int, Record]:
    cells = {seed: grid.finetuning(comparison, arm, seed).name for seed in comparison.seeds}
    return {seed: records[name] for seed, name in cells.items() if name in records}


def _measures(
    target: Target, scratch: Runs | None, pretrained: Runs | None, subjects: Sequence[str], used: Sequence[Record]
) -> tuple[Measure, dict[str, Measure], dict[str, Measure]]:  # fmt: skip
    """The main metric, others by heading, and that of each class by heading."""
    names = used[0].result["classes"]
    if target.kind == "segmentation":
        headings = target.columns or {name: name for name in names}
        main, statistics = mean_dice, {}
        scores = {heading: dice_of(name) for name, heading in headings.items()}
    else:
        main, statistics = is_right, {"AUC": auc, "Balanced accuracy": balanced_accuracy}
        scores = {name: recall_of(number) for number, name in enumerate(names)}
    others = {name: compare_statistic(scratch, pretrained, one, subjects) for name, one in statistics.items()}
    classes = {name: compare(scratch, pretrained, score, subjects) for name, score in scores.items()}
    return compare(scratch, pretrained, main, subjects), others, classes


def _retrieval(pretrainings: Sequence[Record]) -> dict[str, float]:
    """Mean over seeds of what pretraining found on held-out slices."""
    looks = [one.result for one in pretrainings if one.result.get("retrieval")]
    if not looks:
        return {}
    values = {
        "image_recall_at_10": [look["retrieval"]["recall"]["image"]["10"] for look in looks],
        "text_recall_at_10": [look["retrieval"]["recall"]["text"]["10"] for look in looks],
        "chance_at_10": [look["retrieval"]["chance"]["10"] for look in looks],
        "plane_accuracy": [look["retrieval"]["plane_accuracy"] for look in looks],
        "position_error": [look["localisation"]["position_error"] for look in looks],
    }
    known = {name: [one for one in list_ if one is not None] for name, list_ in values.items()}
    return {name: sum(list_) / len(list_) for name, list_ in known.items() if list_}


def _measure(metric: str, measure: Measure, *, gain: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for side, summary in (("scratch", measure.scratch), ("pretrained", measure.pretrained)):
        interval = None if summary is None else summary.interval
        found[f"{side}_{metric}"] = None if interval is None else interval.mean
        found[f"{side}_{metric}_low"] = None if interval is None else interval.low
        found[f"{side}_{metric}_high"] = None if interval is None else interval.high
        found[f"{side}_{metric}_spread"] = None if summary is None else summary.spread
    difference = measure.gain
    found[f"gain_{metric}"] = None if difference is None else difference.mean
    found[f"{gain}low"] = None if difference is None else difference.low
    found[f"{gain}high"] = None if difference is None else difference.high
    return {name: _rounded(value) for name, value in found.items()}


def _p_value(measure: Measure) -> float | None:
    return None if measure.gain is None else _rounded(measure.gain.p_value)


def _rounded(value: float | None) -> float | None:
    """Without the last digits, in which machines differ."""
    return None if value is None else round(value, DIGITS)
