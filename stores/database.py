"""The LMDB environment of a store: opened per process, every value in a checksummed envelope."""

import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google_crc32c
import lmdb
import numpy as np

from stores.atomic import disk_errors
from stores.errors import DamagedError, ResourceError
from stores.recipe import canonical_json

TABLES: Final = ("meta", "volumes", "captions", "embedded", "rows", "quarantine")
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
        check_not_truncated(folder / "data.mdb", missing_ok=not readonly)
        try:
            with disk_errors(folder):
                self._environment = lmdb.open(
                    os.fspath(folder), map_size=MAP_SIZE, max_dbs=len(TABLES), readonly=readonly, subdir=True,
                    create=not readonly, lock=not readonly or os.access(folder, os.W_OK), max_spare_txns=2,
                )  # fmt: skip
                self._environment.reader_check()
                self._tables = {name: self._environment.open_db(name.encode()) for name in TABLES}
        except lmdb.Error as error:
            raise DamagedError("E_STORE", f"cannot open {folder}: {error}", hint="run m3di verify") from error
        self._process = os.getpid()
        self._lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator["Transaction"]:
        """A consistent view; values are memory-mapped and live until the end of the block."""
        self._check_process()
        with self._environment.begin(buffers=True) as transaction:
            yield Transaction(transaction, self._tables)

    @contextmanager
    def writing(self) -> Iterator["Transaction"]:
        """One durable transaction: all of it or nothing.

        Raises:
            ResourceError: E_DISK, when the disk is full; nothing of the transaction is kept.
        """
        self._check_process()
        try:
            with self._lock, self._environment.begin(write=True, buffers=True) as transaction:
                yield Transaction(transaction, self._tables)
        except lmdb.Error as error:
            # A full disk surfaces here as a plain "Input/output error" or "No space left".
            raise ResourceError(
                "E_DISK", f"cannot commit to {self._environment.path()}: {error}",
                hint="make room and run the command again",
            ) from error  # fmt: skip

    def close(self) -> None:
        """Release the environment."""
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

    def get(self, table: str, key: bytes) -> memoryview | None:
        """Return the payload under `key`, its checksum verified; None when there is no such key.

        Raises:
            DamagedError: E_CORRUPT, when the checksum does not fit.
        """
        value = self._transaction.get(key, db=self._tables[table])
        return None if value is None else _payload(table, key, value)

    def put(self, table: str, key: bytes, payload: bytes) -> None:
        """Write `payload` under `key`."""
        self._transaction.put(key, checksum(key, payload) + payload, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        """Remove `key` if it is there."""
        self._transaction.delete(key, db=self._tables[table])

    def keys(self, table: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Keys that start with `prefix`, ascending, without touching their values."""
        cursor = self._transaction.cursor(db=self._tables[table])
        if not cursor.set_range(prefix):
            return
        for key in cursor.iternext(values=False):
            if not bytes(key).startswith(prefix):
                return
            yield bytes(key)

    def get_json(self, table: str, key: bytes) -> Any:
        """Return the JSON value under `key`; None when there is no such key."""
        payload = self.get(table, key)
        return None if payload is None else json.loads(zlib.decompress(payload))

    def put_json(self, table: str, key: bytes, value: object) -> None:
        """Write a JSON value in its canonical form, deflated."""
        self.put(table, key, zlib.compress(canonical_json(value)))


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
