"""`m3di demo`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common
from cli.output import facts_table, table


def demo(
    common: Common,
    out: Annotated[Path, typer.Option("--out", help="folder for everything the demo makes")] = Path("m3di-demo"),
) -> None:
    """Run the whole path on real brain MRI in a few minutes: build, pretrain, fine-tune, query, report."""
    from m3di.demo.run import run_demo

    output = common.output
    result = run_demo(out, seed=common.seed or 0, device=common.device, report=output.event)
    places = {name: str(path) for name, path in result.places.items()}
    rows = [(name, *scores) for name, scores in result.dice.items()]
    output.result(
        "demo",
        {"places": places, "dice": result.dice, "seconds": result.seconds},
        table(("start", "mean Dice", "95% from", "95% to"), rows),
        facts_table(places),
        f"open {places['report']} in a browser ({result.seconds:.0f} s)",
    )
