import os

import pytest
from hypothesis import HealthCheck, settings

from stores import Store
from stores.atomic import write_folder
from stores.merging import merge
from stores.recipe import Recipe
from stores.store import Quarantined
from stores.testing import (
    CAPTIONER,
    TEACHER,
    StoreContract,
    StoreMachine,
    assert_sound,
    crash_after,
    left_by_writers,
    make_content,
    read_state,
)
from stores.verification import examine

RECIPE = Recipe(cube_size=8, slice_size=4, slice_stride=4)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """A crash of a process cannot tell whether the disk was waited for; the tests take half the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class TestCompact(StoreContract):
    layout = "compact"


class TestUncompressed(StoreContract):
    layout = "uncompressed"


@pytest.mark.slow
class TestMachine(StoreMachine.TestCase):
    settings = settings(max_examples=25, stateful_step_count=12, suppress_health_check=list(HealthCheck))


def build(path):
    with Store.create_or_open(path, RECIPE) as store:
        for seed in (1, 2):
            make_content(f"v{seed}", RECIPE, seed).put(store)
        store.write_quarantine_table()
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        return store.digest()


def crashes(folder):
    """Crash builds, each in a folder of its own, at the first, second, ... durable operation, until one ends."""
    n = 1
    while crash_after(n, lambda: build(folder / f"{n}/s")):  # noqa: B023
        yield n, folder / f"{n}/s"
        n += 1


@pytest.mark.slow
def test_a_build_that_crashed_anywhere_goes_on_to_what_a_clean_build_makes(tmp_path):
    clean = build(tmp_path / "clean")
    with Store(tmp_path / "clean") as store:
        expected = read_state(store)
    count, unsound = 0, []
    for n, path in crashes(tmp_path):
        if path.exists():
            with Store(path, writable=True) as store:
                unsound += [(n, problem) for problem in examine(store) if problem.serious]
        assert build(path) == clean, f"crashed at {n}"
        with Store(path) as store:
            assert read_state(store) == expected, f"crashed at {n}"
            assert_sound(store)
        count += 1
    assert count > 50
    assert not unsound, f"a crash, then nothing but opening for writing: verify finds {unsound}"


def test_a_crash_while_a_store_is_created_leaves_nothing_beside_it(tmp_path):
    for n, path in crashes(tmp_path):
        if path.exists():
            return
        build(path)
        assert not left_by_writers(path.parent), f"crashed at {n}"


def test_a_crash_between_a_quarantine_and_its_table_is_no_damage(tmp_path):
    def refuse(case):
        with Store(tmp_path / "s", writable=True) as store:
            store.commit_quarantine(Quarantined(case, f"{case}.nii", "E_TRUNCATED", "ends early"))
            store.write_quarantine_table()

    build(tmp_path / "s")
    refuse("v3")
    assert crash_after(2, lambda: refuse("v4"))  # the first is the commit
    with Store(tmp_path / "s", writable=True) as store:
        assert_sound(store)


def test_a_merge_into_an_unfinished_store_does_not_declare_it_finished(tmp_path):
    build(tmp_path / "source")
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        make_content("v9", RECIPE, 9).put_volume(store)
    with Store(tmp_path / "s", writable=True) as store, Store(tmp_path / "source") as source:
        merge(store, [source], report=lambda *_, **__: None, check=lambda: None)
        assert_sound(store)


def test_a_crash_while_a_folder_is_replaced_leaves_the_old_or_the_new_one(tmp_path):
    for n in range(1, 20):
        folder = tmp_path / f"{n}/teacher"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"old")
        crashed = crash_after(n, lambda: write_folder(folder, lambda new: (new / "weights").write_bytes(b"new")))  # noqa: B023
        assert (folder / "weights").read_bytes() in (b"old", b"new"), f"crashed at {n}"
        if not crashed:
            assert (folder / "weights").read_bytes() == b"new"
            return


def test_an_action_that_fails_in_the_child_is_an_error_with_its_traceback():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        crash_after(1, lambda: 1 / 0)
