"""`m3di teacher`: one file a command, and the table that names them with an example."""

from collections.abc import Callable

TABLE: dict[str, tuple[Callable[..., None], str]] = {}
