"""`m3di verify`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table

PROBLEMS = 4


def verify(
    common: Common,
    store: StoreOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="compare sizes, do not read every byte")] = False,
) -> None:
    """Read a store and name every damaged, missing or surplus item: exit 0 when sound, else 4."""
    from stores import Store
    from stores.maintenance import verify as find_problems

    with Store(store_path(store)) as opened:
        num_volumes = len(opened.volume_names())
        problems = list(find_problems(opened, quick=quick))
    rows = [(problem.kind, problem.item, problem.message) for problem in problems]
    data = {"volumes": num_volumes, "problems": [asdict(problem) for problem in problems]}
    summary = f"{num_volumes} volumes, {len(problems)} problems" if problems else f"{num_volumes} volumes, sound"
    common.output.result("verify", data, *([table(("kind", "item", "what"), rows)] if rows else []), summary)
    if problems:
        raise typer.Exit(PROBLEMS)
