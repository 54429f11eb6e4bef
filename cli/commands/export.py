"""`m3di export`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common


def export(
    common: Common,
    run: Annotated[Path, typer.Option("--run", help="a pretraining or fine-tuning run, or an exported hub folder")],
    to: Annotated[str, typer.Option("--to", help="nnunet, monai or hub")],
    out: Annotated[Path, typer.Option("--out", help="a folder that does not exist, or is empty")],
) -> None:
    """Write a run for use elsewhere: nnU-Net's pretrained weights, a MONAI bundle, or a folder for model hubs."""
    from dataclasses import asdict

    from m3di.exports import export as write

    output, config = common.output, common.load_config()
    found = write(run, to, out, settings=config.export, named=config.encoder.name, report=output.event)
    output.result("export", asdict(found), *(str(found.out / name) for name in found.files))
