"""Scores of masks: means by class, every case, the worst first; of a run, or of masks against masks."""

import math
from collections.abc import Mapping, Sequence

from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.pairs import PairScores, PairsEvaluation
from m3di.evaluation.scoring import SegmentationCase
from m3di.evaluation.segmentation import METRICS, MaskScores
from m3di.evaluation.summaries import ALL, MaskSummary
from m3di.evaluation.titles import known_metrics, title_of
from m3di.report.numbers import Cell
from m3di.report.page import Block, Order, Page, Paragraph, Section, Table
from m3di.report.pages.scores import EMPTY, INTERVAL, estimate, leak_notice, means_table, refusal_sections

ScoredCases = Sequence[tuple[SegmentationCase | PairScores, Mapping[int, MaskScores]]]


def mask_sections(evaluation: Evaluation, worst: Sequence[Block]) -> list[Section]:
    """Means, the worst cases with their pictures, and every case of a run's segmentation.

    Args:
        evaluation: Of a segmentation.
        worst: What is shown of the worst cases; empty for nothing.
    """
    summary = evaluation.summary
    assert isinstance(summary, MaskSummary)
    metrics = known_metrics(evaluation.metrics, dict.fromkeys(METRICS))
    grids = {"scanner": f"On the scanner's grid: {INTERVAL}", "cube": f"On the network's cube: {INTERVAL}"}
    means: list[Block] = [
        means_table(
            summary.mean[grid], metrics, caption, tolerance_mm=evaluation.tolerance_mm, seeds=summary.seeds.get(grid)
        )
        for grid, caption in grids.items()
    ]
    if summary.seeds:
        means.append(Paragraph("± is the standard deviation of seeds, and no part of the interval."))
    sections = [Section("Scores by class", means)]
    if worst:
        sections.append(Section("Worst cases", worst))
    cases = [(case, case.scanner) for case in worst_first(summary.cases)]
    return [*sections, cases_section(cases, evaluation.classes, metrics, tolerance_mm=evaluation.tolerance_mm)]


def worst_first(cases: Sequence[SegmentationCase]) -> list[SegmentationCase]:
    """Cases by mean Dice over their classes; those without any Dice last."""
    return sorted(cases, key=lambda case: (math.isnan(mean := mean_dice(case.scanner)), mean))


def mean_dice(scores: Mapping[int, MaskScores]) -> float:
    """Mean Dice of a case over the classes that have one; NaN without any."""
    return _mean([one.dice for one in scores.values()])


def cases_section(
    cases: ScoredCases, classes: Mapping[int, str], metrics: Sequence[str],
    *, tolerance_mm: float,
) -> Section:  # fmt: skip
    """Every case: Dice of each class and each metric's mean over the classes, to be ordered by any column.

    Args:
        cases: Cases with their scores by label value, by mean Dice.
        classes: Class name by label value.
        metrics: Those that are shown.
        tolerance_mm: Of surface Dice.
    """
    several, named = len(classes) > 1, any(case.subject != case.case for case, _ in cases)
    columns = ["case", *(["subject"] if named else []), "Dice"]
    columns += [f"Dice, {name}" for name in classes.values()] if several else []
    others = [metric for metric in metrics if metric != "dice"]
    rows: list[tuple[Cell, ...]] = []
    for case, scores in cases:
        known = [scores[value] for value in classes if value in scores]
        dice = [scores[value].dice if value in scores else math.nan for value in classes] if several else []
        means = [_mean([getattr(one, metric) for one in known]) for metric in others]
        rows.append((case.case, *([case.subject] if named else []), mean_dice(scores), *dice, *means))
    caption = (
        f"Test cases, those with the lowest Dice first{'; means over the classes where none is named' * several}"
    )
    titles = [title_of(metric, tolerance_mm) for metric in others]
    table = Table((*columns, *titles), rows, caption, Order(1 + named))
    note = [Paragraph(EMPTY)] if any(isinstance(c, float) and math.isnan(c) for row in rows for c in row) else []
    return Section("Every case", [table, *note])


def pairs_page(result: PairsEvaluation, *, prediction: str, reference: str) -> Page:
    """The page of masks against masks.

    Args:
        result: Their scores.
        prediction: Where the predicted masks came from, as the user wrote it.
        reference: The same of the true ones.
    """
    dice = result.mean[ALL]["dice"]
    lead = f"Mean Dice {estimate(dice)} over {len(result.cases)} cases: {prediction} against {reference}."
    table = means_table(result.mean, METRICS, INTERVAL.capitalize(), tolerance_mm=result.tolerance_mm)
    cases = sorted(result.cases, key=lambda case: (math.isnan(mean := mean_dice(case.scores)), mean))
    return Page(
        "Masks against masks",
        lead,
        [
            Section("Scores by class", [leak_notice(result.leaks, doubtful=True), table]),
            cases_section(
                [(case, case.scores) for case in cases], result.classes, METRICS, tolerance_mm=result.tolerance_mm
            ),
            *refusal_sections(result.refused),
        ],
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
