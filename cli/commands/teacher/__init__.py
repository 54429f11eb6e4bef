"""`m3di teacher`: one file a command, and the table that names them with an example."""

from collections.abc import Callable

from cli.commands.teacher.check import check
from cli.commands.teacher.fit import fit
from cli.commands.teacher.info import info
from cli.commands.teacher.pack import pack

TABLE: dict[str, tuple[Callable[..., None], str]] = {
    "info": (info, "m3di teacher info embedded"),
    "check": (check, "m3di teacher check local-dir:teachers/vit-b-32"),
    "fit": (fit, "m3di teacher fit --store store --splits 3"),
    "pack": (pack, "m3di teacher pack ViT-B-32@openai teachers/vit-b-32"),
}
