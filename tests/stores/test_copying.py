"""A copy on a disk of this machine: all that training reads, checked, made once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from stores import Store
from stores.copying import copy_for_training
from stores.errors import DamagedError, RefusedError
from stores.merging import diff
from tests.stores.stores import TEACHER, build, chunks, record


def test_a_copy_reads_as_the_store_does_and_is_made_once(tmp_path):
    path = build(tmp_path / "s", 3)
    copy = copy_for_training(path, tmp_path / "scratch/here")
    with Store(path) as one, Store(copy) as other:
        assert list(diff(one, other)) == []
        for found in one.records():
            cubes = [store.volumes.read("image", found.slot) for store in (one, other)]
            assert cubes[0].tobytes() == cubes[1].tobytes()
            rows = [store.embeddings(TEACHER).plane(found.volume, 1) for store in (one, other)]
            assert np.array_equal(*rows)
    assert not list(copy.rglob("volumes.zarr/axial/c.*")), "slices are not read in training"
    cubes = zarr.open_group(copy / "volumes.zarr", mode="r")["image"]
    assert cubes.shape[1:] == (16, 16, 16), "any Zarr library reads it"
    stamp = (copy / "m3di-store.json").stat().st_mtime_ns
    assert copy_for_training(path, tmp_path / "scratch/here") == copy
    assert (copy / "m3di-store.json").stat().st_mtime_ns == stamp, "it is used again"
    with Store(path, writable=True) as store:
        store.commit_volume(record("v0", source_digest="another"), chunks(9))
    changed = copy_for_training(path, tmp_path / "scratch/here")
    assert changed != copy
    assert not list((tmp_path / "scratch/here").glob(".partial-*"))


def test_a_place_for_the_copy_that_cannot_be_is_refused(tmp_path):
    path = build(tmp_path / "s", 1)
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match=r"E_PATH cannot write .*file/x: .*file is not a folder"):
        copy_for_training(path, tmp_path / "file/x")


def test_damage_is_not_copied_and_nothing_is_left_of_it(tmp_path):
    path = build(tmp_path / "s", 2)
    chunk = next((path / "volumes.zarr/image").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="E_CORRUPT"):
        copy_for_training(path, tmp_path / "scratch")
    assert [entry.name for entry in (tmp_path / "scratch").iterdir()] == ["builder.lock"]


READER = """
import sys
from pathlib import Path
from stores import Store
with Store(Path(sys.argv[1])) as store:
    teacher = store.current()["teacher"]
    rows = store.embeddings(teacher)
    print(len(rows), rows.all_rows(store.volume_names()).shape[0], store.volumes.read("image", 0).shape)
"""


def test_a_store_on_a_medium_that_is_read_only_is_read(tmp_path):
    path = build(tmp_path / "s", 2)
    (path / "rows.lmdb/lock.mdb").unlink()
    mount = f"mount --bind {path} {path} && mount -o remount,bind,ro {path}"
    within = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*within, mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount anything")
    done = subprocess.run(
        [*within, f'{mount} && ! touch {path}/new && exec "$0" -c "$1" "$2"', sys.executable, READER, path],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "2"
    assert not (path / "rows.lmdb/lock.mdb").exists()
