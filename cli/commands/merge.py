"""`m3di merge`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path


def merge(
    common: Common,
    source: Annotated[list[Path], typer.Argument(help="stores of one recipe")],
    store: StoreOption = None,
    update: Annotated[
        bool, typer.Option("--update", help="volumes of the sources take the place of other versions of them")
    ] = False,
) -> None:
    """Copy shards or stores of one recipe into one; the target is created when there is none. A rerun continues."""
    from m3di.signals import stop_on_signals
    from stores import Store
    from stores.manifest import read_marker
    from stores.merging import merge_all

    storage, path, output = common.load_config().storage, store_path(store), common.output
    marker = read_marker(source[0])
    opened = Store.create_or_open(
        path, marker.recipe, layout=marker.layout, wait_s=storage.wait_s, allow_network=storage.allow_network
    )
    with opened as target, stop_on_signals() as stop:
        copied = merge_all(target, source, replace=update, report=output.event, check=stop.raise_if_set)
        facts = {"copied": copied, "volumes": len(target.volume_names()), "teacher": target.current_or_none()}
    hint = "" if facts["teacher"] else "; the stores have no teacher in common: run m3di build-store for one"
    output.result("merge", facts, f"{copied} volumes copied, {facts['volumes']} in {path}{hint}")
