"""`m3di doctor`."""

import typer

from cli.options import Common, StoreOption, store_path
from cli.output import table

PROBLEMS = 4


def doctor(common: Common, store: StoreOption = None) -> None:
    """Check this machine: versions, device, weights at hand, networks and tasks known, disk."""
    from m3di.inspect import examine_machine

    checks = examine_machine(store_path(store))
    rows = [("ok" if check.sound else "wrong", check.name, check.finding) for check in checks]
    data = {"checks": [vars(check) for check in checks]}
    common.output.result("doctor", data, table(("", "what", "finding"), rows))
    if not all(check.sound for check in checks):
        raise typer.Exit(PROBLEMS)
