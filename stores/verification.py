"""`verify`: read a store and name everything that is damaged, missing, surplus, or not finished.

LMDB ends the process when it meets certain damage, so a store is read in a process of its own: what kills that one is
a finding like any other.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from stores import manifest
from stores.atomic import TEMPORARY
from stores.blocks import Block
from stores.errors import M3diError, ResourceError
from stores.keys import FINGERPRINT_LENGTH, block_key
from stores.locking import LOCK
from stores.records import RowsRecord, VolumeRecord
from stores.store import SEAL, Store
from stores.volumes import declared_array

KNOWN: Final = frozenset(
    (manifest.MARKER, manifest.VOLUMES, manifest.ROWS, manifest.TEACHERS, SEAL, LOCK, "quarantine.tsv")
)
_ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a store.

    Attributes:
        kind: `damaged`, `missing`, `surplus` (what nothing refers to: `m3di gc` removes it) or `unfinished` (what a
            build that was interrupted has not come to).
        item: What it is about: a volume, chunk file, block or folder.
        message: What was found.
    """

    kind: str
    item: str
    message: str

    @property
    def serious(self) -> bool:
        """Whether something that was acknowledged is not there, or not as it was."""
        return self.kind in ("damaged", "missing")


def verify(path: Path, *, quick: bool = False) -> Iterator[Problem]:
    """Check every committed item of a store against its record, in a process of its own.

    Args:
        path: The store's folder.
        quick: Compare sizes of chunk files only, and skip the blocks of rows.

    Yields:
        Every problem found; nothing when the store is sound and finished.

    Raises:
        RefusedError: E_STORE, when there is no store.
        DamagedError: E_VERSION, when it is of a newer format.
    """
    try:
        manifest.read_marker(path)
    except M3diError as error:
        if error.code != "E_CORRUPT":
            raise
        yield Problem("damaged", manifest.MARKER, error.message)
        return
    options = ["--quick"] if quick else []
    command = [sys.executable, "-m", "stores.verification", os.fspath(path.absolute()), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, sys.path)])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Problem(**json.loads(line))
        code = process.wait()
    if code < 0:
        message = f"its reader ends by {signal.Signals(-code).name}: its pages do not hold together"
        yield Problem("damaged", f"{manifest.ROWS}/data.mdb", message)
    elif code:
        raise ResourceError("E_WORKER", f"the process that verifies {path} ended with {code}", hint="run it again")


def examine(store: Store, *, quick: bool = False) -> Iterator[Problem]:
    """Check an open store in this process; see `verify`."""
    yield from _check_seal(store)
    if store.withdrawing():
        message = "a withdrawal was interrupted; m3di gc, or whatever writes next, does the rest"
        yield Problem("unfinished", "withdrawal", message)
    records = []
    for name in store.volume_names():
        try:
            records.append(store.record(name))
        except M3diError as error:
            yield Problem("damaged", f"volume {name}", error.message)
    current = [record for record in records if store.is_current(record)]
    yield from _check_former(store, [record for record in records if not store.is_current(record)])
    yield from _check_arrays(store, current)
    for record in current:
        yield from _check_chunks(store, record, quick=quick)
    yield from _find_surplus(store, current)
    yield from _check_derived(store, current, quick=quick)
    yield from _check_quarantine(store)


def _check_seal(store: Store) -> Iterator[Problem]:
    try:
        if store.unfinished():
            return
        seal = store.read_seal()
        if seal is None:
            if store.marker.version > 1 and store.current_or_none():
                yield Problem("missing", SEAL, "the seal of a finished build is not there")
        elif seal["transaction"] > store.transaction:
            message = f"ends at transaction {store.transaction}, its seal at {seal['transaction']}: an older copy"
            yield Problem("damaged", f"{manifest.ROWS}/data.mdb", message)
        elif seal["transaction"] == store.transaction and seal["digest"] != store.digest():
            yield Problem("damaged", SEAL, "is not the seal of what the store holds")
    except M3diError as error:
        yield Problem("damaged", SEAL, error.message)


def _check_former(store: Store, records: list[VolumeRecord]) -> Iterator[Problem]:
    kind = "unfinished" if store.unfinished() else "surplus"
    for record in records:
        message = "is not of the store's recipe; run m3di build-store again, or m3di gc"
        yield Problem(kind, f"volume {record.volume}", message)


def _check_arrays(store: Store, records: list[VolumeRecord]) -> Iterator[Problem]:
    """Check the Zarr metadata, which our own reader does without but others need."""
    slots = max((record.slot for record in records), default=-1) + 1
    for name, layout in store.volumes.layouts.items():
        path = store.volumes.folder / name / "zarr.json"
        item = str(path.relative_to(store.path))
        try:
            metadata = json.loads(path.read_bytes())
            capacity = metadata["shape"][0]
        except FileNotFoundError:
            yield Problem("missing", item, "the array's metadata is not there")
            continue
        except (ValueError, KeyError, TypeError, IndexError):
            yield Problem("damaged", item, "is not the metadata of an array")
            continue
        expected = declared_array(layout, store.volumes.layout, capacity)
        wrong = [field for field, value in expected.items() if metadata.get(field) != value]
        if wrong or capacity < slots:
            yield Problem("damaged", item, f"does not fit the store: {', '.join(wrong) or 'shape'}")


def _check_chunks(store: Store, record: VolumeRecord, *, quick: bool) -> Iterator[Problem]:
    for name, expected in record.objects.items():
        path = store.volumes.chunk_path(name, record.slot)
        item = f"volume {record.volume}, {name} ({path.relative_to(store.path)})"
        try:
            size = path.stat().st_size
            if size != expected.num_bytes:
                yield Problem("damaged", item, f"{size} bytes instead of {expected.num_bytes}")
            elif not quick and hashlib.sha256(path.read_bytes()).hexdigest() != expected.sha256:
                yield Problem("damaged", item, "the bytes are not those that were written (sha256)")
        except FileNotFoundError:
            yield Problem("missing", item, "the chunk file is not there")
        except OSError as error:
            yield Problem("damaged", item, f"cannot be read: {error.strerror}")


def _find_surplus(store: Store, records: list[VolumeRecord]) -> Iterator[Problem]:
    owned = {(name, record.slot) for record in records for name in record.objects}
    for name, slot, path in store.volumes.chunks():
        if (name, slot) not in owned:
            yield Problem("surplus", str(path.relative_to(store.path)), "no volume owns this chunk file")
    for entry in sorted(store.path.iterdir()):
        if entry.name not in KNOWN:
            message = "left by a writer" if entry.name.startswith(TEMPORARY) else "is no part of a store"
            yield Problem("surplus", entry.name, message)
    for entry in sorted((store.path / manifest.TEACHERS).glob("*")):
        if store.facts("teacher", entry.name) is None:
            yield Problem("surplus", str(entry.relative_to(store.path)), "no teacher of the store owns this folder")


def _check_derived(store: Store, records: list[VolumeRecord], *, quick: bool) -> Iterator[Problem]:
    """Check every caption and row, and the teachers' weights."""
    for kind, volume in store.orphans():
        yield Problem("surplus", kind, f"volume {volume} is not in the store")
    for teacher in store.teachers():
        yield from _check_teacher(store, teacher)
    current = store.current_or_none()
    absent = "unfinished" if store.unfinished() or current is None else "missing"
    for record in records:
        for fingerprint in store.row_sets(record.volume):
            try:
                yield from _check_rows(store, record, fingerprint, quick=quick)
            except M3diError as error:
                yield Problem("damaged", f"volume {record.volume}, rows of {fingerprint}", error.message)
        if current is None:
            yield Problem(absent, f"volume {record.volume}, rows", "the build has not come to them")
            continue
        try:
            yield from _check_current(store, record, current, absent)
        except M3diError as error:
            yield Problem("damaged", f"volume {record.volume}, derived records", error.message)


def _check_teacher(store: Store, teacher: str) -> Iterator[Problem]:
    try:
        facts: dict[str, Any] = store.facts("teacher", teacher) or {}
    except M3diError as error:
        yield Problem("damaged", f"teacher {teacher}", error.message)
        return
    for name, digest in facts.get("files", {}).items():
        path = store.teacher_folder(teacher) / name
        item = f"teacher file {path.relative_to(store.path)}"
        if not path.is_file():
            yield Problem("missing", item, "the file is not there")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield Problem("damaged", item, "the bytes are not those that were written (sha256)")


def _check_current(store: Store, record: VolumeRecord, current: dict[str, str], absent: str) -> Iterator[Problem]:
    """Whether a reader finds rows of this volume that are up to date, and the captions they were made of."""
    rows = store.rows_record(current["teacher"], record.volume)
    if rows is None or not store.rows_are_current(rows, record):
        message = "no up-to-date embeddings; run m3di build-store again"
        yield Problem(absent, f"volume {record.volume}, rows", message)
        return
    captions = store.captions(current["captioner"], record.volume)
    if captions is None or captions.digest != rows.captions_digest:
        kind = "unfinished" if absent == "unfinished" else "damaged"
        yield Problem(kind, f"volume {record.volume}, captions", "not those that the rows were made of")


def _check_rows(store: Store, record: VolumeRecord, fingerprint: str, *, quick: bool) -> Iterator[Problem]:
    rows = store.rows_record(fingerprint, record.volume)
    assert rows is not None
    if not store.rows_are_current(rows, record):
        return  # of a former volume: the next build makes them anew
    for plane in range(len(rows.blocks)):
        item = f"volume {record.volume}, rows of plane {plane} of {fingerprint[:FINGERPRINT_LENGTH]}"
        if not quick:
            yield from _check_block(store, record.volume, fingerprint, rows, plane, item)
        if rows.num_rows[plane] != len(record.valid_slices(plane)):
            yield Problem("damaged", item, "there is not one row a valid slice")


def _check_block(  # noqa: PLR0917
    store: Store, volume: str, fingerprint: str, rows: RowsRecord, plane: int, item: str
) -> Iterator[Problem]:
    try:
        payload = store.block(fingerprint, volume, plane)
        block = Block(payload, block_key(fingerprint, volume, plane))
        block.rows()
    except M3diError as error:
        yield Problem("missing" if error.code == "E_MISSING" else "damaged", item, error.message)
        return
    if hashlib.sha256(payload).hexdigest() != rows.blocks[plane]:
        yield Problem("damaged", item, "the bytes are not those that were written (sha256)")


def _check_quarantine(store: Store) -> Iterator[Problem]:
    """The table is made of the store's quarantine at the end of a build, for people."""
    path = store.path / "quarantine.tsv"
    try:
        differs = path.exists() and path.read_bytes() != store.quarantine_table()
    except M3diError as error:
        yield Problem("damaged", "quarantine", error.message)
        return
    if differs and not store.unfinished():
        yield Problem("damaged", path.name, "is not the table of the store's quarantine; run m3di build-store again")


def _main(arguments: list[str]) -> None:
    """Write the problems of a store as JSON lines."""
    try:
        with Store(Path(arguments[0])) as store:
            for problem in examine(store, quick="--quick" in arguments):
                sys.stdout.write(json.dumps(asdict(problem)) + "\n")
                sys.stdout.flush()
    except M3diError as error:
        sys.stdout.write(json.dumps(asdict(Problem("damaged", "store", error.message))) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
