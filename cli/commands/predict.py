"""`m3di predict`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Common

QUARANTINED = 3


def predict(
    common: Common,
    scan: Annotated[list[Path], typer.Argument(help="scans, or folders of scans")],
    run: Annotated[Path, typer.Option("--run", help="a fine-tuning run")],
    out: Annotated[Path, typer.Option("--out", help="folder for the masks")],
) -> None:
    """Write a mask of every scan as NIfTI on the scan's own grid."""
    from m3di.evaluation.inference import predict_scans

    output = common.output
    written, refused = predict_scans(scan, run, out, device=common.device, report=output.event)
    output.result("predict", {"masks": written, "refused": refused}, *(str(path) for path in written))
    if refused:
        raise typer.Exit(QUARANTINED)
