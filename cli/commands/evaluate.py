"""`m3di evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Common, DataOption
from cli.output import Output, table
from stores.errors import RefusedError

if TYPE_CHECKING:
    from m3di.evaluation.pairs import PairsEvaluation

QUARANTINED = 3


def evaluate(
    common: Common,
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", help="a fine-tuning run, or a folder of repeats; again for other seeds or folds"),
    ] = None,
    data: DataOption = None,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", help="another run, to compare on the same test cases; repeatable"),
    ] = None,
    prediction: Annotated[
        Path | None, typer.Option("--prediction", help="instead of a run: folder of masks (NIfTI, or CHAOS PNG)")
    ] = None,
    reference: Annotated[Path | None, typer.Option("--reference", help="folder of true masks, equally named")] = None,
    task: Annotated[str | None, typer.Option(help="names the values of --prediction and --reference")] = None,
) -> None:
    """Score a run on its test subjects, or masks against masks: per case, mean, 95% interval."""
    if run and prediction is None and reference is None and task is None:
        _evaluate_run(common, run, against or [], data)
    elif not run and not against and data is None and prediction is not None and reference is not None:
        _evaluate_masks(common, prediction, reference, task)
    else:
        message = "neither one run nor masks against masks are given"
        raise RefusedError("E_CONFIG", message, hint="give --run, or --prediction and --reference [--task]")


def _evaluate_run(common: Common, runs: list[Path], against: list[Path], data: Path | None) -> None:
    from cli.commands.scores import shown_comparison, shown_scores
    from m3di.evaluation.against import compare
    from m3di.evaluation.evaluate import evaluate as score

    output, config = common.output, common.load_config()
    results = [
        score(
            given, data=data, device=common.device, tolerance_mm=config.evaluate.tolerance_mm,
            named=config.encoder.name, report=output.event,
        )
        for given in (runs, against) if given
    ]  # fmt: skip
    shown = shown_scores(results[0], every_case=common.verbose)
    found = results[0].to_dict()
    if against:
        comparison = compare(*results)
        found["against"] = comparison.to_dict()
        shown += shown_comparison(comparison, results[0].metrics)
    output.result("evaluate", found, *shown)
    if any(result.refused for result in results):
        raise typer.Exit(QUARANTINED)


def _evaluate_masks(common: Common, prediction: Path, reference: Path, task: str | None) -> None:
    from m3di.evaluation.pairs import evaluate_pairs

    output = common.output
    tolerance_mm = common.load_config().evaluate.tolerance_mm
    result = evaluate_pairs(prediction, reference, task=task, tolerance_mm=tolerance_mm, report=output.event)
    _show_masks(output, result)
    if result.refused:
        raise typer.Exit(QUARANTINED)


def _show_masks(output: Output, result: "PairsEvaluation") -> None:
    from cli.commands.scores import words
    from m3di.evaluation.segmentation import METRICS

    titles = ("Dice", f"surface Dice {result.tolerance_mm:g} mm", "HD95 mm", "ASSD mm", "MSSD mm", "RAVD %")
    rows = [
        [case.case, result.classes[value], *(getattr(scores, metric) for metric in METRICS)]
        for case in result.cases
        for value, scores in case.scores.items()
    ]
    means = [[name, *(words(intervals[metric]) for metric in METRICS)] for name, intervals in result.mean.items()]
    lines = [f"refused: {one.case}: {one.code} {one.message}" for one in result.refused]
    output.result(
        "evaluate",
        result.to_dict(),
        table(("case", "class", *titles), rows),
        table(("mean [95% interval]", *titles), means),
        *lines,
        result.leaks,
    )
