"""What is withdrawn is in no file any more, wherever a kill came, and no build or merge brings it back."""

import os
import shutil
import zlib

import lmdb
import pytest

from m3di.build import require_volumes
from stores import Store
from stores.collection import collect
from stores.errors import LockedError, RefusedError
from stores.merging import diff, merge
from stores.recipe import Recipe, canonical_json
from stores.store import Quarantined
from stores.testing import crash_after
from stores.verification import examine, verify
from stores.withdrawal import choose, withdraw
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, build, chunks, fill, parts, record

V = "v20250817"  # long, so that its letters are nowhere by chance
REPLY = {"content": "a cyst in the left kidney", "refusal": ""}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def build_with_all_sorts(path):
    """v0, V and v2 with all that can name a volume: facts, answers, a teacher's list, quarantine, more rows."""
    with Store.create_or_open(path, RECIPE) as store:
        fill(store, ["v0", V, "v2"])
        kept = store.captions(CAPTIONER, V)
        store.commit_captions(CAPTIONER, V, kept, facts=[[{"seen": f"{V} {p}"}] for p in range(3)])
        store.commit_rows("d4" * 32, store.record(V), [rows[:, :1] for rows in planes(store)], parts=("patch",))
        store.commit_reply("ab" * 32, REPLY)
        fitted = {name: ["s" + name, "set", name] for name in ("v0", V, "v2")}
        store.commit_facts("teacher", TEACHER, {"fitted_on": fitted})
        store.commit_quarantine(Quarantined("bad1", "smith-john.nii", "E_TRUNCATED", "ends early"))
        store.write_quarantine_table()
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    return path


def planes(store):
    return [store.plane_rows(TEACHER, V, plane) for plane in range(3)]


def traces_of(path, volume):
    """Byte strings that only this volume puts into the files of a store, each by a name."""
    environment = lmdb.open(str(path / "rows.lmdb"), max_dbs=12, readonly=True, lock=False)
    found = {"id": volume.encode(), "reply": zlib.compress(canonical_json(REPLY))}
    with environment.begin() as transaction:
        for table in ("volumes", "captions", "facts", "embedded", "rows"):
            for key, value in transaction.cursor(environment.open_db(table.encode(), transaction, create=False)):
                if volume.encode() in key:
                    found[f"{table} {key.decode()}"] = bytes(value)
    environment.close()
    with Store(path) as store:
        slot = store.record(volume).slot
    for chunk in path.rglob(f"c.{slot}.*"):
        if chunk.parent.name != "label":  # which is as empty as those of the others
            found[f"chunk {chunk.parent.name}"] = chunk.read_bytes()
    return found


def left(path, traces):
    """Names of the traces that some file below a folder still holds."""
    files = [entry for entry in path.rglob("*") if entry.is_file()]
    contents = {file: file.read_bytes() for file in files}
    named = {name for name, trace in traces.items() if any(trace in content for content in contents.values())}
    return named | {file.name for file in files if traces["id"].decode() in file.name}


def test_nothing_of_a_withdrawn_volume_is_left_in_any_file(tmp_path):
    path = build_with_all_sorts(tmp_path / "s")
    traces = traces_of(path, V)
    assert len(traces) == 17
    assert left(path, traces) == set(traces), "the search finds what is there"
    with Store(path, writable=True) as store:
        planned = withdraw(store, [V], dry_run=True)
        assert left(path, traces) == set(traces), "a dry run removes nothing"
        done = withdraw(store, [V])
        assert (done.volumes, done.chunks, done.captions, done.row_sets, done.replies) == ((V,), 5, 1, 2, 1)
        assert done.teachers == (TEACHER[:16],)
        assert planned.num_bytes[0] == planned.num_bytes[1] == done.num_bytes[0] > done.num_bytes[1]
        assert (planned.volumes, planned.chunks, planned.row_sets) == (done.volumes, done.chunks, done.row_sets)
    assert left(path, traces) == set()
    assert not list(path.rglob(".partial-*"))
    assert list(verify(path)) == [], "the store is sound, and as finished as it was"
    with Store(path) as store:
        assert store.volume_names() == ["v0", "v2"]
        assert list(store.embeddings(TEACHER).index.volumes) == ["v0", "v2"]
        assert list(store.facts("teacher", TEACHER)["fitted_on"]) == ["v0", "v2"]
        assert (store.volumes.read("image", store.record("v2").slot) == parts(2)["image"]).all()
        assert store.withdrawn() == {"s" + V}
        assert not store.withdrawing()


def test_an_older_copy_of_the_database_is_still_told_from_the_one_that_was_written_anew(tmp_path):
    path = build(tmp_path / "s", 3)
    shutil.copy(path / "rows.lmdb/data.mdb", tmp_path / "old.mdb")
    numbers = []
    with Store(path, writable=True) as store:
        for volume in ("v1", "v2"):
            numbers.append(store.transaction)
            withdraw(store, [volume])
            assert store.read_seal()["transaction"] == store.transaction > numbers[-1]
    assert list(verify(path)) == []
    shutil.copy(tmp_path / "old.mdb", path / "rows.lmdb/data.mdb")
    assert any("an older copy" in problem.message for problem in verify(path))


def test_a_store_without_it_is_the_store_that_never_had_it(tmp_path):
    with Store.create_or_open(tmp_path / "never", RECIPE) as store:
        fill(store, ["v0", "v2"])
    path = build(tmp_path / "s", 3)
    with Store(path, writable=True) as store:
        withdraw(store, ["v1"])
    with Store(path) as one, Store(tmp_path / "never") as other:
        assert list(diff(one, other)) == []
        assert one.digest() == other.digest()


def test_a_refused_case_is_withdrawn_with_its_file_name(tmp_path):
    path = build_with_all_sorts(tmp_path / "s")
    traces = {"id": b"bad1", "file": b"smith-john"}
    assert left(path, traces) >= {"id"}
    with Store(path, writable=True) as store:
        withdraw(store, choose(store, volumes=["bad1"]))
        assert store.quarantined() == []
    assert left(path, traces) == set()
    assert list(verify(path)) == []


def test_a_store_of_which_all_is_withdrawn_is_sound_and_takes_others(tmp_path):
    path = build(tmp_path / "s", 2)
    with Store(path, writable=True) as store:
        withdraw(store, ["v0", "v1"])
        assert store.volume_names() == []
        with pytest.raises(RefusedError, match="E_MISSING all scans of the sources were withdrawn"):
            require_volumes(store)
    assert list(verify(path)) == []
    with Store(path, writable=True) as store:
        fill(store, ["v2"])
        assert store.record("v2").slot == 2, "a slot is never used again"
    assert list(verify(path)) == []


def test_an_unfinished_build_stays_unfinished(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        store.commit_volume(record("v0"), chunks(0))
        store.commit_volume(record("v1"), chunks(1))
        withdraw(store, ["v1"])
        assert store.unfinished()
        assert store.current_or_none() is None
        fill(store, ["v0"])
    assert list(verify(tmp_path / "s")) == []


def test_chunks_of_a_former_recipe_go_too(tmp_path):
    path = build_with_all_sorts(tmp_path / "s")
    traces = traces_of(path, V)
    other = Recipe(cube_size=16, slice_size=8, slice_stride=1, labels=False)
    with Store.create_or_open(path, other, change_recipe=True) as store:
        assert choose(store, volumes=[V]) == [V]
        withdraw(store, [V])
        assert [kept.volume for kept in store.all_records()] == ["v0", "v2"]
        assert (path / "volumes.zarr/image/c.0.0.0.0").exists(), "what others own stays"
    assert left(path, traces) == set()


def crash_points(whole, folder, action):
    """Crash an action on copies of a store, at the first, second, ... durable operation, until one ends."""
    for n in range(1, 200):
        path = folder / str(n)
        shutil.copytree(whole, path)
        crashed = crash_after(n, lambda: action(path))  # noqa: B023
        yield n, path, crashed
        shutil.rmtree(path)
        if not crashed:
            return


def withdraw_it(path):
    with Store(path, writable=True) as store:
        withdraw(store, [V])


def test_a_kill_anywhere_leaves_a_sound_store_and_the_next_writer_does_the_rest(tmp_path):
    whole = build_with_all_sorts(tmp_path / "whole")
    traces = traces_of(whole, V)
    decided = 0
    for n, path, crashed in crash_points(whole, tmp_path, withdraw_it):
        with Store(path) as store:
            serious = [problem for problem in examine(store) if problem.serious]
            assert not serious, f"crashed at {n}: {serious}"
            gone = store.find(V) is None
            assert not gone or list(store.embeddings(TEACHER).index.volumes) == ["v0", "v2"]
            interrupted = {problem.item for problem in examine(store)} & {"withdrawal"}
            assert bool(interrupted) == store.withdrawing()
        with Store(path, writable=True) as store:
            collect(store)
            assert (store.find(V) is None) == gone
            decided += gone
            assert not list(examine(store)), f"crashed at {n}"
        if gone:
            assert left(path, traces) == set(), f"crashed at {n}"
        assert crashed or gone
    assert decided > 10


def test_a_kill_while_the_rest_is_done_is_no_harm_either(tmp_path):
    whole = build_with_all_sorts(tmp_path / "whole")
    traces = traces_of(whole, V)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    assert crash_after(3, lambda: withdraw_it(stopped))
    with Store(stopped) as store:
        assert store.withdrawing()

    for n, path, _ in crash_points(stopped, tmp_path, lambda path: Store(path, writable=True).close()):
        with Store(path, writable=True) as store:
            assert not [problem for problem in examine(store) if problem.serious], f"crashed at {n}"
        assert left(path, traces) == set(), f"crashed at {n}"


def test_a_merge_brings_nothing_back_that_one_of_the_stores_withdrew(tmp_path):
    first, second = build(tmp_path / "a", 3), build(tmp_path / "b", 3)
    with Store(first, writable=True) as store:
        withdraw(store, ["v1"])
    events = []
    with Store.create_or_open(tmp_path / "m", RECIPE) as target, Store(first) as one, Store(second) as two:
        merge(target, [two, one], report=lambda event, **facts: events.append((event, facts)), check=lambda: None)
        assert target.volume_names() == ["v0", "v2"]
        assert target.withdrawn() == {"sv1"}
    assert ("withdrawn", {"volume": "v1"}) in events
    assert list(verify(tmp_path / "m")) == []


def test_names_are_chosen_exactly_and_refused_with_what_was_likely_meant(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        for name, subject, dataset in (("v0", "anna", "a"), ("v1", "anna", "b"), ("v2", "bert", "b")):
            store.commit_volume(record(name, subject=subject, dataset=dataset), chunks(0))
        assert choose(store, volumes=["v2", "v0"]) == ["v0", "v2"]
        assert choose(store, subjects=["bert"]) == ["v2"]
        assert choose(store, subjects=["b/anna"]) == ["v1"]
        for wrong in ("v", "v00", "V0", "anna"):
            with pytest.raises(RefusedError, match="E_MISSING"):
                choose(store, volumes=[wrong])
        with pytest.raises(RefusedError, match="E_MISSING") as caught:
            choose(store, subjects=["berta"])
        assert caught.value.hint == "did you mean bert?"
        with pytest.raises(RefusedError, match="E_CONFIG subject 'anna' is of 2 sets: a/anna, b/anna"):
            choose(store, subjects=["anna"])


def test_a_store_that_another_writes_to_is_left_alone(tmp_path):
    path = build_with_all_sorts(tmp_path / "s")
    with Store(path, writable=True), pytest.raises(LockedError, match="E_LOCKED"):
        withdraw_it(path)
    with Store(path) as store:
        assert store.volume_names() == ["v0", "v2", V]


def test_a_scan_may_be_taken_back(tmp_path):
    path = build(tmp_path / "s", 3)
    with Store(path, writable=True) as store:
        withdraw(store, ["v1", "v2"])
        assert store.withdrawn() == {"sv1", "sv2"}
        store.commit_withdrawn({"sv2"})
        assert store.withdrawn() == {"sv2"}
        assert not store.unfinished(), "the content did not change"
    assert list(verify(path)) == []
