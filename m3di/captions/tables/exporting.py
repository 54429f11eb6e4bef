"""A store's captions as a table that `m3di.captions.tables.rows` reads back: the same texts, slice by slice."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from m3di.captions.captioner import DESCRIBED, SOURCES
from m3di.captions.tables.rows import require_ending, write_rows
from m3di.captions.text import sanitise
from stores import Store
from stores.atomic import write_file
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.keys import FINGERPRINT_LENGTH
from stores.records import Captions, VolumeRecord

CURRENT: Final = "current"


def export_captions(path: Path, out: Path, *, captioner: str = CURRENT) -> dict[str, Any]:
    """Write the captions of a store to a table, whole or not at all; returns what was written.

    Args:
        path: The store's folder.
        out: The table: CSV, TSV, JSONL (with the facts of each slice, where they are kept) or Parquet.
        captioner: See `choose_captioner`.

    Raises:
        RefusedError: E_CAPTION, when `out` has another ending, or there are no captions; E_PATH, when it cannot be
            written there; E_CONFIG, for Parquet without pyarrow.
    """
    kind = require_ending(out)
    if not out.parent.is_dir():
        raise RefusedError("E_PATH", f"{out.parent} is not a folder", hint="make it first, or choose another place")
    with Store(path) as store:
        chosen = choose_captioner(store, captioner)
        counts = Counter[str]()
        rows = _rows(store, chosen, counts)
        write_file(out, lambda aside: write_rows(aside, rows, kind=kind))
        return {
            "file": str(out), "captioner": name_of(store, chosen), "fingerprint": chosen[:FINGERPRINT_LENGTH],
            "volumes": counts["volumes"], "volumes_without": counts["without"], "rows": counts["rows"],
            "texts": {said: counts[letter] for letter, said in SOURCES.items() if counts[letter]},
        }  # fmt: skip


def choose_captioner(store: Store, wanted: str = CURRENT) -> str:
    """Fingerprint (or its head) of one of the captioners whose texts a store keeps.

    Args:
        store: The store.
        wanted: A name such as `describe`; the beginning of a fingerprint; or `current`, the one that the embeddings
            are of, else the only one.

    Raises:
        RefusedError: E_CAPTION, when there is none, or more than one, naming those there are.
    """
    current = (store.current_or_none() or {}).get("captioner")
    known = [head for kind, head in store.known_facts() if kind == "captioner"]
    if wanted == CURRENT:
        if current is not None:
            return current
        found = known
    else:
        found = [
            head for head in known if name_of(store, head) == wanted or (len(wanted) >= 4 and head.startswith(wanted))
        ]
        if current is not None and current[:FINGERPRINT_LENGTH] in found:
            return current
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{name_of(store, head)} {head}" for head in known) or "none"
    message = f"{len(found)} captioners of {store.path} answer to {wanted!r}; it has {listed}"
    raise RefusedError("E_CAPTION", message, hint="choose one by the beginning of its fingerprint: --captioner HEX")


def name_of(store: Store, captioner: str) -> str:
    """Name of a captioner, as in `--captioner`; `unknown` when the store does not say."""
    return str((store.facts("captioner", captioner) or {}).get("name", "unknown"))


def fitting_captions(store: Store, captioner: str, record: VolumeRecord) -> Captions | None:
    """The captions of a volume, None when there are none, or when they are of slices that it no longer has.

    The describer, which writes no sources, has but one.
    """
    captions = store.captions(captioner, record.volume)
    if captions is None:
        return None
    fits = all(len(texts) == len(record.valid_slices(plane)) for plane, texts in enumerate(captions.texts))
    if not fits:
        return None
    if not any(captions.sources) and name_of(store, captioner) == "describe":
        axial, coronal, sagittal = (DESCRIBED * len(texts) for texts in captions.texts)
        return replace(captions, sources=(axial, coronal, sagittal))
    return captions


def _rows(store: Store, captioner: str, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows in order of volume, plane and slice; counts them on the way."""
    for record in store.records():
        captions = fitting_captions(store, captioner, record)
        counts["without" if captions is None else "volumes"] += 1
        if captions is None:
            continue
        facts = store.slice_facts(captioner, record.volume)
        for plane, texts in enumerate(captions.texts):
            for rank, (index, text) in enumerate(zip(record.valid_slices(plane), texts, strict=True)):
                source = captions.sources[plane][rank : rank + 1]
                counts.update(("rows", source))
                row = {
                    "volume": record.volume, "plane": PLANES[plane], "slice": int(index),
                    "text": sanitise(text)[0], "source": source,
                }  # fmt: skip
                yield row | ({"facts": facts[plane][rank]} if facts else {})
