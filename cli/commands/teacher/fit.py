"""`m3di teacher fit`."""

from typing import Annotated

import typer

from cli.commands.teacher.cards import card_table
from cli.options import Common, LeaveOutOption, StoreOption, store_path
from cli.output import facts_table


def fit(
    common: Common,
    store: StoreOption = None,
    teacher: Annotated[
        str | None, typer.Option(help="embedded, ARCH@TAG, hf-hub:ID, local-dir:PATH, random:ARCH, ...")
    ] = None,
    captioner: Annotated[str | None, typer.Option(help="whose captions: describe, endpoint or table")] = None,
    leave_out: LeaveOutOption = None,
    splits: Annotated[int, typer.Option(min=1, help="over how many volume splits to score it")] = 1,
) -> None:
    """Fit a teacher to a store's slices and captions and score it; build-store with the same settings uses it."""
    from m3di.teachers.stage import fit_in_store

    output = common.output
    config = common.load_config(
        teacher__spec=teacher, captions__captioner=captioner, pretrain__leave_out=leave_out or None
    )
    facts = fit_in_store(store_path(store), config, device=common.device, splits=splits, report=output.event)
    shown: dict[str, object] = {name: facts[name] for name in ("fingerprint", "spec", "embedding_dim")}
    dense = facts.get("dense") or {}
    shown["fitted to volumes"] = len(facts["fitted_on"])
    shown |= {f"dense {name}": value for name, value in dense.items()}
    output.result("teacher-fit", facts, facts_table(shown), card_table(facts["card"]))
