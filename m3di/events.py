"""How long work tells its caller what happens: plain events, which the command line shows or prints as JSON."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

Check = Callable[[], None]  # called between pieces of long work; raises when it is to stop


@runtime_checkable
class Report(Protocol):
    """Receives the events of a long command, in order, from one thread."""

    def __call__(self, event: str, /, **facts: object) -> None:
        """Take one event, for example `committed` with `volume`."""


def ignore(event: str, /, **facts: object) -> None:
    """Report to nobody."""


def go_on() -> None:
    """The `Check` of work that nobody stops."""
