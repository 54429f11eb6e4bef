"""From a page to one HTML file without outside addresses, foreign scripts or trust in any text."""

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from m3di.report import chart
from m3di.report.numbers import format_number
from m3di.report.page import Page
from m3di.report.pictures import data_uri
from m3di.report.policy import inline_source
from stores.atomic import write_bytes
from stores.errors import RefusedError

# Control characters, lone surrogates, and marks that are invisible or turn around what stands beside them make a name
# read as another one, or the file unreadable; they are shown as what they are: something that cannot be shown.
_UNSHOWABLE = {
    code: "�"
    for span in (
        (0x00, 0x08),
        (0x0B, 0x1F),
        (0x7F, 0x9F),
        (0x061C, 0x061C),
        (0x200B, 0x200F),
        (0x2028, 0x202E),
        (0x2060, 0x206F),
        (0xD800, 0xDFFF),
        (0xFEFF, 0xFEFF),
        (0xFFF9, 0xFFFB),
        (0xE0000, 0xE007F),
    )
    for code in range(span[0], span[1] + 1)
}


def write_page(page: Page, path: Path) -> Path:
    """Write a page as one self-contained HTML file, whole or not at all.

    Args:
        page: What to show; the same page gives the same bytes.
        path: The file; folders above it are made.

    Returns:
        `path`.

    Raises:
        ResourceError: E_DISK, when there is no room.
        RefusedError: E_PATH, when the place may not be written.
    """
    prepare_place(path)
    html = _environment().get_template("page.html").render(page=page)
    write_bytes(path, html.encode("utf-8"))
    return path


def prepare_place(path: Path) -> None:
    """Make the folder of a page, and refuse a place that cannot be written; before anything takes time.

    Raises:
        RefusedError: E_PATH.
    """
    hint = "give a file's name in a folder that you may write to"
    if path.is_dir():
        raise RefusedError("E_PATH", f"{path} is a folder", hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError("E_PATH", f"cannot write {path}: {error.strerror}", hint=hint) from error


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("m3di.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(data_uri=data_uri, draw=chart.draw, number=format_number)
    script = (resources.files("m3di.report") / "templates" / "sort.js").read_text(encoding="ascii")
    environment.globals.update(script=Markup(script), script_source=Markup(inline_source(script)))
    return environment


def _shown(value: Any) -> Any:
    """Replace what a page cannot show in every text that a template prints."""
    return value.translate(_UNSHOWABLE) if isinstance(value, str) else value
