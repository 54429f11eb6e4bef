"""What a run of training will need, shown: `--estimate` of `m3di pretrain` and `m3di finetune`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cli.output import Output, duration, facts_table

if TYPE_CHECKING:
    from m3di.training.estimate import Estimate

PROBLEMS = 4


def tell_estimate(output: Output, schema: str, found: "Estimate", advice: str) -> None:
    """Show an estimate and what follows from it; exit code 4 when nothing fits."""
    facts: dict[str, object] = {"steps": found.steps, "memory, GiB": found.memory_gib}
    facts["free memory, GiB"] = "not known" if found.free_gib is None else found.free_gib
    if found.step_s is not None and found.total_s is not None:
        facts |= {"seconds a step": found.step_s, "time": duration(found.total_s)}
    output.result(schema, {**asdict(found), "advice": advice}, facts_table(facts), advice)
    if found.fitting is None:
        raise typer.Exit(PROBLEMS)
