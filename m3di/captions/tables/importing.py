"""A table of captions taken into a store: checked as a whole first, with what it covers and what looks wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from m3di.captions.registry import table_captioner
from m3di.captions.stage import caption_store
from m3di.captions.tables.captioner import Coverage, TableCaptioner
from m3di.captions.tables.rows import require_ending
from m3di.config import Config
from m3di.events import Report
from stores import Store
from stores.geometry import PLANES


def import_captions(path: Path, file: Path, config: Config, *, dry_run: bool, report: Report) -> dict[str, Any]:
    """Check a table against a store and, unless `dry_run`, caption the store with it.

    Args:
        path: The store's folder.
        file: The table, see `m3di.captions.tables.rows`.
        config: All settings; captioner and file of `captions` are set here.
        dry_run: Check only.
        report: Receives W_TEXT_SANITIZED and W_PHI by line, and the events of captioning.

    Returns:
        What the table covers; after captioning, with `described`, the number of volumes captioned anew.

    Raises:
        RefusedError: E_CAPTION and others, before anything is written; see `TableCaptioner`.
    """
    require_ending(file)
    settings = replace(config, captions=replace(config.captions, captioner="table", file=str(file)))
    with Store(path) as store:
        table = table_captioner(settings, store)
        coverage = table.coverage
        if dry_run:
            table.warn(report)
    found = _as_facts(coverage, table)
    if dry_run:
        return found
    done = caption_store(path, settings, report=report)
    return {**found, "described": done["described"], "texts": done["texts"]}


def _as_facts(coverage: Coverage, table: TableCaptioner) -> dict[str, Any]:
    return {
        "rows": coverage.rows,
        "volumes": coverage.volumes,
        "volumes_not_in_store": coverage.unknown[0],
        "volumes_not_covered": len(coverage.uncovered),
        "first_not_covered": list(coverage.uncovered[:5]),
        "slices": {
            plane: {"covered": covered, "described": total - covered}
            for plane, (total, covered) in zip(PLANES, coverage.slices, strict=True)
        },
        "lines_sanitised": table.texts.sanitised.count,
        "lines_with_suspected_identifiers": table.texts.identifiers.count,
    }
