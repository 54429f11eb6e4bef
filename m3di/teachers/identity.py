"""What a fitted teacher answers to, and which of its rows are out of date. Needs no torch."""

from typing import Any, Final

from m3di.config import Config
from stores import Store
from stores.recipe import digest_of
from stores.records import Captions, VolumeRecord

IMAGE: Final = "image"  # parts of a volume's rows
TEXT: Final = "text"
DENSE: Final = "dense"


def teacher_request(config: Config, captioner: str) -> str:
    """Identity of the settings that a fitted teacher answers to."""
    return digest_of({"teacher": config.to_dict()["teacher"], "captioner": captioner, "seed": config.seed})


def dense_facts(store: Store, teacher: str) -> dict[str, Any] | None:
    """Facts of a teacher's dense rows: fingerprint of their row set, grid, dim, explained variance; None without."""
    return (store.facts("teacher", teacher) or {}).get("dense")


def stale_parts(
    store: Store, teacher: str, dense: dict[str, Any] | None, record: VolumeRecord, captions: Captions | None
) -> frozenset[str]:
    """Which parts of a volume's rows are to be made anew.

    Args:
        store: Holds the rows.
        teacher: Fingerprint of the teacher.
        dense: Its `dense_facts`.
        record: The volume.
        captions: Its captions as they are; None when they are to be written anew.
    """
    rows = store.rows_record(teacher, record.volume)
    parts = set()
    if rows is None or not store.rows_are_current(rows, record):
        parts |= {IMAGE, TEXT}
    elif captions is None or rows.captions_digest != captions.digest:  # other captions of the same slices
        parts.add(TEXT)
    if dense and not store.rows_are_current(store.rows_record(dense["fingerprint"], record.volume), record):
        parts.add(DENSE)
    return frozenset(parts)
