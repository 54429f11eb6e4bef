"""Stores of every released format version are read, whatever is written today."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from stores import Store
from stores.collection import collect
from stores.errors import DamagedError
from stores.verification import verify
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, fill, parts, rows_of

FORMATS = Path(__file__).parents[1] / "formats"


@pytest.fixture
def old(tmp_path):
    shutil.copytree(FORMATS / "v1", tmp_path / "s")
    return tmp_path / "s"


def require_fixture(store):
    assert store.volume_names() == ["v0", "v1", "v2"]
    embeddings = store.embeddings(TEACHER)
    assert list(embeddings.index.volumes) == ["v0", "v1", "v2"]
    for number, record in enumerate(store.records()):
        for name, part in parts(number).items():
            np.testing.assert_array_equal(store.volumes.read(name, record.slot), part)
        for plane in range(3):
            np.testing.assert_array_equal(embeddings.plane(record.volume, plane), rows_of(record, number)[plane])
        position = record.valid_slices(1)[1]
        gathered = embeddings.gather(np.array([number]), np.array([[1]]), np.array([[position]]))
        np.testing.assert_array_equal(gathered[0, 0], rows_of(record, number)[1][1])
        halves = embeddings.halves(1)[3 * number + 2].view(np.float16)
        np.testing.assert_array_equal(halves, rows_of(record, number)[2][:, 1])
        assert store.captions(CAPTIONER, record.volume).texts[1][1] == f"{record.volume} 1 {position}"
    assert [row.code for row in store.quarantined()] == ["E_TRUNCATED"]


def test_a_store_of_version_1_is_read_and_sound(old):
    assert list(verify(old)) == []
    with Store(old) as store:
        assert store.recipe == replace(RECIPE, rendering_version=2)
        require_fixture(store)
        assert {(one.num_non_finite, one.num_padding) for one in store.records()} == {(0, 0)}
        assert not store.embeddings(TEACHER).index.checksums.any(), "records of version 1 do not say them"
    assert json.loads((old / "m3di-store.json").read_bytes())["version"] == 1, "reading changes nothing"


def test_rows_of_version_1_are_checked_by_the_block_as_they_are_gathered(old):
    key = f"{TEACHER[:16]}/v1/1".encode()
    with Store(old, writable=True) as store, store._database.writing() as transaction:
        table = store._database._tables["rows"]
        value = bytearray(transaction._transaction.get(key, db=table))
        value[-1] ^= 1  # of the last row, which is not the one that is asked for
        transaction._transaction.put(key, bytes(value), db=table)
    with Store(old) as store:
        position = store.record("v1").valid_slices(1)[0]
        with pytest.raises(DamagedError, match=r"E_CORRUPT the rows record of .*/v1/1 fails its checksum"):
            store.embeddings(TEACHER).gather(np.array([1]), np.array([[1]]), np.array([[position]]))


def test_a_store_of_version_1_is_taken_over_by_a_writer(old):
    with Store(old, writable=True) as store:
        store.commit_current(**store.current())
    assert json.loads((old / "m3di-store.json").read_bytes())["version"] == 2
    assert list(verify(old)) == []
    with Store(old) as store:
        require_fixture(store)
    with Store(old, writable=True) as store:
        fill(store, ["v3"])
        assert list(store.embeddings(TEACHER).index.volumes) == ["v0", "v1", "v2", "v3"]
    assert list(verify(old)) == []


def test_a_store_of_version_1_takes_up_another_recipe(old):
    other = replace(RECIPE, labels=False)
    with Store.create_or_open(old, other, change_recipe=True) as store:
        assert store.records() == []
        assert len(store.all_records()) == 3
        fill(store, ["v0"], labels=False)
        assert list(store.embeddings(TEACHER).index.volumes) == ["v0"]
    assert {problem.kind for problem in verify(old)} == {"surplus"}, "v1 and v2 are of a recipe that is no more"
    with Store(old, writable=True) as store:
        assert (old / "volumes.zarr/image").exists()
        assert collect(store).volumes == ("v1", "v2")
        arrays = {entry.name for entry in (old / "volumes.zarr").iterdir() if entry.is_dir()}
        assert arrays == {other.digest[:16]}, "those of the former recipe are gone"
    assert list(verify(old)) == []


def test_other_zarr_readers_see_axes_and_voxels(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        fill(store, ["v0"])
    group = zarr.open_group(tmp_path / "s/volumes.zarr", mode="r")
    np.testing.assert_array_equal(group["image"][0], parts(0)["image"])
    assert group["image"].metadata.dimension_names == ("volume", "right", "anterior", "superior")
    described = {picture["name"]: picture for picture in group.attrs["ome"]["multiscales"]}
    axes = [axis["name"] for axis in described["image"]["axes"]]
    assert axes == ["volume", "right", "anterior", "superior"]
    assert all(axis["type"] == "space" for axis in described["image"]["axes"][1:])
