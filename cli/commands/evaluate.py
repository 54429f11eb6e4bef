"""`m3di evaluate`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Common, DataOption, HtmlOption
from cli.output import Output, plain, table
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
    html: HtmlOption = None,
) -> None:
    """Score a run on its test subjects, or masks against masks: per case, mean, 95% interval."""
    if run and prediction is None and reference is None and task is None:
        _evaluate_run(common, run, against or [], data, html)
    elif not run and not against and data is None and prediction is not None and reference is not None:
        _evaluate_masks(common, prediction, reference, task, html)
    else:
        message = "neither one run nor masks against masks are given"
        raise RefusedError("E_CONFIG", message, hint="give --run, or --prediction and --reference [--task]")


def _evaluate_run(
    common: Common, runs: list[Path], against: list[Path], data: Path | None, html: Path | None
) -> None:  # fmt: skip
    from cli.commands.scores import shown_comparison, shown_scores
    from m3di.evaluation.against import compare
    from m3di.evaluation.evaluate import evaluate as score
    from m3di.report.pages.evaluation import write_evaluation_report

    output, config = common.output, common.load_config()
    named = config.encoder.name
    results = [
        score(
            given, data=data, device=common.device, tolerance_mm=config.evaluate.tolerance_mm, named=named,
            report=output.event,
        )
        for given in (runs, against) if given
    ]  # fmt: skip
    shown = shown_scores(results[0], every_case=common.verbose)
    found = results[0].to_dict()
    comparison = compare(*results) if against else None
    if comparison is not None:
        found["against"] = comparison.to_dict()
        shown += shown_comparison(comparison, results[0].metrics)
    report = partial(
        write_evaluation_report, data=data, pictures=config.evaluate.pictures, device=common.device, named=named
    )
    if len(against) == 1:
        report(results[1], against)
    if html or len(runs) == 1:
        found["report"] = str(report(results[0], runs, file=html, comparison=comparison))
        shown.append(f"report: {plain(found['report'])}")
    output.result("evaluate", found, *shown)
    if any(result.refused for result in results):
        raise typer.Exit(QUARANTINED)


def _evaluate_masks(
    common: Common, prediction: Path, reference: Path, task: str | None, html: Path | None
) -> None:  # fmt: skip
    from m3di.evaluation.pairs import evaluate_pairs
    from m3di.report.pages.masks import pairs_page
    from m3di.report.write import write_page

    output = common.output
    tolerance_mm = common.load_config().evaluate.tolerance_mm
    result = evaluate_pairs(prediction, reference, task=task, tolerance_mm=tolerance_mm, report=output.event)
    if html:
        write_page(pairs_page(result, prediction=str(prediction), reference=str(reference)), html)
    _show_masks(output, result)
    if result.refused:
        raise typer.Exit(QUARANTINED)


def _show_masks(output: Output, result: "PairsEvaluation") -> None:
    from m3di.evaluation.segmentation import METRICS
    from m3di.evaluation.titles import title_of, words

    titles = [title_of(metric, result.tolerance_mm) for metric in METRICS]
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
