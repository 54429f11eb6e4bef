"""`m3di captions audit`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.captions.shown import flat
from cli.options import Common, StoreOption, store_path
from cli.output import facts_table, table


def audit(
    common: Common,
    store: StoreOption = None,
    captioner: Annotated[
        str, typer.Option(help="whose: current, a name such as describe, or the beginning of a fingerprint")
    ] = "current",
    out: Annotated[Path | None, typer.Option(help="write a weight a slice, as JSON lines, for sampling")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="look at N volumes, drawn by --seed")] = None,
) -> None:
    """Check captions: duplicates, wrong plane, side, organ or modality, truncation, outliers, identifiers."""
    from m3di.captions.audit import audit_captions

    output = common.output
    found = audit_captions(
        store_path(store), captioner=captioner, out=out, limit=limit, seed=common.load_config().seed
    )
    rows = [
        (check["check"], check["slices"], f"{check['share']:.1%}", check["weight"], ", ".join(check["examples"]))
        for check in found["checks"]
    ]
    facts = flat({name: value for name, value in found.items() if name not in ("checks", "notes")})
    output.result(
        "captions-audit", found,
        facts_table(facts),
        table(("check", "slices", "share", "weight", "first ones"), rows),
        *(f"note: {note}" for note in found["notes"]),
    )  # fmt: skip
