"""The LMDB environment of a store: opened per process, every value in a checksummed envelope."""

import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import google_crc32c
import lmdb
import numpy as np

from stores.atomic import disk_errors, write_folder
from stores.errors import DamagedError, ResourceError
from stores.locking import is_network
from stores.recipe import canonical_json

TABLES: Final = ("meta", "volumes", "captions", "embedded", "rows", "quarantine", "index", "facts", "replies")
INDEXED: Final = frozenset({"volumes", "embedded"})  # what the index is made of: a write to them empties it
MAX_READERS: Final = 1022
MAP_SIZE: Final = 1 << 40  # address space, not disk: the file grows with what is written
_META: Final = struct.Struct("<16xIIQQI44x48xQQ")  # LMDB meta page: magic, version, .., page size, .., last page, txn
_MAGIC: Final = 0xBEEFC0DE


class Database:
    """Named tables of bytes, one writer, many readers.

    Args:
        folder: The environment's folder.
        readonly: Open for reading only.

    Raises:
        DamagedError: E_STORE, when the data file is missing, shorter than its own account of pages, or not LMDB.
    """

    def __init__(self, folder: Path, *, readonly: bool) -> None:
        self._folder = folder
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._snapshots: list[Snapshot] = []
        self._open(readonly=readonly)

    def _open(self, *, readonly: bool) -> None:
        folder = self._folder
        check_not_truncated(folder / "data.mdb", missing_ok=not readonly)
        # A reader of a medium that it cannot write to, or on which locks cannot be trusted, goes without: nobody
        # else may write then.
        locked = not readonly or (os.access(folder, os.W_OK) and not is_network(folder))
        try:
            with disk_errors(folder):
                self._environment = lmdb.open(
                    os.fspath(folder), map_size=MAP_SIZE, max_dbs=len(TABLES), readonly=readonly, subdir=True,
                    create=not readonly, lock=locked, max_spare_txns=2,
                    max_readers=MAX_READERS,
                )  # fmt: skip
                self._environment.reader_check()
                self._tables = dict(self._open_tables(create=not readonly))
        except lmdb.MemoryError as error:
            message = f"no address space for {folder}: {error}"
            raise ResourceError("E_MEMORY", message, hint="raise the limit of virtual memory (ulimit -v)") from error
        except lmdb.Error as error:
            raise DamagedError("E_STORE", f"cannot open {folder}: {error}", hint="run m3di verify") from error

    def _open_tables(self, *, create: bool) -> Iterator[tuple[str, Any]]:
        for name in TABLES:
            with suppress(lmdb.NotFoundError):  # a store of an older format version, opened for reading
                yield name, self._environment.open_db(name.encode(), create=create)

    @property
    def transaction(self) -> int:
        """Number of the newest committed transaction; it grows until the database is written anew."""
        return int(self._environment.info()["last_txnid"])

    def snapshot(self) -> "Snapshot":
        """A consistent view that stays, for as long as the database is open."""
        self._check_process()
        snapshot = Snapshot(self._environment.begin(buffers=True), self._tables, self._environment.path())
        self._snapshots.append(snapshot)
        return snapshot

    @contextmanager
    def reading(self) -> Iterator["Transaction"]:
        """A consistent view; values are memory-mapped and live until the end of the block."""
        self._check_process()
        with _read_errors(self._environment.path()), self._environment.begin(buffers=True) as transaction:
            yield Transaction(transaction, self._tables)

    @contextmanager
    def writing(self) -> Iterator["Transaction"]:
        """One durable transaction: all of it or nothing.

        Raises:
            ResourceError: E_DISK, when the disk is full; nothing of the transaction is kept.
        """
        self._check_process()
        with (
            _write_errors(self._folder),
            self._lock,
            self._environment.begin(write=True, buffers=True) as transaction,
        ):
            yield Transaction(transaction, self._tables)

    def copy(self, folder: Path) -> None:
        """Write a consistent, compact copy into an empty folder, made if there is none; others may write meanwhile.

        Raises:
            ResourceError: E_DISK, when the disk is full.
        """
        self._check_process()
        with disk_errors(folder), _write_errors(folder):
            folder.mkdir(exist_ok=True)
            self._environment.copy(os.fspath(folder), compact=True)

    def compact(self) -> None:
        """Write the database anew: pages that are free keep what was deleted until something else comes to them.

        Readers in other processes keep the old file until they close; snapshots of this one are closed.
        """
        write_folder(self._folder, self.copy)
        self.close()
        self._open(readonly=False)

    def close(self) -> None:
        """Release the environment; its snapshots can no longer be read."""
        for snapshot in self._snapshots:
            snapshot.close()
        self._snapshots.clear()
        self._environment.close()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("an open store must not cross a fork: open it in the process that reads it")

    def __reduce__(self) -> Any:
        raise TypeError("an open store cannot be pickled: send its path and open it there")


class Transaction:
    """Reads and writes of one LMDB transaction, in envelopes: crc32c over key and payload, then the payload."""

    def __init__(self, transaction: Any, tables: dict[str, Any]) -> None:
        self._transaction = transaction
        self._tables = tables

    def get(self, table: str, key: bytes, *, verified: bool = True) -> memoryview | None:
        """Return the payload under `key`, its checksum verified; None when there is no such key.

        Args:
            table: Name of the table.
            key: The key.
            verified: Verify the checksum; False only for what carries checksums of its own that the caller verifies.

        Raises:
            DamagedError: E_CORRUPT, when the checksum does not fit.
        """
        value = self._transaction.get(key, db=self._tables[table]) if table in self._tables else None
        if value is None:
            return None
        return _payload(table, key, value) if verified else value[4:]

    def put(self, table: str, key: bytes, payload: bytes) -> None:
        """Write `payload` under `key`."""
        self._touch(table)
        self._transaction.put(key, checksum(key, payload) + payload, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        """Remove `key` if it is there."""
        self._touch(table)
        self._transaction.delete(key, db=self._tables[table])

    def keys(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Keys that start with `prefix`, ascending, without touching their values."""
        if table not in self._tables:
            return
        cursor = self._transaction.cursor(db=self._tables[table])
        if not cursor.set_range(prefix):
            return
        for key in cursor.iternext(values=False):
            if not bytes(key).startswith(prefix):
                return
            yield bytes(key)

    def heads(self, table: str) -> list[str]:
        """The distinct first parts, up to the slash, of a table's keys; without walking over all of them."""
        found: list[str] = []
        cursor = self._transaction.cursor(db=self._tables[table])
        after = b""
        while cursor.set_range(after):
            head = bytes(cursor.key()).partition(b"/")[0]
            found.append(head.decode())
            after = head + b"0"  # the byte after the slash
        return found

    def count(self, table: str) -> int:
        """How many keys a table has."""
        return int(self._transaction.stat(self._tables[table])["entries"]) if table in self._tables else 0

    def _touch(self, table: str) -> None:
        """Empty the index before what it is made of changes."""
        if table in INDEXED and self.count("index"):
            self._transaction.drop(self._tables["index"], delete=False)

    def get_json(self, table: str, key: bytes) -> Any:
        """Return the JSON value under `key`; None when there is no such key."""
        payload = self.get(table, key)
        return None if payload is None else json.loads(zlib.decompress(payload))

    def put_json(self, table: str, key: bytes, value: object) -> None:
        """Write a JSON value in its canonical form, deflated."""
        self.put(table, key, zlib.compress(canonical_json(value)))


class Snapshot:
    """A read transaction that stays open, so that what it has found stays where it is.

    Args:
        transaction: An LMDB read transaction with buffers.
        tables: Its tables.
        path: Of the database, for messages.
    """

    def __init__(self, transaction: Any, tables: dict[str, Any], path: str) -> None:
        self._transaction = transaction
        self._path = path
        self._reader = Transaction(transaction, tables)
        self._lock = threading.RLock()
        self._open = True

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Keep the map in place while views of it are read; they must not be touched afterwards."""
        with self._lock, _read_errors(self._path):
            if not self._open:
                raise ValueError("the store is closed")
            yield self._reader

    def close(self) -> None:
        """End the transaction, once nobody reads."""
        with self._lock:
            self._open = False
            self._transaction.abort()


_BROKEN: Final = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError)


@contextmanager
def _read_errors(path: str) -> Iterator[None]:
    """Whatever LMDB cannot read is damage: it has no other reason to fail a reader."""
    try:
        yield
    except lmdb.Error as error:
        raise _broken(path, error) from error


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """What LMDB cannot write for is damage, or else the disk: a full one is a plain "Input/output error" here."""
    try:
        yield
    except _BROKEN as error:
        raise _broken(os.fspath(folder), error) from error
    except lmdb.Error as error:
        message = f"cannot write {folder}: {error}"
        raise ResourceError("E_DISK", message, hint="make room and run the command again") from error


def _broken(path: str, error: lmdb.Error) -> DamagedError:
    message = f"the pages of {path}/data.mdb do not hold together: {error}"
    return DamagedError("E_CORRUPT", message, hint="run m3di verify")


def checksum(key: bytes, payload: bytes | memoryview) -> bytes:
    """crc32c over key and payload, four bytes, little-endian."""
    # google_crc32c takes no memoryview; an array over the same memory spares a copy.
    return struct.pack("<I", google_crc32c.extend(google_crc32c.value(key), np.frombuffer(payload, np.uint8)))


def check_not_truncated(data: Path, *, missing_ok: bool) -> None:
    """Compare an LMDB data file with its own count of pages, since a short file is a bus error inside LMDB.

    Raises:
        DamagedError: E_STORE, when the file is missing, not LMDB, or shorter than its newest meta page says.
    """
    if not data.exists() and missing_ok:
        return
    hint = "restore it from a copy, or remove the store and build it again"
    if not data.is_file():
        raise DamagedError("E_STORE", f"{data} is missing", hint=hint)
    with data.open("rb") as file:
        metas = [_read_meta(file.read(_META.size))]
        page_size = metas[0][0] if metas[0] else 4096
        file.seek(page_size)
        metas.append(_read_meta(file.read(_META.size)))
    known = [meta for meta in metas if meta]
    if not known:
        raise DamagedError("E_STORE", f"{data} is not an LMDB file", hint=hint)
    _, last_page, _ = max(known, key=lambda meta: meta[2])
    size, expected = data.stat().st_size, (last_page + 1) * page_size
    if size < expected:
        raise DamagedError("E_STORE", f"{data} is truncated: {size} bytes of {expected}", hint=hint)


def _read_meta(page: bytes) -> tuple[int, int, int] | None:
    """(page size, last page, transaction) of a meta page; None when it is none."""
    if len(page) < _META.size:
        return None
    magic, _, _, _, page_size, last_page, transaction = _META.unpack(page)
    return (page_size, last_page, transaction) if magic == _MAGIC else None


def _payload(table: str, key: bytes, value: memoryview) -> memoryview:
    if bytes(value[:4]) != checksum(key, value[4:]):
        raise DamagedError(
            "E_CORRUPT", f"the {table} record of {key.decode()} fails its checksum", hint="run m3di verify"
        )
    return value[4:]
