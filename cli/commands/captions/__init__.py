"""`m3di captions`: one file a command, and the table that names them with an example."""

from collections.abc import Callable

from cli.commands.captions.audit import audit
from cli.commands.captions.export import export
from cli.commands.captions.import_ import import_
from cli.commands.captions.plan import plan
from cli.commands.captions.run import run

TABLE: dict[str, tuple[Callable[..., None], str]] = {
    "plan": (plan, "m3di captions plan --store store --set captions.endpoint.model=NAME --pilot 5"),
    "run": (run, "m3di captions run --store store --captioner endpoint --set captions.endpoint.model=NAME"),
    "import": (import_, "m3di captions import captions.csv --store store --dry-run"),
    "export": (export, "m3di captions export captions.csv --store store"),
    "audit": (audit, "m3di captions audit --store store --out weights.jsonl"),
}
