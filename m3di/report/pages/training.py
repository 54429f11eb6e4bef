"""How fine-tuning went: learning curves, who was trained on, and the settings that are a run's own.

A report is made of what a run's folder holds; `m3di evaluate` adds what came of the test subjects.
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m3di.evaluation.titles import TITLES
from m3di.report.chart import Chart, Series
from m3di.report.numbers import Cell, format_number
from m3di.report.page import Block, Commands, Facts, Link, Links, Notice, Page, Paragraph, Section, Table
from m3di.report.pages.settings import settings_section
from m3di.report.write import write_page
from m3di.training import checkpoint
from m3di.training.repeats import runs_of
from m3di.training.runtime import METRICS, read_metrics

FILE: Final = "report.html"
MAX_POINTS: Final = 400  # of a curve; neighbouring steps of a longer one are averaged
FEW: Final = 20  # points that are marked
FROM_0_TO_1: Final = frozenset({"dice", "balanced_accuracy", "auc"})
SHARES: Final = {"train": "training", "validation": "validation", "test": "test"}
NO_LEAK_CHECK: Final = (
    "Nobody has looked for leaks yet. Scores of the validation share chose these weights, and perhaps when to stop: "
    "they are no result. m3di evaluate looks for leaks and scores the test subjects."
)


@dataclass(frozen=True)
class Course:
    """A run as its folder tells it.

    Attributes:
        name: Name of the folder.
        facts: Of its newest checkpoint.
        log: Its metrics, line by line.
    """

    name: str
    facts: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, run: Path) -> "Course":
        """Read a run.

        Raises:
            RefusedError: E_WEIGHTS, when it is no fine-tuning run.
        """
        return cls(run.name, checkpoint.load(run, kind="finetune").facts, read_metrics(run / METRICS))

    @property
    def best(self) -> tuple[float, int] | None:
        """The best validation score and its clock; None where there was none."""
        progress = self.facts.get("progress") or {}
        known = [score for score in progress.get("best") or [] if score is not None]
        return (known[0], progress["best_samples_seen"]) if known else None


def courses_of(folder: Path) -> list[Course]:
    """The runs in a folder: its repeats, or the folder itself."""
    return [Course.of(run) for run in runs_of(folder)]


def write_training_report(folder: Path) -> Path:
    """Write `report.html` into a run, or a folder of repeats, that is trained and not evaluated yet.

    Raises:
        RefusedError: E_WEIGHTS, when the folder holds no fine-tuning run; E_PATH, when it may not be written.
        ResourceError: E_DISK.
    """
    return write_page(training_page(folder), folder / FILE)


def training_page(folder: Path) -> Page:
    """The page of runs that were not evaluated yet."""
    courses = courses_of(folder)
    facts = courses[0].facts
    train, validation, test = (len(facts["split"][share]) for share in SHARES)
    repeats = f", in {len(courses)} repeats" if len(courses) > 1 else ""
    lead = (
        f"{facts['network']} on task {facts['task']}: {train} scans to train on, {validation} for validation, {test} "
        f"kept for the test{repeats}."
    )
    command = f"m3di evaluate --run {shlex.quote(str(folder))}"
    blocks: list[Block] = [Notice("Not tested yet.", NO_LEAK_CHECK, "doubt"), Commands([command])]
    return Page(
        f"Fine-tuning: {folder.name}", lead, [Section("Test scores", blocks), *training_sections(courses, folder)]
    )


def training_sections(courses: Sequence[Course], folder: Path | None = None) -> list[Section]:
    """Learning curves and settings of runs that differ in their seed, or in their fold.

    Args:
        courses: The runs.
        folder: The folder that holds them as repeats, to link each one's own report; None for no links.
    """
    blocks: list[Block] = [Facts(_facts(courses)), *learning_curves(courses)]
    if len(courses) > 1:
        blocks.append(_runs(courses))
    links = [Link(f"{course.name}: its own report", f"{course.name}/{FILE}") for course in courses if folder]
    links = [link for link in links if folder is not None and (folder / link.path).is_file()]
    if links and len(courses) > 1:
        blocks.append(Links(links))
    first = courses[0].facts
    return [Section("Training", blocks), settings_section(first["config"], first["task"])]


def learning_curves(courses: Sequence[Course]) -> list[Block]:
    """A chart of the loss, and one of each thing that validation measured; a word in place of what was not logged."""
    losses = [_series(course.name, course.log, "loss") for course in courses]
    blocks: list[Block] = []
    if any(losses):
        told = courses[0].facts.get("loss", "").replace("dice_cross_entropy", "Dice and cross-entropy")
        blocks.append(_chart(losses, courses, f"Training loss ({told.replace('_', '-')})", "loss"))
    looks = [[{**line, **line["validation"]} for line in course.log if "validation" in line] for course in courses]
    names = dict.fromkeys(name for lines in looks for line in lines for name in line["validation"])
    for name in names:
        found = [_series(course.name, lines, name) for course, lines in zip(courses, looks, strict=True)]
        if any(found):
            title = TITLES.get(name, name.replace("_", "-"))
            blocks.append(_chart(found, courses, f"Validation: {title}", title, is_share=name in FROM_0_TO_1))
    return blocks or [Paragraph("No step was logged (finetune.log_every).")]


def _chart(
    found: Sequence[Series | None], courses: Sequence[Course], title: str, label: str, *, is_share: bool = False
) -> Chart:
    """A chart of one quantity; of a single run the curve is called what it measures."""
    series = [one if len(courses) > 1 else Series(label, one.x, one.y, one.look) for one in found if one is not None]
    return Chart(series, "volumes seen", label, title, y_range=(0.0, 1.0) if is_share else None)


def _series(name: str, lines: Sequence[Mapping[str, Any]], quantity: str) -> Series | None:
    """A quantity over the clock, without what is not a number; None where nothing is left."""
    points = [(line["samples_seen"], line[quantity]) for line in lines if _is_number(line.get(quantity))]
    if not points:
        return None
    size = -(-len(points) // MAX_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    means = [[sum(values) / len(part) for values in zip(*part, strict=True)] for part in parts]
    return Series(name, [x for x, _ in means], [y for _, y in means], "points" if len(means) <= FEW else "line")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _facts(courses: Sequence[Course]) -> list[tuple[str, Cell]]:
    facts, best = courses[0].facts, [course.best for course in courses]
    rows: list[tuple[str, Cell]] = [
        ("network", facts["network"]),
        ("begun from", _origin(facts["init"])),
        ("cube", f"{facts['recipe']['cube_size']} voxels a side"),
    ]
    rows += [(f"{name} scans", len(facts["split"][share])) for share, name in SHARES.items()]
    rows.append(("volumes seen", max(course.facts["samples_seen"] for course in courses)))
    if len(courses) == 1 and best[0] is not None:
        rows.append(("best in validation", f"{format_number(best[0][0])} after {best[0][1]} volumes seen"))
    return rows


def _origin(init: Mapping[str, Any]) -> str:
    return "scratch" if init.get("kind") == "scratch" else f"{init.get('kind')} {init.get('path', '')}".strip()


def _runs(courses: Sequence[Course]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for course in courses:
        best = course.best or (math.nan, 0)
        rows.append((course.name, course.facts["config"]["seed"], course.facts["samples_seen"], *best))
    columns = ("run", "seed", "volumes seen", "best validation score", "after volumes seen")
    return Table(columns, rows, "The runs")
