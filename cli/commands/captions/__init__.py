"""`m3di captions`: one file a command, and the table that names them with an example."""

from collections.abc import Callable

from cli.commands.captions.run import run

TABLE: dict[str, tuple[Callable[..., None], str]] = {
    "run": (run, "m3di captions run --store store --captioner endpoint --set captions.endpoint.model=NAME"),
}
