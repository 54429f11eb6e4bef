"""`m3di reproduce`, top to bottom: datasets, what is done already, the cells that are left, tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from m3di.events import Report
from m3di.reproduce.cells import Cell, Grid, sizes_of
from m3di.reproduce.datasets import DATASETS, digest_dataset, find_datasets, require_some
from m3di.reproduce.figures import curves_png, curves_svg, panels_of, pictures_png
from m3di.reproduce.findings import Findings, findings_of
from m3di.reproduce.formats import to_csv, to_json, to_latex, to_markdown
from m3di.reproduce.literal import LITERAL
from m3di.reproduce.programme import Programme, Table
from m3di.reproduce.records import Record, read_records
from m3di.reproduce.scheduling import Plan, Scheduler, make_plan, written
from m3di.reproduce.small import SMALL
from m3di.reproduce.workspace import Workspace
from m3di.signals import stop_on_signals
from stores import atomic
from stores.errors import RefusedError

SCALES: Final[Mapping[str, Programme]] = {"small": SMALL, "paper": LITERAL}
PAPERS: Final = ("table1", "table2", "table3", "figure2", "figure3")  # `all`: what the paper shows


@dataclass(frozen=True)
class Planned:
    """A cell as a dry run tells it.

    Attributes:
        cell: Its name.
        action: `done`, `make`, or `missing`, when a dataset that it reads is not there.
        commands: Its command lines.
    """

    cell: str
    action: Literal["done", "make", "missing"]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Reproduction:
    """What a run made.

    Attributes:
        findings: One a table.
        files: What was written.
        failed: Error of each cell that failed, by name.
        missing: What to do about each dataset that is not there, by name.
        made: Cells made now.
        finished: Cells that were done before.
    """

    findings: tuple[Findings, ...]
    files: tuple[Path, ...]
    failed: Mapping[str, Mapping[str, Any]]
    missing: Mapping[str, str]
    made: int
    finished: int


def reproduce(
    programme: Programme,
    tables: Sequence[Table],
    out: Path,
    *,
    data: Path | None,
    seeds: tuple[int, ...] = (),
    settings: tuple[str, ...] = (),
    workers: int = 1,
    devices: Sequence[str] = ("auto",),
    report: Report,
) -> Reproduction:
    """Make what is missing of some tables and figures, and write them.

    Args:
        programme: The programme of a scale.
        tables: Those of its tables that are wanted.
        out: The programme's folder: finished cells, tables, figures; what is large below `work`.
        data: The folder that holds the datasets.
        seeds: In place of those of the programme.
        settings: Settings that are added to every command.
        workers: Cells that are made at a time; the cores are divided among them.
        devices: One for each of the workers, in turn.
        report: Receives the events.

    Raises:
        RefusedError: E_MISSING, when no dataset is there.
        LockedError: E_LOCKED, when another process works in `out`.
        Interrupted: On TERM or INT, after the cells in the making have saved.
    """
    wanted = programme.datasets_of(tables)
    found = find_datasets(data, wanted)
    require_some(data, found, wanted)
    missing = {name: DATASETS[name].advice for name in wanted if name not in found}
    for name, advice in missing.items():
        report("warning", message=f"dataset {name} is not there. {advice}")
    grid = Grid(programme, frozenset(found), seeds, settings)
    workspace = Workspace(out, found)
    with stop_on_signals() as stop, workspace.locked():
        atomic.write_bytes(out / f"{programme.name}.toml", sizes_of(programme.name).encode())
        cells = grid.cells(tables)
        plan = make_plan(cells, read_records(workspace.records), workspace, _digests(found, cells))
        scheduler = Scheduler(plan, workspace, workers=workers, devices=devices, report=report)
        scheduler.run(stop)
        records = _valid(plan, read_records(workspace.records))
        everything = Grid(programme, frozenset(wanted), seeds, settings)
        findings, files = write_tables(everything, tables, records, out)
    num_made = len(plan.to_do) - len(scheduler.failed)
    return Reproduction(findings, files, scheduler.failed, missing, num_made, len(cells) - len(plan.to_do))


def redraw(
    programme: Programme, tables: Sequence[Table], out: Path, cells: Path, *, seeds: tuple[int, ...] = ()
) -> Reproduction:  # fmt: skip
    """Write tables and figures from finished cells as they are; nothing is run, and no data are needed.

    Raises:
        RefusedError: E_MISSING, when there is no finished cell of the tables.
        DamagedError: E_CORRUPT, E_VERSION.
    """
    grid = Grid(programme, frozenset(programme.datasets_of(tables)), seeds)
    records = read_records(cells)
    known = grid.cells(tables).keys() & records.keys()
    if not known:
        names = ", ".join(table.name for table in tables)
        message = f"{cells} holds no finished cell of {names} at scale {programme.name}"
        raise RefusedError("E_MISSING", message, hint="give the folder `cells` of an earlier --out, and its --scale")
    out.mkdir(parents=True, exist_ok=True)
    findings, files = write_tables(grid, tables, records, out)
    return Reproduction(findings, files, {}, {}, 0, len(known))


def dry_run(
    programme: Programme, tables: Sequence[Table], out: Path, *, data: Path | None, seeds: tuple[int, ...] = (),
    settings: tuple[str, ...] = (),
) -> tuple[list[Planned], dict[str, str]]:  # fmt: skip
    """Say what a run would do, datasets that are not there included, and where to get those."""
    wanted = programme.datasets_of(tables)
    found = find_datasets(data, wanted)
    missing = {name: DATASETS[name].advice for name in wanted if name not in found}
    here = Grid(programme, frozenset(found), seeds, settings).cells(tables)
    plan = make_plan(here, read_records(out / "cells"), Workspace(out, found), _digests(found, here))
    everything = Grid(programme, frozenset(wanted), seeds, settings).cells(tables)
    items = [
        _planned(here.get(name, cell), name not in here, name in plan.to_do) for name, cell in everything.items()
    ]
    return items, missing


def programme_of(scale: str) -> Programme:
    """A scale's programme.

    Raises:
        RefusedError: E_CONFIG, for an unknown one.
    """
    if scale not in SCALES:
        raise RefusedError("E_CONFIG", f"no scale is called {scale!r}", hint=f"use one of {', '.join(SCALES)}")
    return SCALES[scale]


def tables_of(programme: Programme, names: Sequence[str]) -> tuple[Table, ...]:
    """Tables by name; `all` is everything that the paper shows.

    Raises:
        RefusedError: E_CONFIG, for an unknown one.
    """
    known = programme.tables
    wanted = list(dict.fromkeys(one for name in names for one in (PAPERS if name == "all" else (name,))))
    for name in wanted:
        if name not in known:
            raise RefusedError("E_CONFIG", f"no table is called {name!r}", hint=f"use all, {', '.join(known)}")
    return tuple(known[name] for name in wanted)


def write_tables(
    grid: Grid, tables: Sequence[Table], records: Mapping[str, Record], out: Path
) -> tuple[tuple[Findings, ...], tuple[Path, ...]]:
    """Write every table and figure; the same records give the same bytes."""
    findings = tuple(findings_of(grid, table, records) for table in tables)
    files: list[Path] = []
    for table, one in zip(tables, findings, strict=True):
        figures = _figures(grid, table, one, records)
        texts = {
            "json": to_json(one), "csv": to_csv(one), "md": to_markdown(one, list(figures)), "tex": to_latex(one)
        }  # fmt: skip
        contents = {f"{table.name}.{ending}": text.encode() for ending, text in texts.items()} | figures
        for name, content in contents.items():
            atomic.write_bytes(out / name, content)
            files.append(out / name)
    return findings, tuple(files)


def _figures(grid: Grid, table: Table, findings: Findings, records: Mapping[str, Record]) -> dict[str, bytes]:
    """Pictures of a table by file name."""
    if table.shape == "curves" and (panels := panels_of(findings.rows)):
        return {f"{table.name}.svg": curves_svg(panels), f"{table.name}.png": curves_png(panels)}
    if table.shape == "pictures" and (picture := pictures_png(grid, table, records)) is not None:
        return {f"{table.name}.png": picture}
    return {}


def _digests(found: Mapping[str, Path], cells: Mapping[str, Cell]) -> dict[str, str]:
    read = {name for cell in cells.values() for name in cell.datasets}
    return {name: digest_dataset(path) for name, path in found.items() if name in read}


def _valid(plan: Plan, records: Mapping[str, Record]) -> dict[str, Record]:
    """Records without those that were made with other settings or data than their cells have now."""
    return {name: one for name, one in records.items() if plan.digests.get(name, one.digest) == one.digest}


def _planned(cell: Cell, is_missing: bool, is_to_do: bool) -> Planned:
    action: Literal["done", "make", "missing"] = "missing" if is_missing else "make" if is_to_do else "done"
    return Planned(cell.name, action, tuple(written(command) for command in cell.commands))
