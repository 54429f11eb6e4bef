"""`m3di gc`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def gc(
    common: Common,
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, and remove nothing")] = False,
) -> None:
    """Remove what no reader can reach: volumes of a former recipe, captions and rows that are out of date."""
    from stores import Store
    from stores.collection import collect

    storage = common.load_config().storage
    with Store(
        store_path(store), writable=not dry_run, wait_s=storage.wait_s, allow_network=storage.allow_network
    ) as opened:
        collected = collect(opened, dry_run=dry_run)
    before, after = collected.num_bytes
    facts = {
        "volumes of a former recipe": len(collected.volumes),
        "captions and rows out of date": len(collected.derived),
        "teachers without facts": len(collected.folders),
        "bytes": before if dry_run else f"{before} before, {after} now",
    }
    common.output.result("gc", asdict(collected) | {"dry_run": dry_run}, facts_table(facts))
