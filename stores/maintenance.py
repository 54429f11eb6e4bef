"""`verify`: read a store and name everything that is damaged, missing or surplus."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stores.embeddings import decode_block
from stores.errors import M3diError
from stores.keys import block_key
from stores.records import VolumeRecord
from stores.store import Store


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store.

    Attributes:
        kind: `missing`, `damaged` or `surplus`.
        item: What it is about: a volume, chunk file, block or folder.
        message: What was found.
    """

    kind: str
    item: str
    message: str


def verify(store: Store, *, quick: bool = False) -> Iterator[Problem]:
    """Check every committed item against its record.

    Args:
        store: An open store.
        quick: Compare sizes of chunk files only, and skip the blocks of rows.

    Yields:
        Every problem found; nothing when the store is sound.
    """
    records = []
    for name in store.volume_names():
        try:
            records.append(store.record(name))
        except M3diError as error:
            yield Problem("damaged", f"volume {name}", error.message)
    for record in records:
        yield from _check_chunks(store, record, quick=quick)
    yield from _find_surplus(store, records)
    yield from _check_derived(store, records, quick=quick)


def _check_chunks(store: Store, record: VolumeRecord, *, quick: bool) -> Iterator[Problem]:
    for name, expected in record.objects.items():
        path = store.volumes.chunk_path(name, record.slot)
        item = f"volume {record.volume}, {name} ({path.relative_to(store.path)})"
        if not path.is_file():
            yield Problem("missing", item, "the chunk file is not there")
        elif (size := path.stat().st_size) != expected.num_bytes:
            yield Problem("damaged", item, f"{size} bytes instead of {expected.num_bytes}")
        elif not quick and hashlib.sha256(path.read_bytes()).hexdigest() != expected.sha256:
            yield Problem("damaged", item, "the bytes are not those that were written (sha256)")


def _find_surplus(store: Store, records: list[VolumeRecord]) -> Iterator[Problem]:
    owned = {(name, record.slot) for record in records for name in record.objects}
    for name, slot, path in store.volumes.chunks():
        if (name, slot) not in owned:
            yield Problem("surplus", str(path.relative_to(store.path)), "no volume owns this chunk file")


def _check_derived(store: Store, records: list[VolumeRecord], *, quick: bool) -> Iterator[Problem]:
    """Check captions and rows of the current teacher, and its weights."""
    current = store.current_or_none()
    if current is None:
        if records:
            yield Problem("missing", "embeddings", "the build has not come to its end; run m3di build-store again")
        return
    yield from _check_teacher(store, current["teacher"])
    for record in records:
        try:
            yield from _check_rows(store, record, current, quick=quick)
        except M3diError as error:
            yield Problem("damaged", f"volume {record.volume}, derived records", error.message)


def _check_teacher(store: Store, teacher: str) -> Iterator[Problem]:
    facts: dict[str, Any] = store.facts("teacher", teacher) or {}
    for name, digest in facts.get("files", {}).items():
        path = store.teacher_folder(teacher) / name
        item = f"teacher file {path.relative_to(store.path)}"
        if not path.is_file():
            yield Problem("missing", item, "the file is not there")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Problem("damaged", item, "the bytes are not those that were written (sha256)")


def _check_rows(store: Store, record: VolumeRecord, current: dict[str, str], *, quick: bool) -> Iterator[Problem]:
    rows = store.rows_record(current["teacher"], record.volume)
    captions = store.captions(current["captioner"], record.volume)
    if rows is None or rows.item_digest != record.item_digest:
        yield Problem("missing", f"volume {record.volume}, rows", "no up-to-date embeddings; run m3di build-store")
        return
    if captions is None or captions.digest != rows.captions_digest:
        yield Problem("damaged", f"volume {record.volume}, captions", "not those that the rows were made of")
    for plane, expected in enumerate(rows.blocks):
        if quick:
            continue
        item = f"volume {record.volume}, rows of plane {plane}"
        try:
            payload = store.block(current["teacher"], record.volume, plane)
            decode_block(payload, block_key(current["teacher"], record.volume, plane).decode())
        except M3diError as error:
            yield Problem("damaged", item, error.message)
            continue
        if hashlib.sha256(payload).hexdigest() != expected:
            yield Problem("damaged", item, "the bytes are not those that were written (sha256)")
        if rows.num_rows[plane] != len(record.valid_slices(plane)):
            yield Problem("damaged", item, "there is not one row a valid slice")
