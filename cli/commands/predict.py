"""`m3di predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Common
from cli.output import table

if TYPE_CHECKING:
    from m3di.evaluation.predict import Predictions

QUARANTINED = 3


def predict(
    common: Common,
    scan: Annotated[list[Path], typer.Argument(help="scans, folders of scans, or DICOM series")],
    run: Annotated[
        list[Path], typer.Option("--run", help="a fine-tuning run, or a folder of repeats; several are averaged")
    ],
    out: Annotated[Path, typer.Option("--out", help="a folder; of a classification also a .csv or .tsv file")],
) -> None:
    """Write a mask of every scan on the scan's own grid, or a table of class probabilities."""
    from m3di.evaluation.predict import predict_scans

    output, config = common.output, common.load_config()
    result = predict_scans(
        scan, run, out, settings=config.predict, device=common.device, named=config.encoder.name, report=output.event
    )
    facts = {"masks": result.written, "predictions": result.notes, "refused": result.refused}
    output.result("predict", facts, *_shown(result))
    if result.refused:
        raise typer.Exit(QUARANTINED)


def _shown(result: "Predictions") -> list[object]:
    classified = [note for note in result.notes if "probabilities" in note]
    if not classified:
        return [str(path) for path in result.written]
    rows = [[note["case"], note["class"], max(note["probabilities"])] for note in classified]
    return [table(("case", "class", "probability"), rows), *(str(path) for path in result.written)]
