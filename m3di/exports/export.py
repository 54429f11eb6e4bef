"""Write a run for use elsewhere: checked first, then written aside and renamed, never over something."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m3di.config import ExportConfig
from m3di.events import Report, ignore
from m3di.exports.bundle import prepare as prepare_monai
from m3di.exports.hub import prepare as prepare_hub
from m3di.exports.nnunet import prepare as prepare_nnunet
from m3di.exports.source import Source, load_source
from stores import atomic
from stores.errors import RefusedError

Fill = Callable[[Path], None]  # writes the files into a folder
FORMATS: Final[dict[str, Callable[[Source, Path, ExportConfig], Fill]]] = {
    "nnunet": prepare_nnunet,
    "monai": prepare_monai,
    "hub": prepare_hub,
}


@dataclass(frozen=True)
class Export:
    """What was exported.

    Attributes:
        out: The folder.
        to: The format.
        network: Name of the network.
        files: Its files, relative to the folder.
        provenance: See `Source`.
    """

    out: Path
    to: str
    network: str
    files: tuple[str, ...]
    provenance: dict[str, Any]


def export(
    run: Path,
    to: str,
    out: Path,
    *,
    settings: ExportConfig | None = None,
    named: str = "",
    report: Report = ignore,
) -> Export:
    """Export a run.

    Args:
        run: A pretraining or fine-tuning run, or a hub folder.
        to: `nnunet`, `monai` or `hub`.
        out: A folder that does not exist, or is empty.
        settings: See `ExportConfig`.
        named: The encoder that you name, where it is code that only the run names.
        report: Receives the events.

    Raises:
        RefusedError: E_PATH, when there is something in `out`; E_NETWORK, when the format has no such network;
            E_WEIGHTS, when there is no checkpoint; E_CONFIG, when something must be set.
        DamagedError: E_WEIGHTS, when the weights are damaged.
    """
    if to not in FORMATS:
        raise RefusedError("E_CONFIG", f"--to {to} is no format", hint=f"use one of {', '.join(FORMATS)}")
    _require_free(out)
    source = load_source(run, named=named)
    fill = FORMATS[to](source, run, settings or ExportConfig())
    out.parent.mkdir(parents=True, exist_ok=True)
    if not atomic.write_folder(out, fill, replace=False):
        _require_free(out)
    files = tuple(sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()))
    report("exported", out=str(out), to=to, network=source.name)
    return Export(out, to, source.name, files, dict(source.provenance))


def _require_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise RefusedError("E_PATH", f"there is something in {out} already", hint="choose another --out")
