import hashlib
import os
from pathlib import Path

import pytest

from stores import Store, merging
from stores.chunks import LAYOUTS
from stores.collection import collect
from stores.errors import DamagedError, RefusedError
from stores.merging import diff, merge
from stores.store import Quarantined
from stores.verification import verify
from tests.stores.stores import CAPTIONER, DIM, RECIPE, TEACHER, build, captions_of, chunks, fill, record, rows_of


def nothing(*_, **__):
    pass


def shards(tmp_path):
    for name, volumes in (("a", ["v0", "v2"]), ("b", ["v1", "v2"])):
        with Store.create_or_open(tmp_path / name, RECIPE) as store:
            fill(store, volumes)
    return tmp_path / "a", tmp_path / "b"


def test_merged_shards_are_the_store_of_one_build(tmp_path):
    whole = build(tmp_path / "whole", 3)
    a, b = shards(tmp_path)
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(a) as one, Store(b) as two:
        told = []
        assert merge(target, [one, two], report=lambda *e, **facts: told.append((e, facts)), check=nothing) == 3
        assert told == [(("committed",), {"volume": f"v{n}", "stage": "merge"}) for n in (0, 2, 1, 2)]
        assert merge(target, [one, two], report=nothing, check=nothing) == 0, "a rerun has nothing to do"
    with Store(tmp_path / "m") as merged, Store(whole) as built:
        assert list(diff(merged, built)) == []
        assert merged.digest() == built.digest()
    assert list(verify(tmp_path / "m")) == []


def test_a_merge_that_was_stopped_goes_on(tmp_path):
    a, b = shards(tmp_path)
    calls = iter([None, None, KeyboardInterrupt])

    def stop():
        if next(calls):
            raise KeyboardInterrupt

    with Store(a) as one, Store(b) as two:
        with Store.create_or_open(tmp_path / "m", RECIPE) as target, pytest.raises(KeyboardInterrupt):
            merge(target, [one, two], report=nothing, check=stop)
        with Store.create_or_open(tmp_path / "m", RECIPE) as target:
            assert merge(target, [one, two], report=nothing, check=nothing) == 1
            assert list(target.embeddings(TEACHER).index.volumes) == ["v0", "v1", "v2"]


def test_different_volumes_of_one_id_are_refused_before_anything_is_written(tmp_path):
    a, b = shards(tmp_path)
    with Store(b, writable=True) as store:
        store.commit_volume(record("v2", source_digest="another"), chunks(5))
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(a) as one, Store(b) as two:
        with pytest.raises(RefusedError, match="E_DUPLICATE_ID volume v2"):
            merge(target, [one, two], report=nothing, check=nothing)
        assert target.volume_names() == []


def test_an_empty_store_among_the_sources_does_not_keep_a_merge_from_its_end(tmp_path):
    Store.create_or_open(tmp_path / "empty", RECIPE).close()
    a, _ = shards(tmp_path)
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(tmp_path / "empty") as none, Store(a) as one:
        merge(target, [none, one], report=nothing, check=nothing)
        assert target.current() == {"teacher": TEACHER, "captioner": CAPTIONER}
        assert not target.unfinished()


@pytest.mark.parametrize(
    "damage, code",
    [
        (lambda chunk: chunk.unlink(), "E_MISSING"),
        (lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-1] + b"?"), "E_CORRUPT"),
    ],
)
def test_damage_of_a_source_stops_a_merge_before_the_volume(tmp_path, damage, code):
    a, _ = shards(tmp_path)
    damage(a / "volumes.zarr/axial/c.1.0.0.0")
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(a) as one:
        with pytest.raises(DamagedError, match=rf"{code} .*axial/c\.1\.0\.0\.0"):
            merge(target, [one], report=nothing, check=nothing)
        assert target.volume_names() == ["v0"]
        assert target.current_or_none() is None


def test_more_stores_than_may_be_open_are_merged_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "MOST_OPEN", 2)
    paths = []
    for number in range(5):
        paths.append(tmp_path / str(number))
        with Store.create_or_open(paths[-1], RECIPE) as store:
            fill(store, [f"v{number}"])
    with Store.create_or_open(tmp_path / "m", RECIPE) as target:
        assert merging.merge_all(target, paths, report=nothing, check=nothing) == 5
        with Store(paths[3], writable=True) as store:
            store.commit_volume(record("v3", source_digest="another"), chunks(7))
        with pytest.raises(RefusedError, match="E_DUPLICATE_ID volume v3"):
            merging.merge_all(target, paths, report=nothing, check=nothing)
        assert target.record("v3").source_digest == "sv3"
    with Store(tmp_path / "m") as merged, Store(build(tmp_path / "whole", 5)) as built:
        assert list(diff(merged, built)) == []


def test_a_merge_takes_teachers_refused_cases_and_newer_captions_along(tmp_path):
    a, b = shards(tmp_path)
    row = Quarantined("bad", "bad.nii", "E_TRUNCATED", "ends early")
    with Store(a, writable=True) as store:
        store.teacher_folder(TEACHER).mkdir()
        (store.teacher_folder(TEACHER) / "weights").write_text("weights")
        facts = {"files": {"weights": hashlib.sha256(b"weights").hexdigest()}}
        store.commit_facts("teacher", TEACHER, facts)
        store.commit_quarantine(row)
        store.commit_quarantine(Quarantined("v1", "v1.nii", "E_TRUNCATED", "but it is sound in the other store"))
        store.commit_captions(CAPTIONER, "v0", captions_of(record("v9")))
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(b) as two, Store(a) as one:
        fill(target, ["v0"])
        merge(target, [two, one], report=nothing, check=nothing)
        assert target.quarantined() == [row]
        assert (tmp_path / "m/quarantine.tsv").read_text().splitlines()[1].startswith("bad\tbad.nii\tE_TRUNCATED")
        assert target.facts("teacher", TEACHER) == facts
        assert (target.teacher_folder(TEACHER) / "weights").read_text() == "weights"
        assert target.captions(CAPTIONER, "v0") == captions_of(record("v9"))
        assert target.current() == {"teacher": TEACHER, "captioner": CAPTIONER}


def test_rows_that_are_out_of_date_are_not_merged_and_then_no_teacher_is_current(tmp_path):
    a, _ = shards(tmp_path)
    with Store(a, writable=True) as store:
        store.commit_volume(record("v0", source_digest="another"), chunks(9))
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(a) as one:
        merge(target, [one], report=nothing, check=nothing)
        assert target.rows_record(TEACHER, "v0") is None
        assert target.rows_record(TEACHER, "v2") is not None
        assert target.current_or_none() is None


def test_other_volumes_of_the_same_id_take_their_place_when_asked(tmp_path):
    a, b = shards(tmp_path)
    with Store(b, writable=True) as store:
        store.commit_volume(record("v2", source_digest="another"), chunks(5))
    with Store(a, writable=True) as target, Store(b) as two:
        with pytest.raises(RefusedError, match="E_DUPLICATE_ID"):
            merge(target, [two], report=nothing, check=nothing)
        merge(target, [two], replace=True, report=nothing, check=nothing)
        assert target.record("v2").source_digest == "another"
        assert target.volume_names() == ["v0", "v1", "v2"]


def test_stores_of_unlike_layouts_are_not_merged(tmp_path):
    a, _ = shards(tmp_path)
    with Store.create_or_open(tmp_path / "m", RECIPE, layout="uncompressed") as target, Store(a) as one:
        assert target.volumes.layout == LAYOUTS["uncompressed"]
        with pytest.raises(RefusedError, match=r"is compact, .* is uncompressed"):
            merge(target, [one], report=nothing, check=nothing)


def test_diff_names_what_differs(tmp_path):
    one, two = build(tmp_path / "a", 2), build(tmp_path / "b", 3)
    with Store(two, writable=True) as store:
        store.commit_captions(CAPTIONER, "v0", captions_of(record("v9")))
    with Store(one) as here, Store(two) as there:
        found = {(difference.kind, difference.item) for difference in diff(here, there)}
    key = f"/{CAPTIONER[:16]}/v0"
    assert ("differs", f"captions{key}") in found
    assert ("only there", "volumes/v2") in found
    assert ("only there", f"embedded/{TEACHER[:16]}/v2") in found
    assert not any("v1" in item for _, item in found)


def test_gc_removes_what_no_reader_can_reach_and_nothing_else(tmp_path):
    path = build(tmp_path / "s", 3)
    with Store(path, writable=True) as store:
        store.commit_rows("d4" * 32, store.record("v1"), rows_of(store.record("v1"), 1), parts=("patch",) * 2)
        (path / "teachers/feedfeedfeedfeed").mkdir()
        store.commit_volume(record("v0", source_digest="another"), chunks(5))
        digest = store.digest()
        planned = collect(store, dry_run=True)
        assert planned.derived == (f"embedded {TEACHER[:16]}/v0",)
        assert planned.folders == ("feedfeedfeedfeed",)
        assert store.digest() == digest
        assert collect(store).derived == planned.derived
        assert store.unfinished(), "v0 has no rows yet"
        assert collect(store).derived == ()
        assert store.rows_record(TEACHER, "v0") is None
        assert store.row_sets("v1") == [TEACHER[:16], "d4" * 8]
        assert store.plane_rows("d4" * 32, "v1", 0).shape[1:] == (2, DIM)
    assert not (path / "teachers/feedfeedfeedfeed").exists()


def test_gc_of_a_store_that_is_new_finds_nothing(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        assert collect(store).volumes == ()
        assert store.current_or_none() is None


def test_a_finished_store_is_as_finished_after_gc(tmp_path):
    path = build(tmp_path / "s", 2)
    (path / "teachers/feedfeedfeedfeed").mkdir()
    with Store(path, writable=True) as store:
        store.commit_captions("c3" * 32, "v9", captions_of(record("v9")))
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        collected = collect(store)
        assert collected.derived == (f"captions {'c3' * 8}/v9",)
        sizes = [Path(place, name).stat().st_size for place, _, names in os.walk(path) for name in names]
        assert collected.num_bytes[1] == sum(sizes)
        assert not store.unfinished()
        assert store.read_seal() == {"transaction": store.transaction, "digest": store.digest()}
        assert store.embeddings(TEACHER).index.volumes == ["v0", "v1"]
    assert list(verify(path)) == []


def test_rows_of_two_kinds_and_teachers_are_never_mixed(tmp_path):
    path = build(tmp_path / "s", 2)
    with Store(path, writable=True) as store:
        kept = store.record("v0")
        dense = [rows[:, :1].repeat(9, axis=1) for rows in rows_of(kept, 5)]
        store.commit_rows("d4" * 32, kept, dense, parts=tuple(f"patch {i}" for i in range(9)))
        for plane in range(3):
            assert (store.plane_rows("d4" * 32, "v0", plane) == dense[plane]).all()
            assert (store.plane_rows(TEACHER, "v0", plane) == rows_of(kept, 0)[plane]).all()
        assert list(store.embeddings("d4" * 32).index.volumes) == ["v0"]
        assert list(store.embeddings(TEACHER).index.volumes) == ["v0", "v1"]
        assert len(store.embeddings("e5" * 32)) == 0
