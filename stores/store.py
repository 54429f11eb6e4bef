"""The feature store: opened for reading by many, for writing by one, committed item by item."""

import fcntl
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from stores import atomic, manifest
from stores.database import Database
from stores.embeddings import EmbeddingStore, Rows, encode_block
from stores.errors import DamagedError, LockedError, RefusedError
from stores.index import StoreIndex
from stores.keys import FINGERPRINT_LENGTH, block_key, derived_key, volume_key
from stores.recipe import Recipe, digest_of
from stores.records import Captions, RowsRecord, VolumeRecord
from stores.volumes import Chunk, VolumeStore

PARTS: Final = ("image", "text")
_CURRENT: Final = b"current"
_NEXT_SLOT: Final = b"next-slot"


@dataclass(frozen=True)
class Quarantined:
    """A case that was refused, and why."""

    case: str
    source: str
    code: str
    message: str


class Store:
    """An open store. Use as a context manager; open it in the process that uses it.

    Args:
        path: The store's folder.
        writable: Hold the store for writing; another writer then gets E_LOCKED.

    Raises:
        RefusedError: E_STORE, when there is no store.
        DamagedError: E_VERSION, E_STORE or E_CORRUPT, when it cannot be read.
        LockedError: E_LOCKED, when another process writes to it.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self.recipe: Recipe = manifest.read_recipe(path)
        self._lock = _lock(path) if writable else None
        self.volumes = VolumeStore(path / manifest.VOLUMES, self.recipe)
        self._database = Database(path / manifest.ROWS, readonly=not writable)
        if writable:
            self._sweep()

    @classmethod
    def create_or_open(cls, path: Path, recipe: Recipe) -> "Store":
        """Open the store at `path` for writing, creating it when there is none.

        Raises:
            RefusedError: E_CONFIG, when the store has another recipe, naming the fields that differ.
        """
        if not (path / manifest.MARKER).exists():
            manifest.create_store(path, recipe)
        store = cls(path, writable=True)
        try:
            store.require_recipe(recipe)
        except RefusedError:
            store.close()
            raise
        return store

    def require_recipe(self, recipe: Recipe) -> None:
        """Refuse to go on when the store was built with another recipe.

        Raises:
            RefusedError: E_CONFIG, naming the fields that differ.
        """
        if self.recipe != recipe:
            differences = "; ".join(self.recipe.differences(recipe))
            message = f"{self.path} was built with another recipe ({differences})"
            raise RefusedError("E_CONFIG", message, hint="choose another --store, or use the store's own settings")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the database and the lock."""
        self._database.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Reading

    def record(self, volume: str) -> VolumeRecord:
        """Return a volume's record.

        Raises:
            RefusedError: E_MISSING, when the store has no such volume.
        """
        record = self.find(volume)
        if record is None:
            hint = "`m3di info --json` lists the volumes"
            raise RefusedError("E_MISSING", f"the store has no volume {volume!r}", hint=hint)
        return record

    def find(self, volume: str) -> VolumeRecord | None:
        """Return a volume's record, None when there is none."""
        with self._database.reading() as transaction:
            fields = transaction.get_json("volumes", volume_key(volume))
        return None if fields is None else VolumeRecord.from_dict(fields)

    def volume_names(self) -> list[str]:
        """Ids of all volumes, sorted, without reading their records."""
        with self._database.reading() as transaction:
            return [key.decode() for key in transaction.keys("volumes")]

    def records(self) -> list[VolumeRecord]:
        """All volume records, sorted by id."""
        return [self.record(volume) for volume in self.volume_names()]

    def captions(self, captioner: str, volume: str) -> Captions | None:
        """What a captioner wrote about a volume, None when it did not."""
        with self._database.reading() as transaction:
            fields = transaction.get_json("captions", derived_key(captioner, volume))
        return None if fields is None else Captions.from_dict(fields)

    def rows_record(self, teacher: str, volume: str) -> RowsRecord | None:
        """The commit record of a volume's rows by a teacher, None when there is none."""
        with self._database.reading() as transaction:
            fields = transaction.get_json("embedded", derived_key(teacher, volume))
        return None if fields is None else RowsRecord.from_dict(fields)

    def embeddings(self, teacher: str) -> EmbeddingStore:
        """The rows of one teacher, for the volumes where they are up to date."""
        records = [record for record in self.records() if self._has_rows(teacher, record)]
        return EmbeddingStore(self._database, teacher, StoreIndex.of(records))

    def current(self) -> dict[str, str]:
        """Fingerprints of the teacher and captioner that readers use: keys `teacher` and `captioner`.

        Raises:
            RefusedError: E_STORE, when the build has not come that far.
        """
        current = self.current_or_none()
        if current is None:
            raise RefusedError(
                "E_STORE", f"{self.path} has no embeddings yet", hint="run `m3di build-store` to its end"
            )
        return current

    def current_or_none(self) -> dict[str, str] | None:
        """Like `current`, but None when the build has not come that far."""
        with self._database.reading() as transaction:
            return transaction.get_json("meta", _CURRENT)

    def block(self, teacher: str, volume: str, plane: int) -> memoryview:
        """Copy the encoded block of rows of one plane, its checksum verified.

        Raises:
            DamagedError: E_MISSING or E_CORRUPT, naming the block.
        """
        key = block_key(teacher, volume, plane)
        with self._database.reading() as transaction:
            payload = transaction.get("rows", key)
            if payload is None:
                raise DamagedError("E_MISSING", f"block {key.decode()} is missing", hint="run m3di verify")
            return memoryview(bytes(payload))

    def facts(self, kind: str, fingerprint: str) -> dict[str, Any] | None:
        """Facts of a `teacher` or `captioner`, None when the store does not know it."""
        with self._database.reading() as transaction:
            return transaction.get_json("meta", _facts_key(kind, fingerprint))

    def quarantined(self) -> list[Quarantined]:
        """The cases that were refused."""
        with self._database.reading() as transaction:
            keys = list(transaction.keys("quarantine"))
            return [Quarantined(**transaction.get_json("quarantine", key)) for key in keys]

    def digest(self) -> str:
        """Digest of everything committed; equal for equal content, whatever the order it was built in."""
        with self._database.reading() as transaction:
            items: dict[str, str] = {"recipe": self.recipe.digest}
            for key in transaction.keys("volumes"):
                record = VolumeRecord.from_dict(transaction.get_json("volumes", key))
                items[f"volumes/{record.volume}"] = record.content_digest
            for table in ("captions", "embedded", "quarantine", "meta"):
                for key in transaction.keys(table):
                    if key != _NEXT_SLOT:
                        items[f"{table}/{key.decode()}"] = digest_of(transaction.get_json(table, key))
        return digest_of(items)

    def teacher_folder(self, fingerprint: str) -> Path:
        """Where a fitted teacher's weights are, if the store holds them."""
        return self.path / manifest.TEACHERS / fingerprint[:FINGERPRINT_LENGTH]

    # Writing

    def commit_volume(self, record: VolumeRecord, chunks: Mapping[str, Chunk]) -> VolumeRecord:
        """Make a volume durable and visible; its slot and objects are filled in here."""
        with self._database.reading() as transaction:
            slot = transaction.get_json("meta", _NEXT_SLOT) or 0
        replaced = self.find(record.volume)
        objects = self.volumes.write(slot, chunks)
        committed = replace(record, slot=slot, objects=objects)
        key = volume_key(record.volume)
        with self._database.writing() as transaction:
            transaction.put_json("volumes", key, committed.to_dict())
            transaction.put_json("meta", _NEXT_SLOT, slot + 1)
            transaction.delete("quarantine", key)
        if replaced is not None:
            self._sweep()
        return committed

    def commit_captions(self, captioner: str, volume: str, captions: Captions) -> None:
        """Make a volume's captions durable."""
        with self._database.writing() as transaction:
            transaction.put_json("captions", derived_key(captioner, volume), captions.to_dict())

    def commit_rows(
        self, teacher: str, record: VolumeRecord, captions: Captions, planes: Sequence[Rows]
    ) -> RowsRecord:
        """Make a volume's rows durable: per plane (s, parts, dim), one row a valid slice, in one transaction."""
        blocks = [encode_block(rows) for rows in planes]
        axial, coronal, sagittal = (len(rows) for rows in planes)
        digests = [hashlib.sha256(block).hexdigest() for block in blocks]
        rows_record = RowsRecord(
            item_digest=record.item_digest,
            captions_digest=captions.digest,
            parts=PARTS,
            num_rows=(axial, coronal, sagittal),
            dim=planes[0].shape[-1],
            blocks=(digests[0], digests[1], digests[2]),
        )
        with self._database.writing() as transaction:
            for plane, block in enumerate(blocks):
                transaction.put("rows", block_key(teacher, record.volume, plane), block)
            transaction.put_json("embedded", derived_key(teacher, record.volume), rows_record.to_dict())
        return rows_record

    def commit_facts(self, kind: str, fingerprint: str, facts: Mapping[str, Any]) -> None:
        """Keep the facts of a `teacher` or `captioner`."""
        with self._database.writing() as transaction:
            transaction.put_json("meta", _facts_key(kind, fingerprint), dict(facts))

    def commit_current(self, *, teacher: str, captioner: str) -> None:
        """Name the teacher and captioner that readers use from now on."""
        with self._database.writing() as transaction:
            transaction.put_json("meta", _CURRENT, {"teacher": teacher, "captioner": captioner})

    def commit_quarantine(self, refused: Quarantined) -> None:
        """Keep why a case was refused; what an earlier version of it left is no longer a volume."""
        key = volume_key(refused.case)
        with self._database.writing() as transaction:
            transaction.put_json("quarantine", key, vars(refused))
            transaction.delete("volumes", key)

    def lift_quarantine(self, case: str) -> None:
        """Forget that a case was refused."""
        with self._database.writing() as transaction:
            transaction.delete("quarantine", volume_key(case))

    def write_quarantine_table(self) -> Path:
        """Write `quarantine.tsv`: id, source name relative to the root, code, message."""
        path = self.path / "quarantine.tsv"
        rows = [(row.case, row.source, row.code, row.message) for row in self.quarantined()]
        lines = ["\t".join(_one_line(cell) for cell in row) for row in [("id", "source", "code", "message"), *rows]]
        payload = ("\n".join(lines) + "\n").encode()
        if not path.exists() or path.read_bytes() != payload:
            atomic.write_bytes(path, payload)
        return path

    def _has_rows(self, teacher: str, record: VolumeRecord) -> bool:
        rows = self.rows_record(teacher, record.volume)
        return rows is not None and rows.item_digest == record.item_digest

    def _sweep(self) -> None:
        self.volumes.sweep(record.slot for record in self.records())
        atomic.sweep(self.path)
        atomic.sweep(self.path / manifest.TEACHERS)


def _facts_key(kind: str, fingerprint: str) -> bytes:
    return f"{kind}/{fingerprint[:FINGERPRINT_LENGTH]}".encode("ascii")


def _one_line(cell: str) -> str:
    """A table cell from data: printable, on one line, without tabs."""
    return "".join(char if char.isprintable() else " " for char in cell)


def _lock(path: Path) -> int:
    descriptor = os.open(path / "builder.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        hint = "wait for the other m3di build-store, or choose another --store"
        raise LockedError("E_LOCKED", f"another process writes to {path}", hint=hint) from error
    return descriptor
