"""The page as HTML: with its script and styles beside it on a server, or inside it in a file, with a policy for each.

Data reach the page as JSON only, and its script shows them as text only.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

from markupsafe import Markup

from m3di.report.policy import inline_source

STYLES: Final = ("report.css", "explorer.css")
SCRIPTS: Final = ("text.js", "source.js", "planes.js", "curves.js", "map.js", "answers.js", "explorer.js")
_POLICY: Final = "default-src 'none'; base-uri 'none'; form-action 'none'"
SERVED_POLICY: Final = (
    f"{_POLICY}; frame-ancestors 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:"
)


@cache
def static_file(name: str) -> str:
    """A style or script by its name in `STYLES` or `SCRIPTS`; the first style is the one of all m3di's pages."""
    if name == "report.css":
        return (files("m3di.report") / "templates" / "page.css").read_text(encoding="utf-8")
    return (files("m3di.query.page") / "static" / name).read_text(encoding="utf-8")


@cache
def served_document() -> str:
    """The page of the server, which fetches its data."""
    return _render(styles=STYLES, scripts=SCRIPTS)


def filed_document(data: Mapping[str, Any]) -> str:
    """The page that needs no server: everything it shows is in it, and the browser loads and runs nothing else."""
    style = "\n".join(static_file(name) for name in STYLES)
    script = "\n".join(static_file(name) for name in SCRIPTS)
    policy = f"{_POLICY}; script-src {inline_source(script)}; style-src {inline_source(style)}; img-src data:"
    return _render(style=Markup(style), script=Markup(script), policy=policy, data=Markup(_embedded(data)))


def _render(**values: Any) -> str:
    from jinja2 import Environment, PackageLoader  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("m3di.query.page", "static"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("explorer.html").render(**values)


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that ends no element and opens none: without `<`, `>` and `&`, and ASCII alone."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
