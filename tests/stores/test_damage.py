"""Every kind of damage to a finished store is named by `verify`, and stops the reader that meets it."""

import hashlib
import json
import os
import shutil

import lmdb
import numpy as np
import pytest

from m3di.training.loader import BatchReader
from m3di.training.sampler import Draw
from stores import Store
from stores.errors import DamagedError, RefusedError
from stores.store import Quarantined
from stores.verification import verify
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, fill

ARRAYS = ("image", "label", "axial", "coronal", "sagittal")


def chunk(store, array, slot=1):
    return store / f"volumes.zarr/{array}/c.{slot}.0.0.0"


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def resize(path, size):
    os.truncate(path, max(0, path.stat().st_size + size) if size < 2 else 0)


def swap(one, two):
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def in_database(store, change):
    environment = lmdb.open(str(store / "rows.lmdb"), max_dbs=7, map_size=1 << 30)
    with environment.begin(write=True) as transaction:
        change(lambda table: environment.open_db(table.encode(), transaction), transaction)
    environment.close()


def flip_value(store, table, key, where=-1):
    def change(database, transaction):
        value = bytearray(transaction.get(key, db=database(table)))
        value[where] ^= 1
        transaction.put(key, bytes(value), db=database(table))

    in_database(store, change)


def delete_value(store, table, key):
    in_database(store, lambda database, transaction: transaction.delete(key, db=database(table)))


def swap_values(store, table, one, two):
    def change(database, transaction):
        first, second = transaction.get(one, db=database(table)), transaction.get(two, db=database(table))
        transaction.put(one, bytes(second), db=database(table))
        transaction.put(two, bytes(first), db=database(table))

    in_database(store, change)


def overwrite_pages(store, needle, filling):
    """Overwrite every page of the database that holds some bytes."""
    path = store / "rows.lmdb/data.mdb"
    content = bytearray(path.read_bytes())
    for start in range(2 * 4096, len(content), 4096):
        if needle in content[start : start + 4096]:
            content[start : start + 4096] = filling * 4096
    path.write_bytes(content)


T, C = TEACHER[:16], CAPTIONER[:16]
ROWS_KEY, EMBEDDED, CAPTIONS = f"{T}/v1/2".encode(), f"{T}/v1".encode(), f"{C}/v1".encode()
DAMAGES = {
    **{
        f"bit {w} of {a}": (lambda s, a=a, w=w: flip(chunk(s, a), w), f"v1, {a}") for a in ARRAYS for w in (0, 0.5, 1)
    },
    **{f"{a} {n}": (lambda s, a=a, n=n: resize(chunk(s, a), n), f"v1, {a}") for a in ARRAYS for n in (-1, -9, 2, 1)},
    **{f"{a} deleted": (lambda s, a=a: chunk(s, a).unlink(), f"v1, {a}") for a in ARRAYS},
    **{
        f"{a} swapped": (lambda s, a=a: swap(chunk(s, a), chunk(s, a, 2)), f"v1, {a}") for a in ARRAYS if a != "label"
    },
    "a chunk is a folder": (lambda s: (chunk(s, "image").unlink(), chunk(s, "image").mkdir()), "v1, image"),
    "a chunk is a link to itself": (
        lambda s: (chunk(s, "image").unlink(), chunk(s, "image").symlink_to(chunk(s, "image"))),
        "v1, image",
    ),
    "an array of another array": (lambda s: swap(chunk(s, "axial"), chunk(s, "coronal")), "v1, axial"),
    "array metadata deleted": (lambda s: (s / "volumes.zarr/image/zarr.json").unlink(), "image/zarr.json"),
    "array metadata garbled": (lambda s: (s / "volumes.zarr/image/zarr.json").write_text("{"), "image/zarr.json"),
    "array of another type": (
        lambda s: edit(s / "volumes.zarr/image/zarr.json", data_type="int8"),
        "image/zarr.json",
    ),
    "array too short": (lambda s: edit(s / "volumes.zarr/axial/zarr.json", shape=[1, 8, 8, 8]), "axial/zarr.json"),
    "marker garbled": (lambda s: (s / "m3di-store.json").write_text("{}"), "m3di-store.json"),
    "marker of another recipe": (lambda s: edit(s / "m3di-store.json", recipe_digest="0"), "m3di-store.json"),
    "marker of another layout": (lambda s: edit(s / "m3di-store.json", layout="uncompressed"), "zarr.json"),
    "marker leads elsewhere": (lambda s: edit(s / "m3di-store.json", group="../x"), "m3di-store.json"),
    "seal garbled": (lambda s: (s / "seal.json").write_text("x"), "seal.json"),
    "seal deleted": (lambda s: (s / "seal.json").unlink(), "seal.json"),
    "seal of another content": (lambda s: edit(s / "seal.json", digest="0"), "seal.json"),
    "an older database": (lambda s: shutil.copy(s / "../old.mdb", s / "rows.lmdb/data.mdb"), "data.mdb"),
    "database cut by a page": (lambda s: resize(s / "rows.lmdb/data.mdb", -4096), "store"),
    "database cut to nothing": (lambda s: resize(s / "rows.lmdb/data.mdb", 2), "store"),
    "database deleted": (lambda s: (s / "rows.lmdb/data.mdb").unlink(), "store"),
    "database garbled": (lambda s: (s / "rows.lmdb/data.mdb").write_bytes(b"x" * 9000), "store"),
    "pages of zeros": (lambda s: overwrite_pages(s, ROWS_KEY[:17], b"\0"), ""),
    "pages of ones": (lambda s: overwrite_pages(s, ROWS_KEY[:17], b"\xff"), ""),
    "bit of a volume record": (lambda s: flip_value(s, "volumes", b"v1"), "v1"),
    "bit of captions": (lambda s: flip_value(s, "captions", CAPTIONS), "v1"),
    "bit of a rows record": (lambda s: flip_value(s, "embedded", EMBEDDED), "v1"),
    "bit of a row": (lambda s: flip_value(s, "rows", ROWS_KEY, 30), "v1, rows of plane 2"),
    "bit of a block's header": (lambda s: flip_value(s, "rows", ROWS_KEY, 4), "v1, rows of plane 2"),
    "bit of a checksum": (lambda s: flip_value(s, "rows", ROWS_KEY, 0), "v1, rows of plane 2"),
    "bit of what is current": (lambda s: flip_value(s, "meta", b"current"), ""),
    "bit of a teacher's facts": (lambda s: flip_value(s, "meta", f"teacher/{T}".encode()), "teacher"),
    "bit of the quarantine": (lambda s: flip_value(s, "quarantine", b"bad"), "quarantine"),
    "volume record deleted": (lambda s: delete_value(s, "volumes", b"v1"), "v1"),
    "captions deleted": (lambda s: delete_value(s, "captions", CAPTIONS), "v1"),
    "rows record deleted": (lambda s: delete_value(s, "embedded", EMBEDDED), "v1"),
    "rows deleted": (lambda s: delete_value(s, "rows", ROWS_KEY), "v1, rows of plane 2"),
    "rows swapped": (lambda s: swap_values(s, "rows", ROWS_KEY, f"{T}/v1/0".encode()), "v1, rows of plane 2"),
    "captions swapped": (lambda s: swap_values(s, "captions", CAPTIONS, f"{C}/v2".encode()), "v1"),
    "teacher's weights changed": (lambda s: (s / f"teachers/{T}/weights").write_text("x"), "weights"),
    "teacher's weights deleted": (lambda s: (s / f"teachers/{T}/weights").unlink(), "weights"),
    "teacher's folder deleted": (lambda s: shutil.rmtree(s / f"teachers/{T}"), "weights"),
    "quarantine table changed": (lambda s: (s / "quarantine.tsv").write_text("id\n"), "quarantine.tsv"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished")
    with Store.create_or_open(root / "s", RECIPE) as store:
        fill(store, ["v0", "v1"])
        folder = store.teacher_folder(TEACHER)
        folder.mkdir()
        (folder / "weights").write_text("weights")
        store.commit_facts("teacher", TEACHER, {"files": {"weights": hashlib.sha256(b"weights").hexdigest()}})
        store.commit_quarantine(Quarantined("bad", "bad.nii", "E_TRUNCATED", "ends early"))
        store.write_quarantine_table()
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    shutil.copy(root / "s/rows.lmdb/data.mdb", root / "old.mdb")
    with Store(root / "s", writable=True) as store:
        fill(store, ["v2"])
    return root


@pytest.fixture
def store(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "s"


def test_there_is_no_false_alarm(store):
    assert list(verify(store)) == []
    assert list(verify(store, quick=True)) == []
    assert len(DAMAGES) >= 60


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(store, name):
    damage, item = DAMAGES[name]
    damage(store)
    problems = list(verify(store))
    assert any(item in f"{problem.item} {problem.message}" for problem in problems), problems
    if name != "volume record deleted":  # what it owned is surplus then
        assert any(problem.serious for problem in problems), problems


def step(path, number=1):
    """Read the batch that a training step would: one volume, one slice of each plane."""
    with Store(path) as store:
        embeddings = store.embeddings(TEACHER)
        positions = [[embeddings.index.slices_of(number)[1][0]] * 3]
        draw = Draw(np.array([number]), np.array([[0, 1, 2]]), np.array(positions), np.zeros(1, np.int64))
        reader = BatchReader(store.volumes, embeddings)
        reader.read(draw, reader.buffer(1))


NOT_READ = {"bit of a checksum", "bit of a rows record", "rows record deleted"}  # by training: the index is whole
READ = [n for n in DAMAGES if "image" in n or "row" in n or n.startswith(("a chunk", "datab"))]


@pytest.mark.parametrize("name", sorted(set(READ) - NOT_READ))
def test_a_training_step_that_meets_damage_stops_and_names_it(store, name):
    damage, _ = DAMAGES[name]
    step(store)
    damage(store)
    with pytest.raises((DamagedError, RefusedError)) as caught:
        step(store)
    assert any(part in str(caught.value) for part in ("volume v1", "v1/", "data.mdb")), caught.value
    if "datab" not in name:
        step(store, 0)
