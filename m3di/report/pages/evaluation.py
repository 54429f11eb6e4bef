"""The page of an evaluation: what is known of leaks, scores, the worst cases, every case, and how training went."""

import shlex
from pathlib import Path
from typing import Final, Literal

from m3di.evaluation.against import Comparison
from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.members import members_of
from m3di.evaluation.statistics import Interval, PairedDifference
from m3di.evaluation.summaries import ALL, ClassSummary, people_in
from m3di.evaluation.titles import TITLES, known_metrics, title_of
from m3di.report.numbers import Cell
from m3di.report.page import Block, Commands, Facts, Notice, Page, Paragraph, Section, Table
from m3di.report.pages.classes import class_sections
from m3di.report.pages.masks import mask_sections
from m3di.report.pages.scores import estimate, leak_notice, refusal_sections
from m3di.report.pages.training import FILE, Course, training_sections
from m3di.report.pages.worst import worst_blocks
from m3di.report.write import write_page
from m3di.training.repeats import runs_of

PARTS: Final = {"best": "best in validation", "ema": "moving average", "network": "last"}
LINE: Final = "\n"
GRIDS: Final = {"scanner": "on the scanner's grid", "cube": "on the cube"}


def write_evaluation_report(
    evaluation: Evaluation,
    runs: Path | list[Path],
    *,
    file: Path | None = None,
    data: Path | None = None,
    comparison: Comparison | None = None,
    pictures: int,
    device: str = "auto",
    named: str = "",
) -> Path:
    """Write the page of an evaluation.

    Args:
        evaluation: The scores.
        runs: The runs, or folders of repeats, that they are of.
        file: Where the page goes; by default `report.html` in the one run, in place of what was there.
        data: The task's dataset; by default where the run found it.
        comparison: With other runs on the same cases.
        pictures: How many of the worst cases are shown.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        named: As for `load_network`.

    Raises:
        RefusedError: E_PATH, when the place may not be written.
        ResourceError: E_DISK.
    """
    folders = [runs] if isinstance(runs, Path) else runs
    members = members_of(folders, data)
    worst = worst_blocks(evaluation, members, count=pictures, device=device, named=named) if pictures else []
    sections = mask_sections if evaluation.kind == "segmentation" else class_sections
    courses = [Course.of(run) for folder in folders for run in runs_of(folder)]
    place = file or folders[0] / FILE
    page = Page(
        title=f"Evaluation: {', '.join(folder.name for folder in folders)}",
        lead=lead_of(evaluation),
        sections=[
            _tested(evaluation),
            *([comparison_section(comparison, evaluation)] if comparison else []),
            *sections(evaluation, worst),
            *refusal_sections(evaluation.refused, evaluation.warnings),
            *training_sections(courses, folders[0] if place.parent == folders[0] else None),
            _again(folders),
        ],
    )
    return write_page(page, place)


def lead_of(evaluation: Evaluation) -> str:
    """What came out, in a sentence."""
    cases = f"{len(evaluation.cases)} test cases of {len(set(people_in(evaluation.cases)))} subjects"
    if isinstance(evaluation.summary, ClassSummary):
        return f"Balanced accuracy {estimate(evaluation.summary.mean['balanced_accuracy'])} over {cases}."
    return f"Mean Dice {estimate(evaluation.dice[ALL])} over {cases}, on the scanner's grid."


def comparison_section(comparison: Comparison, evaluation: Evaluation) -> Section:
    """How a run differs from another on the same cases.

    Args:
        comparison: First minus second.
        evaluation: Of the first run.
    """
    metrics = known_metrics(evaluation.metrics, next(iter(comparison.differences.values())))
    rows = [
        (_place(name), *(_difference(found[metric]) for metric in metrics))
        for name, found in comparison.differences.items()
    ]
    titles = [title_of(metric, evaluation.tolerance_mm) for metric in metrics]
    caption = (
        f"{comparison.first} minus {comparison.second}, {comparison.num_cases} common test cases: mean difference "
        "[95% interval over subjects], p of a sign-flip test. Of many p values some are small by chance"
    )
    tone: Literal["sound", "doubt"] = "doubt" if comparison.warnings else "sound"
    blocks: list[Block] = [
        Notice("Leak check of the other run:", comparison.leaks, tone),
        Table(("class", *titles), rows, caption),
    ]
    if comparison.of_a_set:
        sets = [(TITLES[name], estimate(found)) for name, found in comparison.of_a_set.items()]
        blocks.append(Table(("score", "difference [95% interval]"), sets, "Scores that no case has by itself"))
    return Section(f"Against {comparison.second}", blocks)


def _place(name: str) -> str:
    """A class, and the grid that it was scored on, in words."""
    grid, slash, own = name.partition("/")
    return f"{'mean of the classes' if own == ALL else own}, {GRIDS[grid]}" if slash and grid in GRIDS else name


def _difference(found: PairedDifference) -> str:
    sign = "+" if found.mean > 0 else ""
    interval = Interval(found.mean, found.low, found.high)
    return f"{sign}{estimate(interval, between=LINE)}{LINE}p {found.p_value:.2g}"


def _tested(evaluation: Evaluation) -> Section:
    networks = dict.fromkeys(weights.network for weights in evaluation.runs)
    rows: list[tuple[str, Cell]] = [
        ("task", evaluation.task),
        ("network", ", ".join(networks)),
        ("test cases", len(evaluation.cases)),
        ("test subjects", len(set(people_in(evaluation.cases)))),
        ("refused cases", len(evaluation.refused)),
    ]
    if len(evaluation.runs) > 1:
        rows += [("seeds", evaluation.num_seeds), ("test sets", evaluation.num_folds)]
    weights = [(one.run, PARTS[one.part], one.samples_seen, one.seed, one.sha256[:16]) for one in evaluation.runs]
    columns = ("run", "weights", "volumes seen", "seed", "sha256 begins")
    used = Table(columns, weights, "The weights that were tested")
    return Section(
        "What was tested", [leak_notice(evaluation.leaks, doubtful=bool(evaluation.warnings)), Facts(rows), used]
    )


def _again(folders: list[Path]) -> Section:
    command = shlex.join(["m3di", "evaluate", *(part for folder in folders for part in ("--run", str(folder)))])
    text = "Every number of this page and more is in evaluation.json beside the run; the same again:"
    return Section("Numbers", [Paragraph(text), Commands([command])])
