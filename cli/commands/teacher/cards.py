"""How a teacher's card is shown."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from cli.output import table

_COLUMNS = ("split", "teacher", "text to slice @1", "@5", "@10", "slice to text @1", "@5", "@10", "right plane",
            "position error")  # fmt: skip


def card_table(card: Mapping[str, Any]) -> Table:
    """Recall both ways, right plane and position error, before and after the fit, a line each; chance last."""
    rows: list[tuple[object, ...]] = []
    for scored in card.get("splits") or [card]:
        rows += [_row(scored.get("seed", ""), when, scored[when]) for when in ("before", "after") if when in scored]
        if "after" in scored:
            after = scored["after"]
            chance = {"text_to_image": after["chance"], "image_to_text": after["chance"]}
            rows.append(_row(scored.get("seed", ""), f"chance among {after['items']}", chance))
    return table(_COLUMNS, rows, title="held-out volumes")


def _row(split: object, name: str, scores: Mapping[str, Any]) -> tuple[object, ...]:
    recalls = [f"{scores[way][f'recall@{k}']:.1%}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    plane = f"{scores['right_plane']:.1%}" if "right_plane" in scores else ""
    error = f"{scores['position_error']:.3f}" if scores.get("position_error") is not None else ""
    return (str(split), name, *recalls, plane, error)
