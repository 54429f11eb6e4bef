"""`m3di finetune`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, DataOption, RunOption, data_path, new_run
from cli.output import facts_table


def finetune(
    common: Common,
    task: Annotated[str, typer.Option(help="the task: msd")],
    data: DataOption = None,
    run: RunOption = None,
    network: Annotated[
        str | None, typer.Option(help="vit, unetr, swin_unetr, nnformer [the one that fits the encoder]")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="a pretraining run to start from [else from scratch]")] = None,
    label_fraction: Annotated[float | None, typer.Option(help="share of the training subjects to use")] = None,
    max_steps: Annotated[int | None, typer.Option(help="length in steps, instead of epochs")] = None,
    epochs: Annotated[int | None, typer.Option(help="length in epochs")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run from its last checkpoint")] = False,
) -> None:
    """Train a segmentation network on a task, from scratch or from a pretrained encoder."""
    from m3di.training.finetune import finetune as train

    output = common.output
    config = common.load_config(
        finetune__label_fraction=label_fraction, finetune__max_steps=max_steps, finetune__epochs=epochs
    )
    path = new_run(run, f"finetune-{task}")
    summary = train(
        task, data_path(data, task), path, config,
        network=network, init=init, device=common.device, resume=resume, report=output.event,
    )  # fmt: skip
    facts = {name.replace("_", " "): value for name, value in asdict(summary).items()}
    output.result("finetune", asdict(summary), facts_table(facts))
