"""`m3di doctor`."""

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table

PROBLEMS = 4


def doctor(common: Common, store: StoreOption = None) -> None:
    """Check this machine: versions, extras, device, memory, disk, known names, the store; exit 4 if one is wrong."""
    from m3di.machine import examine_machine

    checks = examine_machine(store_path(store))
    rows = [("ok" if check.sound else "wrong", check.name, check.finding) for check in checks]
    data = {"checks": [vars(check) for check in checks]}
    common.output.result("doctor", data, table(("", "what", "finding"), rows))
    if not all(check.sound for check in checks):
        raise typer.Exit(PROBLEMS)
