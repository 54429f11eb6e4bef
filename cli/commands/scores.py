"""How scores of runs are shown: worst cases first, means with intervals, and what is known of leaks."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cli.output import plain, table
from m3di.evaluation.titles import TITLES, known_metrics, title_of, words

if TYPE_CHECKING:
    from m3di.evaluation.against import Comparison
    from m3di.evaluation.evaluate import Evaluation
    from m3di.evaluation.statistics import PairedDifference

MAX_CASES = 10  # shown without --verbose, the worst first


def shown_scores(result: "Evaluation", *, every_case: bool) -> list[object]:
    """Tables and lines of an evaluation.

    Args:
        result: The evaluation.
        every_case: Whether all cases are shown, not the worst alone.
    """
    limit = len(result.cases) if every_case else MAX_CASES
    shown = _segmentation(result, limit) if result.kind == "segmentation" else _classification(result, limit)
    if len(result.cases) > limit:
        shown.insert(1, f"the {limit} worst of {len(result.cases)} test cases; -v shows all")
    lines = [f"weights: {plain(str(weights))}" for weights in result.runs]
    lines += [f"refused: {plain(f'{one.case}: {one.code} {one.message}')}" for one in result.refused]
    lines += [f"warning: {plain(warning)}" for warning in result.warnings[:MAX_CASES]]
    if len(result.warnings) > MAX_CASES:
        lines.append(f"warning: {len(result.warnings) - MAX_CASES} more leaks are named in evaluation.json")
    return [*shown, *lines, plain(result.leaks)]


def shown_comparison(result: "Comparison", metrics: Sequence[str]) -> list[object]:
    """Tables and lines of a comparison.

    Args:
        result: The comparison.
        metrics: Those of the task.
    """
    rows = [
        [name, *(_difference(found[metric]) for metric in known_metrics(metrics, found))]
        for name, found in result.differences.items()
    ]
    titles = [TITLES[metric] for metric in known_metrics(metrics, next(iter(result.differences.values())))]
    lines = [f"difference of {TITLES[name]}: {words(interval)}" for name, interval in result.of_a_set.items()]
    head = f"{result.first} minus {result.second}, {result.num_cases} common test cases"
    return [
        plain(head),
        table(("difference [95% interval] p", *titles), rows),
        *lines,
        plain(f"{result.second}: {result.leaks}"),
    ]


def _segmentation(result: "Evaluation", limit: int) -> list[object]:
    from m3di.evaluation.summaries import MaskSummary

    assert isinstance(result.summary, MaskSummary)
    cases = sorted(result.summary.cases, key=lambda case: _mean(case.dice.values()))[:limit]
    rows = [[case.case, case.subject, *case.dice.values()] for case in cases]
    tables: list[object] = [table(("case, Dice", "subject", *result.classes.values()), rows)]
    metrics = known_metrics(result.metrics, TITLES)
    for grid, place in (("scanner", "on the scanner's grid"), ("cube", "on the cube")):
        seeds = result.summary.seeds.get(grid, {})
        means = [
            [name, *(words(found[metric], seeds.get(name, {}).get(metric)) for metric in metrics)]
            for name, found in result.summary.mean[grid].items()
        ]
        titles = [title_of(metric, result.tolerance_mm) for metric in metrics]
        tables.append(table((f"mean {place} [95% interval]", *titles), means))
    return [*tables, *_seeds(result)]


def _classification(result: "Evaluation", limit: int) -> list[object]:
    from m3di.evaluation.summaries import ClassSummary

    assert isinstance(result.summary, ClassSummary)
    names = list(result.classes.values())
    cases = sorted(result.summary.cases, key=lambda case: case.probabilities[case.target])[:limit]
    rows = [[case.case, case.subject, names[case.target], *case.probabilities] for case in cases]
    scores = result.summary.scores
    means = [
        [TITLES[metric], words(interval, result.summary.seeds.get(metric))]
        for metric, interval in result.summary.mean.items()
    ]
    confusion = [[name, *row] for name, row in zip(names, scores.confusion, strict=True)]
    bins = [
        [f"{one.low:.2f} to {one.high:.2f}", one.num_cases, one.confidence, one.accuracy]
        for one in scores.bins
        if one.num_cases
    ]
    return [
        table(("case", "subject", "class", *(f"p({name})" for name in names)), rows),
        table(("score", "mean [95% interval]"), means),
        table(("true class, predicted as", *names), confusion),
        table(("confidence", "cases", "mean confidence", "accuracy"), bins),
        *_seeds(result),
    ]


def _seeds(result: "Evaluation") -> list[object]:
    if len(result.runs) == 1:
        return []
    text = f"{len(result.runs)} runs: {result.num_seeds} seeds of {result.num_folds} test sets"
    return [f"{text}; ± is the standard deviation of seeds, and no part of the interval"]


def _difference(found: "PairedDifference") -> str:
    ends = f" [{found.low:.3g}, {found.high:.3g}]" if not math.isnan(found.low) else ""
    return f"{found.mean:+.3g}{ends} {found.p_value:.2g}"


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.inf
