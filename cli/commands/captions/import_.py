"""`m3di captions import`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.captions.shown import flat
from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def import_(
    common: Common,
    file: Annotated[list[Path], typer.Argument(help="a .csv, .tsv, .jsonl or .parquet file; with --batch results")],
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check the whole file, and write nothing")] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="collect the results of a vendor's batch interface instead")
    ] = False,
) -> None:
    """Take captions from a table of volume, plane, slice and text; a row without plane and slice is a report."""
    output = common.output
    if batch:
        from m3di.captions.endpoint.batches import import_batch
        from m3di.storage import open_for_writing

        config = common.load_config(captions__captioner="endpoint")
        with open_for_writing(store_path(store), config.storage) as opened:
            summary = import_batch(opened, config, file)
        next_step = "hint: m3di captions run --captioner endpoint writes them, m3di build-store embeds them"
    else:
        from m3di.captions.tables.importing import import_captions

        if len(file) > 1:
            raise typer.BadParameter("one table at a time; several files are for --batch")
        summary = import_captions(
            store_path(store), file[0], common.load_config(), dry_run=dry_run, report=output.event
        )
        next_step = f"hint: m3di build-store SOURCE --captions {file[0]} embeds them"
    output.result("captions-import", summary, facts_table(flat(summary)), *(() if dry_run else (next_step,)))
