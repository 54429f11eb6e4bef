"""The feature store: opened for reading by many, for writing by one, committed item by item."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from stores import atomic, manifest
from stores.blocks import Block, Rows, encode_block
from stores.chunks import LAYOUTS, Chunk
from stores.database import Database, Transaction
from stores.embeddings import EmbeddingStore
from stores.errors import DamagedError, RefusedError
from stores.index import StoreIndex
from stores.keys import FINGERPRINT_LENGTH, block_key, derived_key, volume_key
from stores.locking import lock_builder, refuse_network
from stores.manifest import Marker
from stores.recipe import Recipe, canonical_json, digest_of
from stores.records import Captions, RowsRecord, VolumeRecord
from stores.volumes import VolumeStore, remove_slot

PARTS: Final = ("image", "text")
SEAL: Final = "seal.json"
_CURRENT: Final = b"current"
_NEXT_SLOT: Final = b"next-slot"
_UNFINISHED: Final = b"unfinished"  # a build has begun to change the store, and has not come to its end
_WITHDRAWING: Final = b"withdrawing"  # a withdrawal has been decided on, and its traces are not gone yet
_WITHDRAWN: Final = b"withdrawn"  # content digests of the scans that builds and merges must not bring back
_BEFORE: Final = b"before"  # how many transactions there were when the database was last written anew
_BOOKKEEPING: Final = frozenset({_NEXT_SLOT, _UNFINISHED, _WITHDRAWING, _WITHDRAWN, _BEFORE})


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
        wait_s: How long to wait for another writer, seconds.
        allow_network: Write on a network file system too, on the word of the user that nobody else does.

    Raises:
        RefusedError: E_STORE, when there is no store; E_PATH, when it may not be written.
        DamagedError: E_VERSION, E_STORE or E_CORRUPT, when it cannot be read.
        LockedError: E_LOCKED, when another process writes to it.
    """

    def __init__(
        self, path: Path, *, writable: bool = False, wait_s: float = 0.0, allow_network: bool = False
    ) -> None:
        self.path = path
        self.marker = manifest.read_marker(path)
        self._lock: int | None = None
        if writable:
            if not allow_network:
                refuse_network(path)
            with atomic.disk_errors(path):
                self._lock = lock_builder(path, wait_s=wait_s)
            self.marker = manifest.read_marker(path)  # the writer before may have changed it
        try:
            self.volumes = self._volumes()
            self._database = Database(path / manifest.ROWS, readonly=not writable)
        except BaseException:
            self._unlock()
            raise
        if writable:
            try:
                self._begin_writing()
            except BaseException:
                self.close()
                raise

    @classmethod
    def create_or_open(
        cls, path: Path, recipe: Recipe, *, layout: str = "compact", change_recipe: bool = False,
        wait_s: float = 0.0, allow_network: bool = False,
    ) -> "Store":  # fmt: skip
        """Open the store at `path` for writing, creating it when there is none.

        Args:
            path: The store's folder.
            recipe: How its volumes are made.
            layout: `compact` or `uncompressed`, for a store that is created here.
            change_recipe: Take up another recipe in a store that has one: its volumes are then all out of date.
            wait_s: How long to wait for another writer, seconds.
            allow_network: Write on a network file system too.

        Raises:
            RefusedError: E_CONFIG, when the store has another recipe, naming the fields that differ.
        """
        if not (path / manifest.MARKER).exists():
            if not allow_network:
                refuse_network(path.parent)
            manifest.create_store(path, Marker(recipe, layout))
        store = cls(path, writable=True, wait_s=wait_s, allow_network=allow_network)
        try:
            if change_recipe and store.recipe != recipe:
                store._change_recipe(recipe)
            store.require_recipe(recipe)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def recipe(self) -> Recipe:
        """How the store's volumes are made."""
        return self.marker.recipe

    def require_recipe(self, recipe: Recipe) -> None:
        """Refuse to go on when the store was built with another recipe.

        Raises:
            RefusedError: E_CONFIG, naming the fields that differ.
        """
        if self.recipe != recipe:
            differences = "; ".join(self.recipe.differences(recipe))
            message = f"{self.path} was built with another recipe ({differences})"
            hint = "use its own settings, or another --store; --set storage.change_recipe=true redoes its volumes"
            raise RefusedError("E_CONFIG", message, hint=hint)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the database and the lock."""
        self._database.close()
        self._unlock()

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
        """The records of the volumes of the store's recipe, sorted by id."""
        return [record for record in self.all_records() if self.is_current(record)]

    def is_current(self, record: VolumeRecord) -> bool:
        """Whether a volume was made by the store's recipe."""
        if not record.recipe_digest:  # format version 1: in the arrays that such a store began with
            return self.marker.group == manifest.VOLUMES
        return record.recipe_digest == self.recipe.digest

    def all_records(self) -> list[VolumeRecord]:
        """All volume records, those of a former recipe that the build has not come to yet included."""
        with self._database.reading() as transaction:
            return [VolumeRecord.from_dict(transaction.get_json("volumes", k)) for k in transaction.keys("volumes")]

    def captions(self, captioner: str, volume: str) -> Captions | None:
        """What a captioner wrote about a volume, None when it did not."""
        with self._database.reading() as transaction:
            fields = transaction.get_json("captions", derived_key(captioner, volume))
        return None if fields is None else Captions.from_dict(fields)

    def slice_facts(self, captioner: str, volume: str) -> list[list[dict[str, Any]]] | None:
        """What a captioner measured of a volume: per plane, one JSON object a valid slice; None when it kept none."""
        with self._database.reading() as transaction:
            return transaction.get_json("facts", derived_key(captioner, volume))

    def reply(self, key: str) -> dict[str, Any] | None:
        """What a captioning server once answered, by the digest of what it was asked; None when it was not."""
        with self._database.reading() as transaction:
            return transaction.get_json("replies", key.encode())

    def rows_record(self, teacher: str, volume: str) -> RowsRecord | None:
        """The commit record of a volume's rows by a teacher, None when there is none."""
        with self._database.reading() as transaction:
            fields = transaction.get_json("embedded", derived_key(teacher, volume))
        return None if fields is None else RowsRecord.from_dict(fields)

    def copy_rows(self, folder: Path) -> None:
        """Write the database, as it is now, into a folder that does not exist yet."""
        self._database.copy(folder)

    def embeddings(self, fingerprint: str) -> EmbeddingStore:
        """The rows of one row set, for the volumes where they are up to date, as they are now."""
        snapshot = self._database.snapshot()
        with snapshot.reading() as transaction:
            segments = [
                bytes(transaction.get("index", key) or b"")
                for key in transaction.keys("index", fingerprint[:FINGERPRINT_LENGTH].encode() + b"/")
            ]
            index = StoreIndex.join(segments) if segments else self._make_index(transaction, fingerprint)
        return EmbeddingStore(snapshot, fingerprint, index)

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

    def block(self, fingerprint: str, volume: str, plane: int) -> memoryview:
        """Copy the encoded block of rows of one plane, its checksum verified.

        Raises:
            DamagedError: E_MISSING or E_CORRUPT, naming the block.
        """
        key = block_key(fingerprint, volume, plane)
        with self._database.reading() as transaction:
            payload = transaction.get("rows", key)
            if payload is None:
                raise DamagedError("E_MISSING", f"block {key.decode()} is missing", hint="run m3di verify")
            return memoryview(bytes(payload))

    def plane_rows(self, fingerprint: str, volume: str, plane: int) -> Rows:
        """Copy all rows of one plane, checked: (s, parts, width), in ascending order of slice position.

        Raises:
            DamagedError: E_MISSING or E_CORRUPT, naming the block.
        """
        return Block(self.block(fingerprint, volume, plane), block_key(fingerprint, volume, plane)).rows()

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
        return digest_of(self.items())

    def items(self) -> dict[str, str]:
        """Digest of every item by name: recipe, volumes, captions, rows, quarantine, facts."""
        with self._database.reading() as transaction:
            items: dict[str, str] = {"recipe": self.recipe.digest}
            for key in transaction.keys("volumes"):
                record = VolumeRecord.from_dict(transaction.get_json("volumes", key))
                items[f"volumes/{record.volume}"] = record.content_digest
            for table in ("captions", "embedded", "quarantine", "meta"):
                for key in transaction.keys(table):
                    if key not in _BOOKKEEPING:
                        items[f"{table}/{key.decode()}"] = digest_of(transaction.get_json(table, key))
        return items

    def teachers(self) -> list[str]:
        """Fingerprints (their heads) of the teachers whose facts the store keeps."""
        return [fingerprint for kind, fingerprint in self.known_facts() if kind == "teacher"]

    def known_facts(self) -> list[tuple[str, str]]:
        """(kind, head of the fingerprint) of all facts that the store keeps."""
        with self._database.reading() as transaction:
            keys = [key.decode() for key in transaction.keys("meta") if b"/" in key]
        return [(kind, fingerprint) for kind, _, fingerprint in (key.partition("/") for key in keys)]

    def captioners(self, volume: str) -> list[str]:
        """Heads of the fingerprints of the captioners that described a volume."""
        return self._makers("captions", volume)

    def row_sets(self, volume: str) -> list[str]:
        """Heads of the fingerprints of the row sets that a volume has."""
        return self._makers("embedded", volume)

    def orphans(self) -> list[tuple[str, str]]:
        """(what, volume) of captions and rows whose volume is not in the store."""
        names = set(self.volume_names())
        return [(f"{table} {maker}", volume) for table, maker, volume in self._derived() if volume not in names]

    def outdated(self) -> list[tuple[str, bytes]]:
        """(table, key) of captions and rows that no reader can use: of a volume that is gone or has changed."""
        records = {record.volume: record for record in self.records()}
        found = []
        with self._database.reading() as transaction:
            for table, maker, volume in self._derived():
                key = derived_key(maker, volume)
                record = records.get(volume)
                if table == "captions":
                    stale = record is None
                else:
                    fields = transaction.get_json(table, key)
                    stale = record is None or not self.rows_are_current(RowsRecord.from_dict(fields), record)
                if stale:
                    found.append((table, key))
        return found

    def _derived(self) -> Iterator[tuple[str, str, str]]:
        """(table, maker, volume) of all captions and rows."""
        for table in ("captions", "embedded"):
            with self._database.reading() as transaction:
                keys = [key.decode() for key in transaction.keys(table)]
            for key in keys:
                maker, _, volume = key.partition("/")
                yield table, maker, volume

    def _makers(self, table: str, volume: str) -> list[str]:
        with self._database.reading() as transaction:
            heads = transaction.heads(table)
            return [head for head in heads if transaction.get(table, derived_key(head, volume), verified=False)]

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
        committed = replace(record, slot=slot, objects=objects, recipe_digest=self.recipe.digest)
        key = volume_key(record.volume)
        with self._changing() as transaction:
            transaction.put_json("volumes", key, committed.to_dict())
            transaction.put_json("meta", _NEXT_SLOT, slot + 1)
            transaction.delete("quarantine", key)
        if replaced is not None and self.is_current(replaced):
            self.volumes.remove(replaced.slot)
        return committed

    def commit_captions(
        self, captioner: str, volume: str, captions: Captions, *, facts: Sequence[Sequence[Mapping[str, Any]]] = ()
    ) -> None:
        """Make a volume's captions durable, with the facts of each slice if its captioner measured some."""
        key = derived_key(captioner, volume)
        with self._changing() as transaction:
            transaction.put_json("captions", key, captions.to_dict())
            if facts:
                transaction.put_json("facts", key, [list(plane) for plane in facts])
            else:
                transaction.delete("facts", key)

    def commit_reply(self, key: str, reply: Mapping[str, Any]) -> None:
        """Make what a server answered durable, so that no later run asks (and pays) again; threads may do so."""
        with self._database.writing() as transaction:
            transaction.put_json("replies", key.encode(), dict(reply))

    def replies(self) -> list[str]:
        """Keys of all answers that the store keeps, sorted."""
        with self._database.reading() as transaction:
            return [key.decode() for key in transaction.keys("replies")]

    def commit_rows(
        self, fingerprint: str, record: VolumeRecord, planes: Sequence[Rows], *,
        captions_digest: str = "", parts: Sequence[str] = PARTS,
    ) -> RowsRecord:  # fmt: skip
        """Make a volume's rows durable, in one transaction.

        Args:
            fingerprint: The row set. A teacher's own is that of its image and text rows; dense rows have another, so
                that rows of two kinds, or of two teachers, are never mixed.
            record: The volume.
            planes: Per plane (s, parts, width) float16, one row a valid slice.
            captions_digest: The captions that a part was made of.
            parts: Names of the parts.
        """
        axial, coronal, sagittal = (len(rows) for rows in planes)
        blocks = [
            encode_block(rows, block_key(fingerprint, record.volume, plane)) for plane, rows in enumerate(planes)
        ]
        digests = [hashlib.sha256(block).hexdigest() for block in blocks]
        rows_record = RowsRecord(
            item_digest=record.slices_digest(self.recipe),
            captions_digest=captions_digest,
            parts=tuple(parts),
            num_rows=(axial, coronal, sagittal),
            dim=planes[0].shape[-1],
            blocks=(digests[0], digests[1], digests[2]),
        )
        self.put_rows(fingerprint, record.volume, rows_record, blocks)
        return rows_record

    def put_rows(self, fingerprint: str, volume: str, record: RowsRecord, blocks: Sequence[bytes]) -> None:
        """Make a record and the encoded blocks that it is of durable, in one transaction."""
        with self._changing() as transaction:
            for plane, block in enumerate(blocks):
                transaction.put("rows", block_key(fingerprint, volume, plane), block)
            transaction.put_json("embedded", derived_key(fingerprint, volume), record.to_dict())

    def commit_facts(self, kind: str, fingerprint: str, facts: Mapping[str, Any]) -> None:
        """Keep the facts of a `teacher` or `captioner`."""
        if self.facts(kind, fingerprint) == json.loads(canonical_json(dict(facts))):
            return
        with self._database.writing() as transaction:
            transaction.put_json("meta", _facts_key(kind, fingerprint), dict(facts))

    def commit_current(self, *, teacher: str, captioner: str) -> None:
        """Name the teacher and captioner that readers use from now on: the end of a build.

        Keeps the index, and notes beside the database how far it has come: an older one in its place is noticed.
        """
        current = {"teacher": teacher, "captioner": captioner}
        if self.current_or_none() != current:
            with self._changing() as transaction:
                transaction.put_json("meta", _CURRENT, current)
        self._keep_index(teacher)
        digest = self.digest()
        if not self.unfinished() and self.read_seal() == {"transaction": self.transaction, "digest": digest}:
            return
        with self._changing():
            pass  # until the last transaction, a seal that does not fit is not damage
        seal = {"transaction": self.transaction + 1, "digest": digest}
        atomic.write_bytes(self.path / SEAL, json.dumps(seal).encode())
        with self._database.writing() as transaction:
            transaction.delete("meta", _UNFINISHED)
            transaction.delete("meta", _WITHDRAWING)

    def read_seal(self) -> dict[str, Any] | None:
        """What the newest seal says: `transaction` and `digest`; None without one, or when it is none.

        Raises:
            DamagedError: E_CORRUPT, when it is not a seal.
        """
        try:
            seal = json.loads((self.path / SEAL).read_bytes())
            return {"transaction": int(seal["transaction"]), "digest": str(seal["digest"])}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            message = f"{self.path / SEAL} is not a seal"
            raise DamagedError("E_CORRUPT", message, hint="run m3di build-store again") from error

    @property
    def transaction(self) -> int:
        """Number of the newest committed transaction; it only grows."""
        with self._database.reading() as transaction:
            return (transaction.get_json("meta", _BEFORE) or 0) + self._database.transaction

    def unfinished(self) -> bool:
        """Whether a build has begun to change the store and has not come to its end."""
        with self._database.reading() as transaction:
            return transaction.get_json("meta", _UNFINISHED) is not None

    def commit_quarantine(self, refused: Quarantined) -> None:
        """Keep why a case was refused; what an earlier version of it left is no longer a volume."""
        key = volume_key(refused.case)
        with self._changing() as transaction:
            transaction.put_json("quarantine", key, vars(refused))
            transaction.delete("volumes", key)

    def lift_quarantine(self, case: str) -> None:
        """Forget that a case was refused."""
        with self._changing() as transaction:
            transaction.delete("quarantine", volume_key(case))

    def remove(
        self, *, volumes: Sequence[str], derived: Sequence[tuple[str, bytes]], folders: Sequence[Path]
    ) -> None:
        """Remove volumes, captions and rows by their keys, and teachers' folders; then what only they owned."""
        with self._database.writing() as transaction:
            for volume in volumes:
                transaction.delete("volumes", volume_key(volume))
            for table, key in derived:
                transaction.delete(table, key)
                if table == "captions":
                    transaction.delete("facts", key)
                if table == "embedded":
                    for plane in range(3):
                        transaction.delete("rows", key + f"/{plane}".encode())
        for folder in folders:
            shutil.rmtree(folder)
        self._begin_writing()
        current = self.current_or_none()
        if current is not None and not self.unfinished():
            self.commit_current(**current)

    def withdrawn(self) -> frozenset[str]:
        """Content digests of the scans that were withdrawn: a build or merge must not bring them back."""
        with self._database.reading() as transaction:
            return frozenset(transaction.get_json("meta", _WITHDRAWN) or ())

    def commit_withdrawn(self, digests: Set[str]) -> None:
        """Keep which scans were withdrawn, in place of those that were kept before."""
        if digests != self.withdrawn():
            with self._database.writing() as transaction:
                transaction.put_json("meta", _WITHDRAWN, sorted(digests))

    def withdraw(self, volumes: Sequence[str]) -> None:
        """Take volumes and refused cases out, with all that was made of them, so that no file keeps a trace.

        One transaction decides; what then follows is done again by the next writer if a kill comes in between.
        Answers of captioning servers go all: their keys do not say which volume they are about.
        """
        records = [record for record in map(self.find, volumes) if record is not None]
        finished = self.current_or_none() is not None and not self.unfinished()
        before = self.transaction
        gone = self.withdrawn() | {record.source_digest for record in records}
        with self._changing() as transaction:
            pending = transaction.get_json("meta", _WITHDRAWING) or {"slots": [], "finished": finished}
            slots = [*pending["slots"], *(record.slot for record in records)]
            transaction.put_json("meta", _WITHDRAWING, {**pending, "slots": slots})
            transaction.put_json("meta", _WITHDRAWN, sorted(gone))
            transaction.put_json("meta", _BEFORE, before)
            for volume in volumes:
                _delete_volume(transaction, volume)
            _forget_fitted(transaction, set(volumes))
            for key in list(transaction.keys("replies")):
                transaction.delete("replies", key)
        self._finish_withdrawal()

    def withdrawing(self) -> bool:
        """Whether a withdrawal was interrupted: the next writer, as it opens the store, does the rest."""
        with self._database.reading() as transaction:
            return transaction.get_json("meta", _WITHDRAWING) is not None

    def _finish_withdrawal(self) -> None:
        """Remove from the files what a withdrawal took out of the records; nothing if there was none."""
        with self._database.reading() as transaction:
            pending = transaction.get_json("meta", _WITHDRAWING)
        if pending is None:
            return
        root = self.path / manifest.VOLUMES
        for group in (root, *(entry.parent.parent for entry in root.glob("*/image/zarr.json"))):
            for slot in pending["slots"]:
                remove_slot(group, slot)
        if (self.path / "quarantine.tsv").exists():
            self.write_quarantine_table()
        self._database.compact()
        current = self.current_or_none()
        if pending["finished"] and current is not None:
            self.commit_current(**current)
        else:
            with self._database.writing() as transaction:
                transaction.delete("meta", _WITHDRAWING)

    def quarantine_table(self) -> bytes:
        """The cases that were refused as a table: id, source name relative to the root, code, message."""
        rows = [(row.case, row.source, row.code, row.message) for row in self.quarantined()]
        lines = ["\t".join(_one_line(cell) for cell in row) for row in [("id", "source", "code", "message"), *rows]]
        return ("\n".join(lines) + "\n").encode()

    def write_quarantine_table(self) -> Path:
        """Write `quarantine.tsv`."""
        path, payload = self.path / "quarantine.tsv", self.quarantine_table()
        if not path.exists() or path.read_bytes() != payload:
            atomic.write_bytes(path, payload)
        return path

    def rows_are_current(self, rows: RowsRecord | None, record: VolumeRecord) -> bool:
        """Whether rows were made of the volume's slices as they are."""
        return rows is not None and rows.item_digest in (record.slices_digest(self.recipe), record.item_digest)

    def _make_index(self, transaction: Transaction, fingerprint: str) -> StoreIndex:
        """Index the volumes whose rows are up to date, from their records."""
        indexed = []
        for key in transaction.keys("volumes"):
            record = VolumeRecord.from_dict(transaction.get_json("volumes", key))
            fields = transaction.get_json("embedded", derived_key(fingerprint, record.volume))
            rows = None if fields is None else RowsRecord.from_dict(fields)
            if self.is_current(record) and self.rows_are_current(rows, record):
                indexed.append(record)
        return StoreIndex.of(indexed)

    def _keep_index(self, fingerprint: str) -> None:
        """Keep the index of a row set with the store, so that opening it is fast; any later change drops it."""
        prefix = fingerprint[:FINGERPRINT_LENGTH]
        with self._database.reading() as transaction:
            if next(transaction.keys("index", prefix.encode()), None) is not None:
                return
            index = self._make_index(transaction, fingerprint)
        with self._changing() as transaction:
            for number, segment in enumerate(index.segments()):
                transaction.put("index", f"{prefix}/{number:06d}".encode(), segment)

    @contextmanager
    def _changing(self) -> Iterator[Transaction]:
        """A transaction of a build that has not come to its end."""
        with self._database.writing() as transaction:
            if transaction.get_json("meta", _UNFINISHED) is None:
                transaction.put_json("meta", _UNFINISHED, {})
            yield transaction

    def _volumes(self) -> VolumeStore:
        return VolumeStore(self.path / self.marker.group, self.recipe, LAYOUTS[self.marker.layout])

    def _change_recipe(self, recipe: Recipe) -> None:
        """Take up another recipe: new arrays, then a new marker, after which the old volumes are out of date."""
        group = f"{manifest.VOLUMES}/{recipe.digest[:FINGERPRINT_LENGTH]}"
        if not (self.path / group).exists():
            atomic.write_folder(
                self.path / group, lambda folder: VolumeStore.create(folder, recipe, LAYOUTS[self.marker.layout])
            )
        with self._changing():
            pass
        self.marker = replace(self.marker, recipe=recipe, group=group, version=manifest.FORMAT_VERSION)
        manifest.write_marker(self.path, self.marker)
        self.volumes = self._volumes()

    def _begin_writing(self) -> None:
        """Take over what a former writer left: its version, and what it did not commit."""
        if self.marker.version < manifest.FORMAT_VERSION:
            self.marker = replace(self.marker, version=manifest.FORMAT_VERSION)
            manifest.write_marker(self.path, self.marker)
        records = self.all_records()
        self.volumes.sweep(record.slot for record in records if self.is_current(record))
        if all(self.is_current(record) for record in records):
            self._remove_former_groups()
        for folder in (self.path, self.path / manifest.TEACHERS, self.path / manifest.VOLUMES):
            atomic.sweep(folder)
        atomic.sweep_beside(self.path)
        self._finish_withdrawal()

    def _remove_former_groups(self) -> None:
        """Remove the arrays of former recipes, of which no volume is left."""
        root = self.path / manifest.VOLUMES
        current = self.path / self.marker.group
        if current == root:
            return
        for entry in root.iterdir():
            if entry.is_dir() and entry != current:
                shutil.rmtree(entry)

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _delete_volume(transaction: Transaction, volume: str) -> None:
    """Delete every record and row of a volume or refused case."""
    key = volume_key(volume)
    transaction.delete("volumes", key)
    transaction.delete("quarantine", key)
    for table in ("captions", "facts", "embedded", "rows"):
        for maker in transaction.heads(table):
            for ending in (b"", b"/0", b"/1", b"/2"):
                transaction.delete(table, derived_key(maker, volume) + ending)


def _forget_fitted(transaction: Transaction, volumes: Set[str]) -> None:
    """Strike volumes off the lists of what teachers were fitted to."""
    for key in list(transaction.keys("meta", b"teacher/")):
        facts = transaction.get_json("meta", key)
        if volumes & facts.get("fitted_on", {}).keys():
            facts["fitted_on"] = {name: scan for name, scan in facts["fitted_on"].items() if name not in volumes}
            transaction.put_json("meta", key, facts)


def _facts_key(kind: str, fingerprint: str) -> bytes:
    return f"{kind}/{fingerprint[:FINGERPRINT_LENGTH]}".encode("ascii")


def _one_line(cell: str) -> str:
    """A table cell from data: printable, on one line, without tabs."""
    return "".join(char if char.isprintable() else " " for char in cell)
