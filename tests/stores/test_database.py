"""The LMDB environment: what it must not be asked for, and what a machine cannot give it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stores import Store
from stores.database import Database, check_not_truncated
from stores.errors import DamagedError
from stores.testing import crash_after
from tests.stores.stores import CAPTIONER, TEACHER, build, captions_of

BEGIN = """
import resource, sys
from pathlib import Path
from stores import Store
from stores.database import Database
from stores.errors import ResourceError
"""


def told(code, *arguments):
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_address_space_the_limit_is_named(tmp_path):
    code = """
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
try:
    Store(Path(sys.argv[1]))
except ResourceError as error:
    print(error.code, error.exit_code, error.hint)
"""
    assert told(code, build(tmp_path / "s", 1)).startswith("E_MEMORY 5 raise the limit of virtual memory")


FULL = """
path = Path(sys.argv[1])
database = Database(path / "rows.lmdb", readonly=False)
size = (path / "rows.lmdb/data.mdb").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2 if len(sys.argv) > 2 else size,) * 2)
try:
    if len(sys.argv) > 2:
        database.copy(Path(sys.argv[2]))
    else:
        with database.writing() as transaction:
            transaction.put("rows", b"x", bytes(1 << 20))
except ResourceError as error:
    print(error.code, error.hint)
with database.reading() as transaction:
    print(transaction.count("rows"))
"""


def test_a_disk_that_is_full_costs_the_transaction_in_hand_and_nothing_else(tmp_path):
    path = build(tmp_path / "s", 2)
    assert told(FULL, path) == "E_DISK make room and run the command again\n6\n"
    with Store(path) as store:
        assert store.volume_names() == ["v0", "v1"]


def test_a_disk_that_is_full_is_no_damage_of_what_is_copied(tmp_path):
    path = build(tmp_path / "s", 2)
    assert told(FULL, path, tmp_path / "copy").startswith("E_DISK make room")


def test_an_open_store_is_not_read_on_the_other_side_of_a_fork(tmp_path):
    with Store(build(tmp_path / "s", 1), writable=True) as store:
        embeddings = store.embeddings(TEACHER)

        def use():
            for call in (
                store.volume_names,
                lambda: store.embeddings(TEACHER),
                lambda: store.copy_rows(tmp_path / "c"),
                lambda: store._database.writing().__enter__(),
            ):
                with pytest.raises(RuntimeError, match="must not cross a fork"):
                    call()

        assert not crash_after(0, use)
        assert len(embeddings.plane("v0", 0))


def test_rows_of_a_closed_store_are_an_error(tmp_path):
    store = Store(build(tmp_path / "s", 1))
    embeddings = store.embeddings(TEACHER)
    store.close()
    with pytest.raises(ValueError, match="the store is closed"):
        embeddings.plane("v0", 0)


def test_the_index_is_kept_until_what_it_is_made_of_changes(tmp_path):
    path = build(tmp_path / "s", 2)
    with Store(path, writable=True) as store:
        with store._database.reading() as transaction:
            assert list(transaction.keys("index")) == [f"{TEACHER[:16]}/000000".encode()]
        store.commit_captions(CAPTIONER, "v0", captions_of(store.record("v0")))
        with store._database.reading() as transaction:
            assert transaction.count("index") == 1, "captions are no part of it"
        with store._database.writing() as transaction:
            transaction.delete("volumes", b"v0")
            assert transaction.count("index") == 0
        assert list(store.embeddings(TEACHER).index.volumes) == ["v1"]


def test_a_short_file_is_noticed_whichever_of_the_two_meta_pages_is_the_newest(tmp_path):
    database = Database(tmp_path, readonly=False)
    for number in range(3):
        with database.writing() as transaction:
            transaction.put("rows", b"%d" % number, bytes(1 << 16))
        whole = (tmp_path / "data.mdb").read_bytes()
        (tmp_path / "short").write_bytes(whole)
        check_not_truncated(tmp_path / "short", missing_ok=False)
        (tmp_path / "short").write_bytes(whole[:-4096])
        with pytest.raises(DamagedError, match=rf"E_STORE .*truncated: {len(whole) - 4096} bytes of {len(whole)}"):
            check_not_truncated(tmp_path / "short", missing_ok=False)
    database.close()


def test_keys_are_those_of_a_prefix_and_heads_those_before_a_slash(tmp_path):
    database = Database(tmp_path, readonly=False)
    with database.writing() as transaction:
        for key in (b"a/1", b"a/2", b"a0/1", b"b/1"):
            transaction.put("captions", key, b"x")
        assert list(transaction.keys("captions", b"a/")) == [b"a/1", b"a/2"]
        assert list(transaction.keys("captions", b"c")) == []
        assert list(transaction.keys("captions")) == [b"a/1", b"a/2", b"a0/1", b"b/1"]
        assert transaction.heads("captions") == ["a", "a0", "b"]
        assert transaction.heads("facts") == []
        assert transaction.get("captions", b"a/3") is None
        transaction.delete("captions", b"a/3")
        assert transaction.count("captions") == 4
    database.close()


def test_a_payload_under_another_key_fails_its_checksum(tmp_path):
    database = Database(tmp_path, readonly=False)
    with database.writing() as transaction:
        transaction.put("captions", b"a", b"text")
        value = bytes(transaction._transaction.get(b"a", db=database._tables["captions"]))
        transaction._transaction.put(b"b", value, db=database._tables["captions"])
        with pytest.raises(DamagedError, match="E_CORRUPT the captions record of b fails its checksum"):
            transaction.get("captions", b"b")
        assert bytes(transaction.get("captions", b"b", verified=False)) == b"text"
    database.close()
