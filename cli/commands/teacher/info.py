"""`m3di teacher info`."""

from typing import Annotated

import typer

from cli.commands.teacher.cards import card_table
from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def info(
    common: Common,
    spec: Annotated[str | None, typer.Argument(help="a teacher; by default the store's")] = None,
    store: StoreOption = None,
) -> None:
    """Show a teacher's towers, sizes, precision and fingerprint, and how the store's one retrieves."""
    from m3di.teachers.clip import load_teacher
    from m3di.teachers.packing import describe_teacher, teacher_spec
    from m3di.teachers.stage import current_teacher

    kept = None if spec else current_teacher(store_path(store))
    name = teacher_spec(spec, kept.folder if kept else None)
    facts = describe_teacher(load_teacher(name, dtype=common.load_config().teacher.precision), name)
    own = {"store's facts": kept.facts} if kept else {}
    shown = [facts_table(facts)]
    if kept and kept.facts.get("card"):
        shown.append(card_table(kept.facts["card"]))
    common.output.result("teacher-info", facts | own, *shown)
