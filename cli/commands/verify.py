"""`m3di verify`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import Common, HtmlOption, StoreOption, store_path
from cli.output import table

PROBLEMS = 4


def verify(
    common: Common,
    store: StoreOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="compare sizes, do not read every byte")] = False,
    html: HtmlOption = None,
) -> None:
    """Read a store and name every damaged, missing or surplus item: exit 0 when sound, else 4."""
    from stores.verification import verify as find_problems

    path = store_path(store)
    problems = list(find_problems(path, quick=quick))
    if html:
        from m3di.report.pages.store import write_verification

        write_verification(path, problems, html, quick=quick)
    rows = [(problem.kind, problem.item, problem.message) for problem in problems]
    serious = sum(problem.serious for problem in problems)
    data = {"sound": not serious, "problems": [asdict(problem) for problem in problems]}
    summary = f"{serious} items damaged or missing" if serious else "sound"
    if len(problems) > serious:
        summary += f"; {len(problems) - serious} surplus or not finished"
    common.output.result("verify", data, *([table(("kind", "item", "what"), rows)] if rows else []), summary)
    if serious:
        raise typer.Exit(PROBLEMS)
