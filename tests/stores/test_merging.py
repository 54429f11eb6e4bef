import pytest

from stores import Store
from stores.chunks import LAYOUTS
from stores.collection import collect
from stores.errors import RefusedError
from stores.merging import diff, merge
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
        assert merge(target, [one, two], report=nothing, check=nothing) == 3
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
        assert collect(store).derived == ()
        assert store.rows_record(TEACHER, "v0") is None
        assert store.row_sets("v1") == [TEACHER[:16], "d4" * 8]
        assert store.plane_rows("d4" * 32, "v1", 0).shape[1:] == (2, DIM)
    assert not (path / "teachers/feedfeedfeedfeed").exists()


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
