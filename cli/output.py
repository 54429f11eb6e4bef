"""The only place that prints: stdout is data, stderr is everything else."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 240  # columns when stdout is no terminal, so that no cell is cut
IN_BAR = frozenset({"samples_seen", "total", "stage", "volumes_per_s", "remaining_s"})  # shown by the bar itself
MINOR_EVENTS = frozenset({"step", "committed", "up to date"})  # shown as progress, or with --verbose
COUNTED_EVENTS = MINOR_EVENTS | {"quarantined", "finished", "failed"}  # an item of a stage is done with


class Output:
    """Shows results and progress of one command.

    Args:
        json: Data as JSON on stdout; for long commands one event a line.
        quiet: Nothing on stderr but errors.
        verbose: Every event on stderr, also without a terminal.
    """

    def __init__(self, *, json: bool, quiet: bool, verbose: bool) -> None:
        self._json = json
        self._quiet = quiet
        self._verbose = verbose
        self._stderr = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._begun = 0

    def event(self, event: str, /, **facts: object) -> None:
        """Take an event of a long command (an `m3di.events.Report`)."""
        if self._json:
            _write_json({"event": event, **facts})
        if self._quiet:
            return
        if event == "begin":
            self._begin(facts)
        if event not in MINOR_EVENTS or self._verbose:
            self._stderr.print(_words(event, facts))
        if self._progress is not None and event in COUNTED_EVENTS:
            self._advance(facts)

    def result(self, schema: str, data: Mapping[str, Any], *shown: object) -> None:
        """Show what a command found: one JSON object with its schema, or tables and lines for people."""
        self.close()
        if self._json:
            _write_json({"schema": f"m3di.{schema}/1", **data})
            return
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        console = Console(markup=False, highlight=False, emoji=False, width=width)
        for item in shown:
            console.print(item, soft_wrap=isinstance(item, str))

    def error(self, message: str, hint: str = "") -> None:
        """Say what went wrong, on one line, and what to do, on the next."""
        self.close()
        self._stderr.print(f"error: {plain(message)}")
        if hint:
            self._stderr.print(f"hint: {plain(hint)}")

    def close(self) -> None:
        """Take the progress bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self, facts: Mapping[str, object]) -> None:
        """Start a bar for a stage that says how much it has to do; only on a terminal."""
        self.close()
        total = next((facts[name] for name in ("total", "cases", "volumes") if name in facts), None)
        if not isinstance(total, int) or not self._stderr.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()
        )  # fmt: skip
        self._progress = Progress(*columns, TextColumn("{task.fields[facts]}"), console=self._stderr, transient=True)
        begun = facts.get("samples_seen", 0)
        self._progress.add_task(str(facts.get("stage", "training")), total=total, completed=begun, facts="")  # type: ignore[arg-type]
        self._progress.start()

    def _advance(self, facts: Mapping[str, object]) -> None:
        progress = self._progress
        assert progress is not None
        (task,) = progress.task_ids
        shown = _words("", {name: value for name, value in facts.items() if name not in IN_BAR})
        if isinstance(facts.get("samples_seen"), int):
            progress.update(task, completed=facts["samples_seen"], facts=shown)  # type: ignore[arg-type]
        else:
            progress.update(task, advance=1, facts=shown)


class _RateColumn(ProgressColumn):
    """How many items are done a second, or a minute when they are slow."""

    def render(self, task: Task) -> Text:
        """Empty until there is a rate."""
        rate = task.finished_speed or task.speed
        if not rate:
            return Text("")
        return Text(f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> Table:
    """A table: numbers to the right, text to the left; text from data is made harmless."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        shown.add_column(plain(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(plain(_cell(value)) for value in row))
    return shown


def facts_table(facts: Mapping[str, object]) -> Table:
    """Names and values, one pair a line."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        shown.add_row(name, plain(_cell(value)))
    return shown


def duration(seconds: float) -> str:
    """A span of time as people say it, to two digits: `40 s`, `12 min`, `3.1 h`, `5.0 days`."""
    for unit, length, name in ((100, 1, "s"), (100, 60, "min"), (48, 3600, "h")):
        if seconds / length < unit:
            return f"{seconds / length:.2g} {name}"
    return f"{seconds / 86400:.2g} days"


def plain(text: str) -> str:
    """Text without control characters, so that data cannot steer a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(event: str, facts: Mapping[str, object]) -> str:
    shown = [f"{name} {_cell(value)}" for name, value in facts.items() if not isinstance(value, Mapping)]
    return plain(f"{event}  {'  '.join(shown)}".strip())


def _write_json(value: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()
