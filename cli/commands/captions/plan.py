"""`m3di captions plan`."""

from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import facts_table


def plan(
    common: Common,
    store: StoreOption = None,
    pilot: Annotated[int | None, typer.Option(help="really ask about N slices, and project from the answers")] = None,
) -> None:
    """Say what captioning by a server would send, where, and at what cost; asks nothing without --pilot."""
    from m3di.captions.endpoint.projection import plan_captions

    output = common.output
    config = common.load_config(captions__captioner="endpoint", captions__endpoint__pilot=pilot)
    summary = plan_captions(store_path(store), config)
    shown = {**summary, **{f"leaves: {name}": value for name, value in summary["leaves"].items()}}
    cells = {name.replace("_", " "): _cell(value) for name, value in shown.items() if name != "leaves"}
    output.result("captions-plan", summary, facts_table({name: cell for name, cell in cells.items() if cell != ""}))


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_cell(part)}" for name, part in value.items())
    return "; ".join(map(str, value)) if isinstance(value, list) else value
