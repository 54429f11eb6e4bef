"""`m3di captions run`."""

from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def run(
    common: Common,
    store: StoreOption = None,
    captioner: Annotated[str | None, typer.Option(help="who writes them: describe, endpoint or table")] = None,
) -> None:
    """Caption the volumes of a store that have no current captions; the next build-store embeds them."""
    from m3di.captions.stage import caption_store

    output = common.output
    config = common.load_config(captions__captioner=captioner)
    summary = caption_store(store_path(store), config, report=output.event)
    output.result("captions-run", summary, facts_table({k.replace("_", " "): v for k, v in summary.items()}))
