"""What a fitted teacher answers to, and which of its rows are out of date. Needs no torch."""

from typing import Any, Final

from m3di.config import Config
from stores import Store
from stores.errors import RefusedError
from stores.recipe import digest_of
from stores.records import Captions, VolumeRecord

VERSION: Final = 3  # raise whenever the same weights would give other embeddings
IMAGE: Final = "image"  # parts of a volume's rows
TEXT: Final = "text"
DENSE: Final = "dense"


def teacher_request(config: Config, captioner: str) -> str:
    """Identity of the settings that a fitted teacher answers to, and of how this m3di encodes."""
    settings = config.to_dict()["teacher"]
    request = {"teacher": settings, "captioner": captioner, "seed": config.seed, "version": VERSION}
    if config.pretrain.leave_out:
        request["leave_out"] = sorted(config.pretrain.leave_out)
    return digest_of(request)


def dense_facts(store: Store, teacher: str) -> dict[str, Any] | None:
    """Facts of a teacher's dense rows: fingerprint of their row set, grid, dim, explained variance; None without."""
    return (store.facts("teacher", teacher) or {}).get("dense")


def find_teacher(store: Store, name: str) -> str:
    """Fingerprint of a teacher whose rows a store keeps.

    Args:
        store: Holds the facts of its teachers.
        name: A spec, such as `embedded`, or the beginning of a fingerprint.

    Raises:
        RefusedError: E_CONFIG, when no teacher or several answer to the name.
    """
    known = [store.facts("teacher", head) or {} for head in store.teachers()]
    found = [facts for facts in known if facts["spec"] == name or facts["fingerprint"].startswith(name)]
    if len(found) == 1:
        return found[0]["fingerprint"]
    listed = ", ".join(f"{facts['fingerprint'][:16]} ({facts['spec']})" for facts in known) or "none"
    message = f"{len(found)} teachers of {store.path} are called {name!r}; it keeps {listed}"
    hint = "give the beginning of a fingerprint; m3di build-store --teacher SPEC adds another teacher's rows"
    raise RefusedError("E_CONFIG", message, hint=hint)


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
