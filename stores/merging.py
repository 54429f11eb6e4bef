"""`merge` and `diff` between stores."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stores import atomic
from stores.errors import RefusedError
from stores.records import VolumeRecord
from stores.store import Store

MOST_OPEN: Final = 64  # stores at a time: each takes a terabyte of the 128 of address space (`database.MAP_SIZE`)


@dataclass(frozen=True)
class Difference:
    """One item in which two stores differ; `kind` is `only here`, `only there` or `differs`."""

    kind: str
    item: str
    message: str


def merge_all(
    target: Store, sources: Sequence[Path], *, replace: bool = False, report: Callable[..., None],
    check: Callable[[], None],
) -> int:  # fmt: skip
    """Merge the stores at some paths, however many; see `merge`."""
    copied = 0
    for start in range(0, len(sources), MOST_OPEN):
        with ExitStack() as stack:
            opened = [stack.enter_context(Store(path)) for path in sources[start : start + MOST_OPEN]]
            copied += merge(target, opened, replace=replace, report=report, check=check)
    return copied


def merge(
    target: Store, sources: Sequence[Store], *, replace: bool = False, report: Callable[..., None],
    check: Callable[[], None],
) -> int:  # fmt: skip
    """Copy everything of some stores into one, item by item; a rerun goes on. Returns how many volumes were copied.

    A scan that one of the stores has withdrawn is not copied from any.

    Args:
        target: Open for writing.
        sources: Open for reading, of the target's recipe and layout.
        replace: Let volumes of the sources take the place of other ones that the target has under their ids.
        report: Receives a `committed` event for each volume, once it is durable; `withdrawn` for one that is not
            copied.
        check: Called before each volume; raises to stop.

    Raises:
        RefusedError: E_CONFIG for another recipe or layout; E_DUPLICATE_ID, when two stores hold different volumes
            under one id. Nothing has been written then.
        DamagedError: When an item of a source is damaged.
    """
    for source in sources:
        target.require_recipe(source.recipe)
        if source.marker.layout != target.marker.layout:
            message = f"{source.path} is {source.marker.layout}, {target.path} is {target.marker.layout}"
            raise RefusedError("E_CONFIG", message, hint="merge into a store of the same layout (storage.layout)")
    _refuse_duplicates([*([] if replace else [target]), *sources])
    withdrawn = target.withdrawn().union(*(source.withdrawn() for source in sources))
    target.commit_withdrawn(withdrawn)
    copied = 0
    for source in sources:
        for kind, fingerprint in source.known_facts():
            copy_facts(target, source, kind, fingerprint)
        for record in source.records():
            check()
            if record.source_digest in withdrawn:
                report("withdrawn", volume=record.volume)
                continue
            copied += _copy_volume(target, source, record)
            report("committed", volume=record.volume, stage="merge")
        for key in source.replies():
            reply = source.reply(key)
            if reply is not None and target.reply(key) is None:
                target.commit_reply(key, reply)
        for row in source.quarantined():
            if target.find(row.case) is None and row not in target.quarantined():
                target.commit_quarantine(row)
    current = [source.current_or_none() for source in sources if source.volume_names()]
    target.write_quarantine_table()
    agreed = current[0] if current else None
    if agreed is not None and all(one == agreed for one in current) and _all_embedded(target, agreed["teacher"]):
        target.commit_current(**agreed)
    return copied


def diff(here: Store, there: Store) -> Iterator[Difference]:
    """Name every item in which two stores differ."""
    if here.recipe != there.recipe:
        yield Difference("differs", "recipe", "; ".join(here.recipe.differences(there.recipe)))
    mine, theirs = here.items(), there.items()
    for item in sorted(mine.keys() | theirs.keys()):
        if item not in theirs:
            yield Difference("only here", item, "")
        elif item not in mine:
            yield Difference("only there", item, "")
        elif mine[item] != theirs[item]:
            yield Difference("differs", item, f"{mine[item][:16]} != {theirs[item][:16]}")


def _refuse_duplicates(stores: Sequence[Store]) -> None:
    seen: dict[str, tuple[Store, str]] = {}
    for store in stores:
        for record in store.records():
            first, digest = seen.setdefault(record.volume, (store, record.item_digest))
            if digest != record.item_digest:
                message = f"volume {record.volume} of {store.path} is not that of {first.path}"
                raise RefusedError("E_DUPLICATE_ID", message, hint="rename one of them at its source and build again")


def _all_embedded(store: Store, teacher: str) -> bool:
    """Whether every volume has rows of a teacher, so that a build would find nothing to do."""
    return all(store.rows_are_current(store.rows_record(teacher, r.volume), r) for r in store.records())


def copy_facts(target: Store, source: Store, kind: str, fingerprint: str) -> None:
    """Copy the facts of a `teacher`, `captioner` or `request`; of a teacher its folder too."""
    facts = source.facts(kind, fingerprint)
    assert facts is not None
    if target.facts(kind, fingerprint) == facts:
        return
    folder = source.teacher_folder(fingerprint)
    if kind == "teacher" and folder.is_dir():
        atomic.write_folder(
            target.teacher_folder(fingerprint), lambda new: shutil.copytree(folder, new, dirs_exist_ok=True)
        )
    target.commit_facts(kind, fingerprint, facts)


def _copy_volume(target: Store, source: Store, record: VolumeRecord) -> bool:
    """Copy a volume with its captions and rows, each part that the target does not have; whether the volume was."""
    known = target.find(record.volume)
    fresh = known is None or known.item_digest != record.item_digest
    if fresh:
        chunks = {name: source.volumes.chunk(name, record.slot, stored) for name, stored in record.objects.items()}
        target.commit_volume(record, chunks)
    for captioner in source.captioners(record.volume):
        captions = source.captions(captioner, record.volume)
        if captions is not None and target.captions(captioner, record.volume) != captions:
            facts = source.slice_facts(captioner, record.volume) or ()
            target.commit_captions(captioner, record.volume, captions, facts=facts)
    for fingerprint in source.row_sets(record.volume):
        rows = source.rows_record(fingerprint, record.volume)
        if rows is not None and target.rows_record(fingerprint, record.volume) != rows:
            blocks = [bytes(source.block(fingerprint, record.volume, plane)) for plane in range(len(rows.blocks))]
            if not source.rows_are_current(rows, record):
                continue
            target.put_rows(fingerprint, record.volume, rows, blocks)
    return fresh
