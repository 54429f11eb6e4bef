"""`m3di evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, DataOption
from cli.output import table


def evaluate(
    common: Common,
    run: Annotated[Path, typer.Option("--run", help="a fine-tuning run")],
    data: DataOption = None,
) -> None:
    """Score a run on its test subjects, on the scanner's grid: per case, mean, 95% interval."""
    from m3di.evaluation.evaluate import evaluate as score

    output = common.output
    result = score(run, data=data, device=common.device, report=output.event)
    names = list(result.classes.values())
    rows = [[case.case, *(case.dice[value] for value in result.classes)] for case in result.cases]
    for title, position in (("mean", 0), ("95% from", 1), ("95% to", 2)):
        rows.append([title, *(result.mean[name][position] for name in names)])
    lines = [f"warning: {warning}" for warning in result.warnings]
    lines.append("mean Dice over classes and cases {:.4f} [{:.4f}, {:.4f}]".format(*result.mean["all"]))
    output.result("evaluate", result.to_dict(), table(("case", *names), rows), *lines)
