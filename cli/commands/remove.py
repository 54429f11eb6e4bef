"""`m3di remove`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def remove(
    common: Common,
    store: StoreOption = None,
    volume: Annotated[
        list[str] | None, typer.Option("--volume", metavar="ID", help="a volume or refused case; repeatable")
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", metavar="[SET/]ID", help="all volumes of a person; repeatable"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would go, and remove nothing")] = False,
    take_back: Annotated[
        list[Path] | None,
        typer.Option("--take-back", metavar="SCAN", help="let builds take a scan again that was removed; repeatable"),
    ] = None,
) -> None:
    """Take scans out of a store for good, as when consent is withdrawn; builds then leave them out."""
    from m3di import removal
    from stores.errors import RefusedError

    path, storage = store_path(store), common.load_config().storage
    if take_back:
        if volume or subject or dry_run:
            raise RefusedError("E_CONFIG", "--take-back stands alone", hint="remove in a command of its own")
        facts = removal.take_back(path, storage, take_back)
        common.output.result("remove", facts, f"{facts['taken_back']} scans may be built again")
        return
    facts = removal.remove(path, storage, volumes=volume or [], subjects=subject or [], dry_run=dry_run)
    before, after = facts["num_bytes"]
    shown = {
        "volumes": ", ".join(facts["volumes"]),
        "files of voxels": facts["chunks"],
        "sets of captions": facts["captions"],
        "sets of embeddings": facts["row_sets"],
        "answers of captioning servers": facts["replies"],
        "bytes": before if dry_run else f"{before} before, {after} now",
    }
    common.output.result("remove", facts, facts_table(shown), *_advice(facts))


def _advice(facts: dict[str, object]) -> list[str]:
    """What the store cannot do by itself."""
    lines = ["take the scans out of the sources, too; copies, runs and pages made of the store are not touched"]
    if facts["teachers"]:
        lines.append(
            "a teacher was fitted to them and keeps what it learnt: only a store that is built anew is free of it"
        )
    return lines
