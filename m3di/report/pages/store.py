"""The pages of a store: what is in it, and whether it is sound."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from m3di.inspect import describe_store
from m3di.report.numbers import Cell, format_bytes
from m3di.report.page import Block, Commands, Facts, Notice, Order, Page, Paragraph, Section, Table
from m3di.report.write import write_page
from stores.verification import Problem

SHOWN: Final = ("volumes", "subjects", "rows", "volumes with rows", "captioner", "quarantined")
ODD: Final = ("planes of thick slices", "non-finite voxels", "padding voxels")
KINDS: Final = {
    "damaged": "not as it was written",
    "missing": "acknowledged, and not there",
    "surplus": "nothing refers to it; m3di gc removes it",
    "unfinished": "an interrupted build has not come to it; m3di build-store continues",
}
CARD_COLUMNS: Final = (
    "teacher", "text to slice, recall at 1", "at 5", "at 10", "slice to text, recall at 1", "at 5", "at 10",
    "right plane", "position error",
)  # fmt: skip


def store_page(facts: Mapping[str, Any]) -> Page:
    """The page of a store's content.

    Args:
        facts: Of `m3di.inspect.describe_store`.
    """
    lead = (
        f"{facts['volumes']} volumes of {facts['subjects']} subjects with {facts['rows']} rows of slices, "
        f"{format_bytes(facts['bytes'])} in all."
    )
    return Page(f"Store: {Path(facts['store']).name}", lead, store_sections(facts))


def store_sections(facts: Mapping[str, Any]) -> list[Section]:
    """What is in a store, what was refused, who teaches, and what takes how much room."""
    rows: list[tuple[str, Cell]] = [(name, "not known" if facts[name] is None else facts[name]) for name in SHOWN]
    rows += [("teacher", facts["teacher"]), ("digest", facts["digest"][:16])]
    return [
        Section("Content", [Facts(rows), *_sets(facts)]),
        Section("Planes and voxels", [_planes(facts), Facts([(name, facts[name] or "none") for name in ODD])]),
        _quarantine(facts["quarantine"]),
        _teacher(facts["teacher card"]),
        Section("Room", [_room(facts)]),
        Section("Recipe", [_recipe(facts["recipe"])]),
    ]


def write_verification(store: Path, problems: Sequence[Problem], file: Path, *, quick: bool) -> Path:
    """Write the page of a verification; a store with damage is not opened for it, as its database may end a reader.

    Args:
        store: The store's folder.
        problems: All that were found.
        file: Where the page goes.
        quick: Whether only sizes were compared.

    Raises:
        RefusedError: E_PATH, when the place may not be written.
        ResourceError: E_DISK.
    """
    facts = None if any(problem.serious for problem in problems) else describe_store(store)
    return write_page(verification_page(store, problems, facts, quick=quick), file)


def verification_page(
    store: Path, problems: Sequence[Problem], facts: Mapping[str, Any] | None, *, quick: bool
) -> Page:  # fmt: skip
    """The page of a verification.

    Args:
        store: The store's folder.
        problems: All that were found.
        facts: Of `m3di.inspect.describe_store`; None where the store is not fit to be read.
        quick: Whether only sizes were compared.
    """
    serious = sum(problem.serious for problem in problems)
    counts = Counter(problem.kind for problem in problems)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "nothing is wrong"
    looked = (
        "Sizes were compared, bytes were not read" if quick else "Every byte was read and compared with its digest"
    )
    verdict = (
        Notice("Damaged:", f"{serious} items are damaged or missing.", "doubt")
        if serious
        else Notice("Sound:", f"{looked}. What was acknowledged is there, as it was written.")
    )
    blocks: list[Block] = [verdict]
    if problems:
        kinds = [(kind, KINDS[kind], counts[kind]) for kind in KINDS if counts[kind]]
        ordered = sorted(problems, key=lambda problem: list(KINDS).index(problem.kind))
        rows = [(problem.item, problem.kind, problem.message) for problem in ordered]
        blocks.append(Table(("kind", "what it means", "items"), kinds, "Problems by kind"))
        blocks.append(Table(("item", "kind", "what was found"), rows, "Every problem", Order(1)))
    command = f"m3di verify --store {shlex.quote(str(store))}{' --quick' if quick else ''}"
    blocks.append(Commands([command]))
    return Page(
        f"Verification: {store.name}",
        f"{looked}: {told}.",
        [Section("Verdict", blocks), *(store_sections(facts) if facts is not None else [])],
    )


def card_table(card: Mapping[str, Any]) -> Table:
    """How a teacher retrieves on held-out volumes, before and after its fit, and by chance.

    Args:
        card: With `before` and `after`, or with several `splits` of both.
    """
    rows: list[tuple[Cell, ...]] = []
    splits = card.get("splits") or [card]
    for one in splits:
        split = f", split {one['seed']}" if len(splits) > 1 else ""
        for when in ("before", "after"):
            if when in one:
                rows.append(_card_row(f"{when} fitting{split}", one[when]))
        if "after" in one:
            chance = one["after"]["chance"]
            rows.append(_card_row(f"a random order{split}", {"text_to_image": chance, "image_to_text": chance}))
    items = next((one["after"]["items"] for one in splits if "after" in one), 0)
    return Table(
        CARD_COLUMNS, rows, f"The teacher on {items} slices of held-out volumes: does a caption find its slice?"
    )


def _card_row(name: str, scores: Mapping[str, Any]) -> tuple[Cell, ...]:
    recalls = [f"{scores[way][f'recall@{k}']:.1%}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    plane = f"{scores['right_plane']:.1%}" if "right_plane" in scores else ""
    error = f"{scores['position_error']:.3f}" if scores.get("position_error") is not None else ""
    return (name, *recalls, plane, error)


def _sets(facts: Mapping[str, Any]) -> list[Block]:
    rows = [
        (one["dataset"], one["modality"], one["body_part"] or "–", one["volumes"], one["subjects"], one["slices"])
        for one in facts["sets"]
    ]
    columns = ("dataset", "modality", "body part", "volumes", "subjects", "slices")
    return [Table(columns, rows, "Datasets", Order(0))] if rows else [Paragraph("There is no volume yet.")]


def _planes(facts: Mapping[str, Any]) -> Table:
    rows = [(plane, f"{share:.1%}") for plane, share in facts["blank"].items()]
    caption = "Positions of the cubes that have no slice: padding, air, or outside the scan"
    return Table(("plane", "blank"), rows, caption)


def _quarantine(refused: Sequence[Mapping[str, str]]) -> Section:
    if not refused:
        return Section("Quarantine", [Paragraph("No scan was refused.")])
    rows = [(one["case"], one["code"], one["message"], one["source"]) for one in refused]
    return Section("Quarantine", [Table(("case", "code", "why", "source"), rows, "Refused scans", Order(0))])


def _teacher(card: Mapping[str, Any] | None) -> Section:
    if not card:
        return Section("Teacher", [Paragraph("It was not fitted, so there is no card of how it retrieves.")])
    return Section("Teacher", [card_table(card)])


def _room(facts: Mapping[str, Any]) -> Table:
    total = max(facts["bytes"], 1)
    rows = [(name, size, format_bytes(size), f"{size / total:.1%}") for name, size in facts["bytes by part"].items()]
    return Table(("part", "bytes", "in words", "share"), rows, "Bytes by part, the largest first")


def _recipe(recipe: Mapping[str, Any]) -> Table:
    rows = [(name, str(value)) for name, value in recipe.items()]
    return Table(("setting", "value"), rows, "How scans became volumes")
