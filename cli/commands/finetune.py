"""`m3di finetune`."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated

import typer

from cli.estimates import tell_estimate
from cli.options import Common, DataOption, RunOption, data_path, new_run
from cli.output import facts_table, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3di.config import Config
    from m3di.events import Report
    from m3di.training.finetune import FinetuneSummary

QUARANTINED = 3
TASKS = "chaos, chaos-mr, mmwhs, mmwhs-mr, oasis-seg, oasis-ad, msd, labelled, table"


def finetune(
    common: Common,
    task: Annotated[str, typer.Option(help=f"the task: {TASKS}")],
    data: DataOption = None,
    run: RunOption = None,
    network: Annotated[
        str | None,
        typer.Option(help="its name, such as nnformer; m3di doctor lists them [the one that fits the encoder]"),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE", help="a pretraining run, a .safetensors file or FAMILY:PATH [else from scratch]"
        ),
    ] = None,
    label_fraction: Annotated[float | None, typer.Option(help="share of the training subjects to use")] = None,
    repeats: Annotated[int, typer.Option(help="runs, with seeds one after the other")] = 1,
    max_steps: Annotated[int | None, typer.Option(help="length in steps, instead of epochs")] = None,
    epochs: Annotated[int | None, typer.Option(help="length in epochs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run from its last checkpoint")] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="try a few steps, say what time and memory the run needs; keep the task's cubes alone"
        ),
    ] = False,
) -> None:
    """Train a network on a task, from scratch or from a pretrained encoder."""
    from m3di.report.pages.training import write_training_report
    from m3di.tasks.registry import declared

    output = common.output
    declaration = declared(task)
    config = common.load_config(
        defaults=declaration.settings,
        finetune__label_fraction=label_fraction, finetune__max_steps=max_steps, finetune__epochs=epochs,
    )  # fmt: skip
    path, source = new_run(run, f"finetune-{task}"), data_path(data, declaration.folder)

    from m3di.training.finetune import finetune as train  # after the settings: a slip in them is told at once
    from m3di.training.repeats import repeat

    one = partial(
        train, task, source, network=network, init=init, cubes_folder=path.parent / ".data", device=common.device,
        resume=resume, report=output.event,
    )  # fmt: skip
    if estimate:
        _estimate(common, one, config)
        return
    runs = repeat(path, config, repeats, one)
    if repeats == 1:
        (summary,) = runs
        facts = {name.replace("_", " "): value for name, value in asdict(summary).items()}
        output.result("finetune", asdict(summary), facts_table(facts))
    else:
        output.event("report", file=str(write_training_report(path)))
        shown = {"run": path, "repeats": [asdict(summary) for summary in runs]}
        output.result("finetune", shown, *_repeats_table(path, runs))
    if any(summary.num_quarantined for summary in runs):
        raise typer.Exit(QUARANTINED)


def _estimate(common: Common, train: "Callable[..., FinetuneSummary]", config: "Config") -> None:
    from m3di.training.estimate import estimate_finetuning

    def silent(run: Path, settings: "Config", report: "Report") -> object:
        return train(run, settings, report=report)

    found = estimate_finetuning(silent, config, device=common.device)
    batch = config.finetune.batch_size
    if found.fitting is None:
        advice = "not even one volume fits: a smaller network or cube"
    elif found.fitting < batch:
        advice = f"a batch of {batch} does not fit: --set finetune.batch_size={found.fitting}"
    else:
        advice = f"a batch of {batch} fits"
    tell_estimate(common.output, "finetune-estimate", found, advice)


def _repeats_table(run: Path, runs: "list[FinetuneSummary]") -> list[object]:
    rows = [(one.run.name, one.samples_seen, "" if one.best is None else f"{one.best:.4f}") for one in runs]
    best = [one.best for one in runs if one.best is not None]
    lines = [f"{len(runs)} runs in {run}"]
    if len(best) > 1:
        lines.append(f"best validation score {mean(best):.4f}, standard deviation {stdev(best):.4f}")
    return [table(("repeat", "volumes seen", "best validation"), rows), *lines]
