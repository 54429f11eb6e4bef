"""`m3di reproduce`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Common, data_root
from cli.output import Output, plain, table
from stores.errors import RefusedError

if TYPE_CHECKING:
    from m3di.reproduce.run import Planned

FAILED = 3


def reproduce(
    common: Common,
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE...", help="all, table1, table2, table3, figure2, figure3, or ablation-NAME"),
    ],
    out: Annotated[Path, typer.Option("--out", help="folder for finished cells, tables and figures")],
    data: Annotated[
        Path | None, typer.Option("--data", help="folder that holds the datasets [env: M3DI_DATA]")
    ] = None,
    scale: Annotated[str, typer.Option(help="paper: as published; small: a night on two CPU cores")] = "paper",
    workers: Annotated[int, typer.Option(min=1, help="cells at a time; the cores are divided among them")] = 1,
    seeds: Annotated[str | None, typer.Option(help="in place of the programme's own, such as 0,1,2")] = None,
    cells: Annotated[
        Path | None, typer.Option("--from", help="only write tables and figures from finished cells in this folder")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")] = False,
) -> None:
    """Run the paper's experiments, or ablations beyond them, and write tables and figures. A rerun continues.

    --device may name several, such as cuda:0,cuda:1, for as many workers; --set is added to every cell.
    """
    _require_own_options(common)
    from m3di.reproduce import run

    output, numbers, settings = common.output, _seeds(seeds), tuple(common.set or ())
    programme = run.programme_of(scale)
    wanted = run.tables_of(programme, tables)
    if dry_run:
        items, missing = run.dry_run(
            programme, wanted, out, data=data_root(data), seeds=numbers, settings=settings
        )  # fmt: skip
        _show_plan(output, items, missing)
        return
    if cells is not None:
        done = run.redraw(programme, wanted, out, cells, seeds=numbers)
    else:
        done = run.reproduce(
            programme, wanted, out, data=data_root(data), seeds=numbers, settings=settings, workers=workers,
            devices=common.device.split(","), report=output.event,
        )  # fmt: skip
    shown: list[object] = []
    for one in done.findings:
        shown += [table(block.columns, block.rows, title=block.title) for block in one.blocks]
        shown += [plain(note) for note in one.notes]
    shown += [
        f"failed: {name}: {plain(error['code'])} {plain(error['message'])}" for name, error in done.failed.items()
    ]
    shown += [str(path) for path in done.files]
    facts = {
        "tables": {one.name: one.to_dict() for one in done.findings}, "files": [str(path) for path in done.files],
        "failed": dict(done.failed), "missing": dict(done.missing), "made": done.made, "finished": done.finished,
    }  # fmt: skip
    output.result("reproduce", facts, *shown)
    if done.failed:
        raise typer.Exit(FAILED)


def _show_plan(output: Output, items: "list[Planned]", missing: dict[str, str]) -> None:
    lines = [line for item in items for line in (f"# {item.cell}: {item.action}", *item.commands)]
    counts = {action: sum(item.action == action for item in items) for action in ("done", "make", "missing")}
    lines += [f"# dataset {name} is not there. {advice}" for name, advice in missing.items()]
    lines.append(f"# {len(items)} cells: {', '.join(f'{count} {action}' for action, count in counts.items())}")
    output.result("reproduce-plan", {"cells": [vars(item) for item in items], "missing": missing}, *lines)


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(word) for word in text.split(","))) if text else ()
    except ValueError as error:
        message = f"--seeds {text!r} is no list of whole numbers"
        raise RefusedError("E_CONFIG", message, hint="for example --seeds 0,1,2") from error


def _require_own_options(common: Common) -> None:
    """Refuse options that each cell sets for itself."""
    given = {"--preset": common.preset != "default", "--config": common.config, "--seed": common.seed is not None}
    for name, is_given in given.items():
        if is_given:
            message = f"{name} is set by the cells themselves"
            raise RefusedError("E_CONFIG", message, hint="use --scale, --seeds, and --set KEY=VALUE")
