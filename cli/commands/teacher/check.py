"""`m3di teacher check`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table

PROBLEMS = 4


def check(
    common: Common,
    spec: Annotated[str | None, typer.Argument(help="a teacher; by default the store's")] = None,
    store: StoreOption = None,
) -> None:
    """Load a teacher and try whether it can be trusted with a store; exit 4 when it cannot."""
    from m3di.teachers import packing
    from m3di.teachers.stage import current_teacher
    from m3di.training.runtime import pick_device

    name = packing.teacher_spec(spec, None if spec else current_teacher(store_path(store)).folder)
    precision = common.load_config().teacher.precision
    findings = packing.check(name, precision=precision, device=str(pick_device(common.device)))
    sound = all(finding.sound for finding in findings)
    rows = [("ok" if finding.sound else "wrong", finding.name, finding.found) for finding in findings]
    data = {"spec": name, "sound": sound, "findings": [asdict(finding) for finding in findings]}
    common.output.result("teacher-check", data, table(("", "what", "finding"), rows))
    if not sound:
        raise typer.Exit(PROBLEMS)
