"""`m3di teacher pack`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common
from cli.output import facts_table


def pack(
    common: Common,
    spec: Annotated[str, typer.Argument(help="a teacher: ARCH@TAG, hf-hub:ORG/ID, embedded, ...")],
    folder: Annotated[Path, typer.Argument(help="where to write it")],
    licence: Annotated[str, typer.Option(help="what is known of the weights' licence")] = "",
) -> None:
    """Write a teacher with its tokenizer as a folder that loads anywhere without a network: local-dir:FOLDER."""
    from m3di.teachers import packing

    facts = packing.pack(spec, folder, precision=common.load_config().teacher.precision, licence=licence)
    shown = {name: value for name, value in facts.items() if name not in ("schema", "files")}
    hint = f"use it with --teacher local-dir:{folder}; m3di teacher check local-dir:{folder} tries it"
    common.output.result("teacher-pack", facts | {"schema": "m3di.teacher-pack/1"}, facts_table(shown), hint)
