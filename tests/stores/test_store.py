import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from stores import Store, manifest
from stores.errors import DamagedError, LockedError, RefusedError
from stores.recipe import Recipe, digest_of
from stores.records import VolumeRecord
from stores.store import Quarantined
from stores.verification import verify
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, build, captions_of, chunks, fill, parts, record, rows_of


def test_what_is_committed_reads_back(tmp_path):
    with Store(build(tmp_path / "s")) as store:
        assert [r.volume for r in store.records()] == ["v0", "v1", "v2"]
        kept = store.record("v1")
        for name, part in parts(1).items():
            np.testing.assert_array_equal(store.volumes.read(name, kept.slot), part)
        assert store.captions(CAPTIONER, "v1") == captions_of(kept)
        embeddings = store.embeddings(TEACHER)
        for plane in range(3):
            np.testing.assert_array_equal(embeddings.plane("v1", plane), rows_of(kept, 1)[plane])


def test_the_digest_does_not_depend_on_the_order_of_the_build(tmp_path):
    with Store.create_or_open(tmp_path / "a", RECIPE) as store:
        fill(store, ["v0", "v1", "v2"])
        first = store.digest()
    with Store.create_or_open(tmp_path / "b", RECIPE) as store:
        fill(store, ["v2", "v0"])
        assert store.digest() != first
        fill(store, ["v1"])
        assert store.digest() == first


def test_a_replaced_volume_gets_a_new_slot_and_its_old_chunks_go(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        fill(store, ["v0", "v1"])
        old = store.record("v0").slot
        new = store.commit_volume(record("v0", source_digest="other"), chunks(7))
        assert new.slot not in (old, store.record("v1").slot)
        assert not store.volumes.chunk_path("image", old).exists()
        assert store.embeddings(TEACHER).index.volumes == ["v1"], "rows of the old volume are out of date"


def test_an_interrupted_write_is_swept_at_the_next_open_for_writing(tmp_path):
    path = build(tmp_path / "s", 1)
    with Store.create_or_open(path, RECIPE) as store:
        before = store.digest()
        store.volumes.write(5, chunks(5))  # a kill came before the commit record
        (path / "volumes.zarr/image/.partial-1-c.6.0.0.0").write_bytes(b"half")
        (path / "teachers/.partial-1-abc").mkdir()
    with Store.create_or_open(path, RECIPE) as store:
        assert store.digest() == before
        assert [slot for _, slot, _ in store.volumes.chunks()] == [0] * 5
    assert not list(path.rglob(".partial-*"))


def test_a_build_that_finds_nothing_to_do_writes_nothing(tmp_path):
    with Store(build(tmp_path / "s", 2), writable=True) as store:
        before = store.transaction
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        store.write_quarantine_table()
        assert store.transaction == before
        store.commit_facts("teacher", TEACHER, {"a": (1, 2)})
        once = store.transaction
        store.commit_facts("teacher", TEACHER, {"a": [1, 2]})
        assert store.transaction == once == before + 1
        assert store.facts("teacher", TEACHER) == {"a": [1, 2]}


def test_a_store_is_unfinished_from_its_first_change_to_the_end_of_the_build(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        assert not store.unfinished()
        with pytest.raises(RefusedError, match=r"E_STORE .* has no embeddings yet"):
            store.current()
        assert store.read_seal() is None
        store.commit_volume(record("v0"), chunks(0))
        assert store.unfinished()
        fill(store, ["v0"])
        assert not store.unfinished()
        assert store.read_seal() == {"transaction": store.transaction, "digest": store.digest()}
        for change in (
            lambda: store.commit_captions(CAPTIONER, "v0", captions_of(store.record("v0"))),
            lambda: store.commit_quarantine(Quarantined("x", "x.nii", "E_EMPTY", "is empty")),
            lambda: store.lift_quarantine("x"),
        ):
            change()
            assert store.unfinished()
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
            assert not store.unfinished()


def test_a_writer_that_cannot_begin_lets_go_of_the_store(tmp_path, monkeypatch):
    path = build(tmp_path / "s", 1)

    def fail(_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Store, "_begin_writing", fail)
        with pytest.raises(MemoryError) as caught:
            Store(path, writable=True)
    assert caught.value is not None
    Store(path, writable=True).close()


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    path = build(tmp_path / "s", 1)
    code = f"from pathlib import Path; from stores import Store; Store(Path({str(path)!r}), writable=%s).close()"
    with Store(path, writable=True):
        with pytest.raises(LockedError, match="E_LOCKED"):
            Store(path, writable=True)
        run = [sys.executable, "-c", code]
        assert subprocess.run([*run[:2], code % False], check=False).returncode == 0
        second = subprocess.run([*run[:2], code % True], check=False, capture_output=True, text=True)
        assert "LockedError" in second.stderr


def test_a_store_of_another_recipe_names_the_field(tmp_path):
    path = build(tmp_path / "s", 1)
    with pytest.raises(RefusedError, match="slice_stride: 2 != 1"):
        Store.create_or_open(path, Recipe(cube_size=16, slice_size=8, slice_stride=1, labels=True))


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("chapter 1")
    with pytest.raises(RefusedError, match="is not a store"):
        Store.create_or_open(tmp_path / "s", RECIPE)
    with pytest.raises(RefusedError, match="there is no store"):
        Store(tmp_path / "nowhere")
    assert (tmp_path / "s" / "thesis.txt").read_text() == "chapter 1"


def test_a_store_is_made_where_there_is_nothing_and_is_one_before_anybody_writes(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "new", "deep/er/new"):
        manifest.create_store(tmp_path / place, manifest.Marker(RECIPE))
        with Store(tmp_path / place) as store:
            assert store.records() == []
        assert list(verify(tmp_path / place)) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RefusedError, match=r"E_STORE .*file exists and is not a store"):
        manifest.create_store(tmp_path / "file", manifest.Marker(RECIPE))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("group", ["", "elsewhere", "/volumes.zarr", "volumes.zarr/a/b", "volumes.zarr/.."])
def test_a_marker_that_leads_elsewhere_is_not_followed(tmp_path, group):
    path = build(tmp_path / "s", 1)
    marker = path / "m3di-store.json"
    marker.write_text(marker.read_text().replace('"group": "volumes.zarr"', f'"group": "{group}"'))
    with pytest.raises(DamagedError, match="E_CORRUPT"):
        Store(path)


def test_a_newer_format_is_refused_by_version(tmp_path):
    path = build(tmp_path / "s", 1)
    marker = path / "m3di-store.json"
    marker.write_text(marker.read_text().replace('"version": 2,', '"version": 3,', 1))
    with pytest.raises(DamagedError, match="E_VERSION"):
        Store(path)
    with pytest.raises(DamagedError, match="E_VERSION"):
        list(verify(path))


def test_a_truncated_database_is_refused_before_lmdb_touches_it(tmp_path):
    path = build(tmp_path / "s", 3)
    data = path / "rows.lmdb/data.mdb"
    os.truncate(data, data.stat().st_size - 4096)
    with pytest.raises(DamagedError, match="truncated"):
        Store(path)


def test_quarantine_is_a_table_of_harmless_lines(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        fill(store, ["v0"])
        store.commit_quarantine(Quarantined("v1", "v1.nii", "E_TRUNCATED", "ends\tearly\x1b[31m\nhere"))
        table = store.write_quarantine_table().read_text()
    assert table == "id\tsource\tcode\tmessage\nv1\tv1.nii\tE_TRUNCATED\tends early [31m here\n"


def test_an_open_store_crosses_no_process_border(tmp_path):
    with Store(build(tmp_path / "s", 1)) as store, pytest.raises(TypeError):
        pickle.dumps(store)


def test_gather_gives_the_rows_of_the_slices_asked_for(tmp_path):
    with Store(build(tmp_path / "s", 4)) as store:
        embeddings = store.embeddings(TEACHER)
        random = np.random.default_rng(0)
        volumes = np.array([3, 0, 3])
        planes = random.integers(0, 3, (3, 5))
        slices = np.array(
            [[random.choice(store.record(f"v{v}").valid_slices(p)) for p in row]
             for v, row in zip(volumes, planes, strict=True)]
        )  # fmt: skip
        gathered = embeddings.gather(volumes, planes, slices)
        assert gathered.shape == (3, 5, 2, 6)
        for b, volume in enumerate(volumes):
            kept = store.record(f"v{volume}")
            for k in range(5):
                rank = list(kept.valid_slices(planes[b, k])).index(slices[b, k])
                np.testing.assert_array_equal(gathered[b, k], rows_of(kept, volume)[planes[b, k]][rank])
        with pytest.raises(ValueError, match="slice 0 of plane 1 of v0 has no row"):
            embeddings.gather(np.array([0]), np.array([[1]]), np.array([[0]]))


def test_a_record_without_a_sequence_has_the_digests_that_it_always_had():
    plain = record("v0")
    facts = {"subject": "v0", "dataset": "set", "modality": "MR", "body_part": "head"}
    assert plain.item_digest == digest_of({"source": "sv0", "label": "", "recipe": RECIPE.digest, "facts": facts})
    assert "sequence" not in plain.to_dict()
    assert VolumeRecord.from_dict(plain.to_dict()) == plain
    weighted = record("v0", sequence="T1w")
    assert VolumeRecord.from_dict(weighted.to_dict()) == weighted
    assert weighted.item_digest != plain.item_digest
    assert weighted.content_digest != plain.content_digest
