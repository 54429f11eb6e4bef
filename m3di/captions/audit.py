"""Captions looked at as data: which slices' texts are wrong, cut off, alike or suspect, and a weight for each.

The weights are a contract for whoever samples slices: JSON lines of volume, plane, slice (position in the cube),
weight and reasons, one for every slice of the volumes looked at, weight 1 without a reason. The sampler multiplies a
slice's chance by its weight (`pretrain.slice_weights`); a slice of weight 0 is never drawn, and a volume that keeps
none is refused. The weights are a judgement of how much a text can still teach, not a measurement.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m3di.captions.captioner import SOURCES
from m3di.captions.claims import wrong_claims
from m3di.captions.identifiers import suspected_kinds
from m3di.captions.likeness import agreement, mask_numbers
from m3di.captions.stage import slice_position
from m3di.captions.tables.exporting import CURRENT, choose_captioner, fitting_captions, name_of
from m3di.captions.tokens import over_context
from m3di.tasks.split import nested_order
from stores import Store
from stores.atomic import write_file
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.keys import FINGERPRINT_LENGTH
from stores.records import Captions, VolumeRecord

WEIGHTS: Final = {
    "wrong plane": 0.0,
    "wrong modality": 0.0,
    "wrong side": 0.0,
    "wrong organ": 0.0,
    "suspected identifier": 0.0,
    "image-text outlier": 0.25,
    "same text far apart": 0.5,
    "cut off by the teacher": 0.75,
}
FAR_APART: Final = 0.25  # of the scan's length along the plane's normal
OUTLIER_Z: Final = -3.5  # robust z-score: Iglewicz and Hoaglin 1993
_MIN_ROWS: Final = 20  # of a plane, below which no cosine can be called an outlier


@dataclass
class Item:
    """A slice and its caption.

    Attributes:
        record: Its volume.
        plane: Index into `PLANES`.
        slice: Position in the cube.
        position: Place along the plane's normal, 0 to 1.
        text: The caption.
        source: A letter of `SOURCES`; empty where the captioner has but one way.
        facts: What its captioner measured; empty when nothing was kept.
        cosine: Of its image and text embedding; NaN when it has none of this text.
        reasons: What was found, keys of `WEIGHTS`.
    """

    record: VolumeRecord
    plane: int
    slice: int
    position: float
    text: str
    source: str
    facts: dict[str, Any] = field(default_factory=dict)
    cosine: float = float("nan")
    reasons: list[str] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """The lowest of its reasons."""
        return min((WEIGHTS[reason] for reason in self.reasons), default=1.0)

    def __str__(self) -> str:
        return f"{self.record.volume} {PLANES[self.plane]} {self.slice}"


def audit_captions(
    path: Path, *, captioner: str = CURRENT, out: Path | None = None, limit: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Look at the captions of a store.

    Args:
        path: The store's folder.
        captioner: See `choose_captioner`.
        out: Where the weights go.
        limit: How many volumes to look at; by default all.
        seed: Chooses them.

    Returns:
        Counts and shares; `checks` is a list with one object a check; `notes` say what could not be checked.

    Raises:
        RefusedError: E_CAPTION, when there are no captions; E_PATH, when `out` cannot be written.
    """
    if out is not None and not out.parent.is_dir():
        raise RefusedError("E_PATH", f"{out.parent} is not a folder", hint="make it first, or choose another place")
    with Store(path) as store:
        chosen = choose_captioner(store, captioner)
        records = _drawn(store.records(), limit, seed)
        notes: list[str] = []
        items = _items(store, chosen, records)
        if not items:
            raise RefusedError("E_CAPTION", f"{path} has no captions by {captioner}", hint="m3di captions run")
        _look_at_texts(items)
        _look_at_duplicates(items)
        _look_at_tokens(store, items, notes)
        _look_at_cosines(items, notes)
        others = _agreements(store, chosen, records, items, notes)
        summary = _summary(items, others)
        identity = {
            "captioner": name_of(store, chosen), "fingerprint": chosen[:FINGERPRINT_LENGTH], "volumes": len(records)
        }  # fmt: skip
    if out is not None:
        write_file(out, lambda aside: _write_weights(aside, items))
    return {**identity, **summary, "notes": notes}


def _drawn(records: Sequence[VolumeRecord], limit: int | None, seed: int) -> list[VolumeRecord]:
    """A fixed random subset of the volumes, sorted."""
    if limit is None:
        return list(records)
    by_name = {record.volume: record for record in records}
    return [by_name[volume] for volume in sorted(nested_order(list(by_name), seed=seed)[:limit])]


def _items(store: Store, captioner: str, records: Sequence[VolumeRecord]) -> list[Item]:
    current = store.current_or_none() or {}
    items = []
    for record in records:
        captions = fitting_captions(store, captioner, record)
        if captions is None:
            continue
        facts = store.slice_facts(captioner, record.volume)
        for plane, texts in enumerate(captions.texts):
            cosines = _cosines(store, current.get("teacher"), record, captions, plane)
            for rank, index in enumerate(record.valid_slices(plane)):
                items.append(
                    Item(
                        record, plane, int(index), slice_position(record, store.recipe, plane, int(index)),
                        texts[rank], captions.sources[plane][rank : rank + 1], facts[plane][rank] if facts else {},
                        float(cosines[rank]),
                    )
                )  # fmt: skip
    return items


def _cosines(
    store: Store, teacher: str | None, record: VolumeRecord, captions: Captions, plane: int
) -> npt.NDArray[np.float32]:
    """Cosine of image and text of a plane's slices; NaN where there are no rows of these texts."""
    rows = None if teacher is None else store.rows_record(teacher, record.volume)
    if teacher is None or rows is None or rows.captions_digest != captions.digest:
        return np.full(len(captions.texts[plane]), np.nan, np.float32)
    image, text = np.moveaxis(store.plane_rows(teacher, record.volume, plane)[:, :2].astype(np.float32), 1, 0)
    lengths = np.linalg.norm(image, axis=-1) * np.linalg.norm(text, axis=-1)
    return (image * text).sum(axis=-1) / np.maximum(lengths, np.finfo(np.float32).tiny)


def _look_at_texts(items: Iterable[Item]) -> None:
    """What each text says, by itself."""
    for item in items:
        record = item.record
        structures = item.facts.get("structures", [])
        item.reasons += wrong_claims(
            item.text, item.plane, item.position, record.modality, record.body_part, structures
        )
        if suspected_kinds(item.text):
            item.reasons.append("suspected identifier")


def _look_at_duplicates(items: Iterable[Item]) -> None:
    """Texts that a volume has at places of one plane that are far apart: they tell nothing about the slice."""
    places: dict[tuple[str, int, str], list[Item]] = defaultdict(list)
    for item in items:
        places[item.record.volume, item.plane, item.text].append(item)
    for alike in places.values():
        positions = [item.position for item in alike]
        if max(positions) - min(positions) > FAR_APART:
            for item in alike:
                item.reasons.append("same text far apart")


def _look_at_tokens(store: Store, items: Sequence[Item], notes: list[str]) -> None:
    """Texts of which the current teacher reads but the beginning."""
    current = store.current_or_none()
    if current is None or not store.teacher_folder(current["teacher"]).is_dir():
        notes.append("cut off texts were not looked for: the store has no teacher yet")
        return
    distinct = sorted({item.text for item in items})
    over = set(over_context(store.teacher_folder(current["teacher"]), distinct))
    for item in items:
        if item.text in over:
            item.reasons.append("cut off by the teacher")


def _look_at_cosines(items: Sequence[Item], notes: list[str]) -> None:
    """Slices whose image and text are less alike than nearly all others of their plane, by the robust z-score."""
    cosines = np.array([item.cosine for item in items])
    planes = np.array([item.plane for item in items])
    if np.isnan(cosines).any():
        count = int(np.isnan(cosines).sum())
        notes.append(f"{count} of {len(items)} slices have no embeddings of these texts: run m3di build-store")
    for plane in range(len(PLANES)):
        of_plane = np.flatnonzero((planes == plane) & ~np.isnan(cosines))
        if len(of_plane) < _MIN_ROWS:
            continue
        for which in of_plane[_robust_z(cosines[of_plane]) < OUTLIER_Z]:
            items[which].reasons.append("image-text outlier")


def _robust_z(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Distance from the median in standard deviations, these from the median absolute deviation."""
    centred = values - np.median(values)
    spread = 1.4826 * np.median(np.abs(centred))
    return centred / spread if spread > 0 else np.zeros_like(values)


def _agreements(
    store: Store, chosen: str, records: Sequence[VolumeRecord], items: Sequence[Item], notes: list[str]
) -> list[dict[str, Any]]:
    """How alike the texts of every other captioner are: see `m3di.captions.likeness.agreement`."""
    others = [
        head for kind, head in store.known_facts() if kind == "captioner" and head != chosen[:FINGERPRINT_LENGTH]
    ]
    found = []
    for head in others:
        texts = {
            (record.volume, plane, int(index)): captions.texts[plane][rank]
            for record in records
            if (captions := fitting_captions(store, head, record)) is not None
            for plane in range(len(PLANES))
            for rank, index in enumerate(record.valid_slices(plane))
        }
        pairs = [
            (item.text, texts[key])
            for item in items
            if (key := (item.record.volume, item.plane, item.slice)) in texts
        ]
        if len(pairs) > 1:
            found.append({"captioner": name_of(store, head), "fingerprint": head, **agreement(pairs)})
    if not found:
        notes.append("no other captioner wrote about these slices: nothing to agree with")
    return found


def _summary(items: Sequence[Item], agreements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    texts = [item.text for item in items]
    known = [item.cosine for item in items if not np.isnan(item.cosine)]
    letters = Counter(item.source for item in items)
    kinds = Counter(kind for item in items for kind in suspected_kinds(item.text))
    return {
        "slices": len(items),
        "sources": {
            SOURCES.get(letter, "the captioner's only way"): count for letter, count in letters.most_common()
        },
        "distinct_texts": round(len(set(texts)) / len(texts), 4),
        "distinct_but_for_numbers_and_case": round(len({mask_numbers(text) for text in texts}) / len(texts), 4),
        "median_cosine": round(float(np.median(known)), 4) if known else None,
        "suspected_kinds": dict(kinds.most_common()),
        "agreement": list(agreements),
        "mean_weight": round(float(np.mean([item.weight for item in items])), 4),
        "checks": [_check(reason, items) for reason in WEIGHTS],
    }


def _check(reason: str, items: Sequence[Item]) -> dict[str, Any]:
    found = [item for item in items if reason in item.reasons]
    return {
        "check": reason,
        "slices": len(found),
        "share": round(len(found) / len(items), 4),
        "weight": WEIGHTS[reason],
        "examples": [str(item) for item in found[:3]],
    }


def _write_weights(path: Path, items: Iterable[Item]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for item in items:
            line = {
                "volume": item.record.volume, "plane": PLANES[item.plane], "slice": item.slice,
                "weight": item.weight, "reasons": item.reasons,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
