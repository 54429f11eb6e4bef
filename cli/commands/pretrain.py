"""`m3di pretrain`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.estimates import tell_estimate
from cli.options import Common, LeaveOutOption, RunOption, StoreOption, new_run, store_path
from cli.output import facts_table

if TYPE_CHECKING:
    from m3di.config import Config


def pretrain(
    common: Common,
    store: StoreOption = None,
    run: RunOption = None,
    encoder: Annotated[str | None, typer.Option(help="its name, such as vit; m3di doctor lists them")] = None,
    slices_per_volume: Annotated[int | None, typer.Option(help="K: slices of a volume in a step")] = None,
    leave_out: LeaveOutOption = None,
    max_steps: Annotated[int | None, typer.Option(help="length in steps, instead of epochs")] = None,
    epochs: Annotated[int | None, typer.Option(help="length in epochs")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="steps between checkpoints")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run from its last checkpoint")] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="try a few steps, say what time and memory the run needs; keep nothing")
    ] = False,
) -> None:
    """Pretrain a 3D encoder against a store's embeddings.

    On several devices: torchrun --nproc-per-node 2 -m -- cli pretrain ...
    """
    output = common.output
    config = common.load_config(
        encoder__name=encoder,
        pretrain__slices_per_volume=slices_per_volume,
        pretrain__leave_out=leave_out or None,
        pretrain__max_steps=max_steps,
        pretrain__epochs=epochs,
        pretrain__checkpoint_every=checkpoint_every,
    )
    if estimate:
        _estimate(common, store_path(store), config)
        return
    path = new_run(run, f"pretrain-{config.encoder.name}")

    from m3di.training.pretrain import pretrain as train  # after the settings: a slip in them is told at once

    summary = train(store_path(store), path, config, device=common.device, resume=resume, report=output.event)
    if not summary.is_first:
        return
    facts: dict[str, object] = {"run": summary.run, "volumes seen": summary.samples_seen}
    facts |= {"training volumes": summary.num_train, "held-out volumes": summary.num_held_out}
    if summary.num_left_out:
        facts["people left out"] = summary.num_left_out
    if summary.retrieval is not None:
        scores = summary.retrieval
        facts["held-out slices"] = scores.num_slices
        for part, recall in scores.recall.items():
            facts[f"{part} recall@1, 5, 10"] = ", ".join(f"{value:.3f}" for value in recall.values())
        facts["chance"] = ", ".join(f"{value:.3f}" for value in scores.chance.values())
        facts["plane accuracy"] = scores.plane_accuracy
        facts["position error"] = scores.position_error
    if summary.localisation is not None:
        found = summary.localisation
        facts["plane accuracy within the volume"] = found.plane_accuracy
        if found.position_error is not None:
            facts["position error within the volume"] = found.position_error
            facts["position error by chance"] = found.position_error_chance
    output.result("pretrain", asdict(summary), facts_table(facts))


def _estimate(common: Common, store: Path, config: "Config") -> None:
    from m3di.training.estimate import estimate_pretraining

    found = estimate_pretraining(store, config, device=common.device)
    batch, asked = config.pretrain.batch_size, config.pretrain.accumulation
    if found.fitting is None:
        advice = "no part of a batch fits: a smaller encoder or cube, or --set pretrain.gradient_checkpointing=true"
    elif found.fitting * asked < batch:
        advice = f"a batch of {batch} fits in parts: --set pretrain.accumulation={batch // found.fitting}"
    else:
        advice = f"a batch of {batch} fits"
    tell_estimate(common.output, "pretrain-estimate", found, advice)
