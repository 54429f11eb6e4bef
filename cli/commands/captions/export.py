"""`m3di captions export`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.captions.shown import flat
from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def export(
    common: Common,
    out: Annotated[Path, typer.Argument(help="a .csv, .tsv, .jsonl or .parquet file; with --batch a new folder")],
    store: StoreOption = None,
    captioner: Annotated[
        str, typer.Option(help="whose: current, a name such as describe, or the beginning of a fingerprint")
    ] = "current",
    batch: Annotated[
        bool, typer.Option("--batch", help="write request files for a vendor's batch interface instead")
    ] = False,
) -> None:
    """Write a store's captions to a table that `m3di captions import` reads back."""
    output = common.output
    if batch:
        from m3di.captions.endpoint.batches import export_batch
        from m3di.storage import open_for_writing

        config = common.load_config(captions__captioner="endpoint")
        with open_for_writing(store_path(store), config.storage) as opened:
            summary = export_batch(opened, config, out)
    else:
        from m3di.captions.tables.exporting import export_captions

        summary = export_captions(store_path(store), out, captioner=captioner)
    output.result("captions-export", summary, facts_table(flat(summary)))
