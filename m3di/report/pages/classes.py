"""Scores of a classification: means, confusion, ROC curves, calibration, and every case, confident errors first."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.scoring import ClassificationCase
from m3di.evaluation.summaries import ClassSummary
from m3di.evaluation.titles import TITLES
from m3di.report.chart import Chart, Charts, Series
from m3di.report.numbers import Cell, format_number
from m3di.report.page import Block, Matrix, Order, Paragraph, Section, Table
from m3di.report.pages.scores import estimate

MAX_CURVES = 8  # ROC curves that can be told apart


def class_sections(evaluation: Evaluation, worst: Sequence[Block]) -> list[Section]:
    """Everything that came of a classification's test cases.

    Args:
        evaluation: Of a classification.
        worst: What is shown of the most confident errors; empty for nothing.
    """
    summary = evaluation.summary
    assert isinstance(summary, ClassSummary)
    names = list(evaluation.classes.values())
    pooled = f", of all {evaluation.num_seeds} seeds together" if evaluation.num_seeds > 1 else ""
    means = [(TITLES[name], estimate(found, summary.seeds.get(name))) for name, found in summary.mean.items()]
    blocks: list[Block] = [Table(("score", "value [95% interval over subjects]"), means, _meaning(names))]
    if summary.seeds:
        blocks.append(Paragraph("± is the standard deviation of seeds, and no part of the interval."))
    blocks.append(_one_against_rest(summary, names, pooled))
    sections = [Section("Scores", blocks)]
    if worst:
        sections.append(Section("Most confident errors", worst))
    counts = Matrix(names, summary.scores.confusion, f"True class by row, predicted class by column{pooled}")
    return [
        *sections,
        Section("Confusion", [counts]),
        Section("Ranking and calibration", [Charts([_roc(summary, names), _reliability(summary)]), _bins(summary)]),
        _every_case(summary, names),
    ]


def confident_errors(cases: Sequence[ClassificationCase]) -> list[ClassificationCase]:
    """Cases that were given to another class than theirs, the one with the highest probability first."""
    wrong = [case for case in cases if predicted(case) != case.target]
    return sorted(wrong, key=lambda case: -max(case.probabilities))


def predicted(case: ClassificationCase) -> int:
    """The class with the highest probability; of equal ones the first."""
    return int(np.argmax(case.probabilities))


def roc_points(
    scores: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_]
) -> tuple[list[float], list[float]]:
    """A ROC curve: 1 - specificity and sensitivity, from (0, 0) to (1, 1); equal scores are one step.

    Args:
        scores: (n,) higher for what is more likely positive.
        is_positive: (n,) truth, some of it true and some not.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(is_positive[order])[ends]
    alarms = 1 + ends - hits
    x, y = (np.concatenate([[0], counts]) / counts[-1] for counts in (alarms, hits))
    return x.tolist(), y.tolist()


def _meaning(names: Sequence[str]) -> str:
    if len(names) == 2:
        return f"Means over test cases; {names[1]} is the positive class"
    return "Means over test cases; AUC, sensitivity and specificity are means over classes, each against the rest"


def _one_against_rest(summary: ClassSummary, names: Sequence[str], pooled: str) -> Table:
    rows = [
        (name, one.num_cases, one.sensitivity, one.specificity, one.auc)
        for name, one in zip(names, summary.scores.classes, strict=True)
    ]
    return Table(
        ("class", "cases", "sensitivity", "specificity", "AUC"), rows, f"Each class against the rest{pooled}"
    )


def _roc(summary: ClassSummary, names: Sequence[str]) -> Chart:
    """ROC curves of the classes, of all seeds together, as the areas in the legend are."""
    targets, probabilities = _pooled(summary)
    series = [Series("by chance", [0, 1], [0, 1], "guide")]
    found = summary.scores.classes
    drawn = [1] if len(names) == 2 else [c for c, one in enumerate(found) if not math.isnan(one.auc)]
    for number in drawn[:MAX_CURVES]:
        if not math.isnan(found[number].auc):
            x, y = roc_points(probabilities[:, number], targets == number)
            series.append(Series(f"{names[number]}, AUC {format_number(found[number].auc)}", x, y))
    title = "ROC" if len(drawn) <= MAX_CURVES else f"ROC of the first {MAX_CURVES} classes"
    return _square(series, "1 − specificity", "sensitivity", title)


def _reliability(summary: ClassSummary) -> Chart:
    known = [one for one in summary.scores.bins if one.num_cases]
    series = [
        Series("perfectly calibrated", [0, 1], [0, 1], "guide"),
        Series("this network", [one.confidence for one in known], [one.accuracy for one in known], "points"),
    ]
    title = f"Reliability: expected calibration error {format_number(summary.scores.ece)}"
    return _square(series, "mean highest probability", "share that was right", title)


def _square(series: Sequence[Series], x: str, y: str, title: str) -> Chart:
    return Chart(series, x, y, title, x_range=(0.0, 1.0), y_range=(0.0, 1.0), shape="square")


def _bins(summary: ClassSummary) -> Table:
    rows = [
        (f"over {one.low:.2f} to {one.high:.2f}", one.num_cases, one.confidence, one.accuracy)
        for one in summary.scores.bins
        if one.num_cases
    ]
    columns = ("highest probability", "cases", "its mean", "share that was right")
    return Table(columns, rows, "What the reliability diagram shows; few cases make its points jump")


def _every_case(summary: ClassSummary, names: Sequence[str]) -> Section:
    """Every case, the true class's probability lowest first."""
    ordered = sorted(summary.cases, key=lambda case: case.probabilities[case.target])
    named = any(case.subject != case.case for case in ordered)
    rows: list[tuple[Cell, ...]] = [
        (
            case.case, *([case.subject] if named else []), names[case.target], names[predicted(case)],
            "yes" if predicted(case) == case.target else "no", case.probabilities[case.target], *case.probabilities,
        )
        for case in ordered
    ]  # fmt: skip
    chances = [f"p({name})" for name in names]
    columns = ("case", *(["subject"] if named else []), "true class", "predicted", "right", "p(true class)", *chances)
    caption = "Test cases, those whose true class got the lowest probability first"
    return Section("Every case", [Table(columns, rows, caption, Order(4 + named))])


def _pooled(summary: ClassSummary) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Targets (n s,) and probabilities (n s, c) of n cases by s seeds."""
    tables = [case.by_seed or (case.probabilities,) for case in summary.cases]
    targets = [case.target for case, table in zip(summary.cases, tables, strict=True) for _ in table]
    return np.array(targets, np.int64), np.array([row for table in tables for row in table], np.float64)
