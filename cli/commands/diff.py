"""`m3di diff`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table

DIFFERENT = 4


def diff(
    common: Common, other: Annotated[Path, typer.Argument(help="the other store")], store: StoreOption = None
) -> None:
    """Name every item in which two stores differ: exit 0 when there is none, else 4."""
    from stores import Store
    from stores.merging import diff as differences

    with Store(store_path(store)) as here, Store(other) as there:
        found = list(differences(here, there))
    rows = [(difference.kind, difference.item, difference.message) for difference in found]
    shown = [table(("kind", "item", "digests"), rows)] if rows else ["the stores are equal"]
    common.output.result("diff", {"differences": [asdict(one) for one in found]}, *shown)
    if found:
        raise typer.Exit(DIFFERENT)
