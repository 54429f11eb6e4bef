"""`m3di merge`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path


def merge(
    common: Common,
    source: Annotated[list[Path], typer.Argument(help="stores of one recipe")],
    store: StoreOption = None,
) -> None:
    """Copy shards or stores of one recipe into one; the target is created when there is none. A rerun continues."""
    from m3di.signals import stop_on_signals
    from stores import Store
    from stores.merging import merge as merge_stores

    storage, path = common.load_config().storage, store_path(store)
    with ExitStack() as stack:
        sources = [stack.enter_context(Store(place)) for place in source]
        marker = sources[0].marker
        target = stack.enter_context(
            Store.create_or_open(
                path, marker.recipe, layout=marker.layout, wait_s=storage.wait_s, allow_network=storage.allow_network
            )
        )
        stop = stack.enter_context(stop_on_signals())
        copied = merge_stores(target, sources, report=common.output.event, check=stop.raise_if_set)
        facts = {"copied": copied, "volumes": len(target.volume_names()), "teacher": target.current_or_none()}
    hint = "" if facts["teacher"] else "; the stores have no teacher in common: run m3di build-store for one"
    common.output.result("merge", facts, f"{copied} volumes copied, {facts['volumes']} in {path}{hint}")
