"""Files and folders come whole or not at all, durable before they are visible, and errors name the place."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from stores import atomic
from stores.errors import RefusedError, ResourceError


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What is synced and renamed, in order, by name below `tmp_path`."""
    made = []
    opened = {}

    def name(path):
        return str(Path(path).relative_to(tmp_path)).replace(f"{atomic.TEMPORARY}{os.getpid()}-", "~")

    plain = {call: getattr(os, call) for call in ("open", "fsync", "replace", "rename")}

    def open_(path, *arguments, **options):
        descriptor = plain["open"](path, *arguments, **options)
        opened[descriptor] = path
        return descriptor

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", lambda found: made.append(f"sync {name(opened[found])}"))
    for call in ("replace", "rename"):
        monkeypatch.setattr(
            os,
            call,
            lambda one, two, call=call: (made.append(f"move {name(one)} {name(two)}"), plain[call](one, two)),
        )
    return made


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, calls):
    atomic.write_bytes(tmp_path / "f", b"new")
    assert calls == ["sync ~f", "move ~f f", "sync ."]
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_folder_is_synced_with_all_it_holds_before_it_gets_its_name(tmp_path, calls):
    def fill(folder):
        (folder / "in").mkdir()
        (folder / "in/a").write_bytes(b"a")

    assert atomic.write_folder(tmp_path / "d", fill) is True
    assert sorted(calls[:3]) == ["sync ~d", "sync ~d/in", "sync ~d/in/a"]
    assert calls[3:] == ["move ~d d", "sync ."]
    assert (tmp_path / "d/in/a").read_bytes() == b"a"


def test_the_folders_above_a_folder_are_made(tmp_path):
    atomic.write_folder(tmp_path / "a/b/c", lambda folder: (folder / "in").touch())
    assert [entry.name for entry in (tmp_path / "a/b").iterdir()] == ["c"]


def test_what_fails_while_it_is_written_leaves_the_old_and_nothing_beside_it(tmp_path):
    atomic.write_bytes(tmp_path / "f", b"old")
    atomic.write_folder(tmp_path / "d", lambda folder: (folder / "a").write_bytes(b"old"))

    def fail(place):
        (place / "a" if place.is_dir() else place).write_bytes(b"new")
        raise KeyboardInterrupt

    for write, place in ((atomic.write_file, "f"), (atomic.write_folder, "d")):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / place, fail)
    assert (tmp_path / "f").read_bytes() == (tmp_path / "d/a").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d", "f"]


def test_a_folder_is_filled_anew_over_what_a_killed_process_of_the_same_number_left(tmp_path):
    left = tmp_path / f"{atomic.TEMPORARY}{os.getpid()}-d"
    (left / "old").mkdir(parents=True)
    atomic.write_folder(tmp_path / "d", lambda folder: (folder / "a").write_bytes(b"a"))
    assert [entry.name for entry in (tmp_path / "d").iterdir()] == ["a"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_takes_the_place_of_another_also_where_they_cannot_be_exchanged_at_once(
    tmp_path, monkeypatch, at_once
):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/old").write_bytes(b"old")
    if not at_once:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda _: object())  # as a system without renameat2
    assert atomic.write_folder(tmp_path / "d", lambda folder: (folder / "a").write_bytes(b"a"))
    assert [entry.name for entry in (tmp_path / "d").iterdir()] == ["a"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path):
    def fill(folder):
        (tmp_path / "d").mkdir()
        (tmp_path / "d/theirs").write_bytes(b"theirs")
        (folder / "ours").write_bytes(b"ours")

    assert atomic.write_folder(tmp_path / "d", fill, replace=False) is False
    assert [entry.name for entry in (tmp_path / "d").iterdir()] == ["theirs"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize(
    "number, error, code",
    [
        *((number, ResourceError, "E_DISK") for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO)),
        *((number, RefusedError, "E_PATH") for number in (errno.EACCES, errno.EPERM, errno.EROFS)),
    ],
)
def test_space_and_rights_are_errors_that_name_the_place_and_a_remedy(tmp_path, number, error, code):
    def fail(_):
        raise OSError(number, os.strerror(number))

    for write in (atomic.write_file, atomic.write_folder, partial(atomic.write_folder, replace=False)):
        with pytest.raises(error, match=f"{code} cannot write {tmp_path / 'x'}: {os.strerror(number)}") as caught:
            write(tmp_path / "x", fail)
        assert caught.value.hint


def test_what_is_wrong_on_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for place, why in (
        ("file/x", f"{tmp_path}/file is not a folder"),
        ("file/x/y/z", f"{tmp_path}/file is not a folder"),
        ("dangling/x", f"{tmp_path}/dangling is not a folder"),
        ("none/x", f"there is no folder {tmp_path}/none"),
        ("folder", f"{tmp_path}/folder is a folder"),
    ):
        with pytest.raises(RefusedError, match=f"E_PATH cannot write {tmp_path / place}: {why}$") as caught:
            atomic.write_bytes(tmp_path / place, b"")
        assert caught.value.hint
    with pytest.raises(RefusedError, match="file is not a folder"), atomic.disk_errors(tmp_path / "file"):
        (tmp_path / "file").mkdir()


def test_another_file_that_is_missing_is_not_blamed_on_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"):
        atomic.write_file(tmp_path / "x", lambda _: (tmp_path / "source").read_bytes())
    (tmp_path / "d").mkdir()
    with pytest.raises(FileNotFoundError, match="source"):
        atomic.write_folder(tmp_path / "d", lambda _: (tmp_path / "source").read_bytes())


def test_only_what_nobody_is_writing_is_swept_from_beside_a_place(tmp_path):
    # 1 always runs, and is another's; no process has so high a number.
    names = {n: f"{atomic.TEMPORARY}{n}-s" for n in ("1", os.getpid(), 2**22 + 1, "x")}
    for name in names.values():
        (tmp_path / name).mkdir()
    (tmp_path / f"{atomic.TEMPORARY}{2**22 + 1}-t").touch()
    atomic.sweep_beside(tmp_path / "s")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(
        [names["1"], f"{atomic.TEMPORARY}{2**22 + 1}-t"]
    )
    atomic.sweep(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_process_of_another_user_is_one_that_runs(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / f"{atomic.TEMPORARY}77-s").mkdir()
    atomic.sweep_beside(tmp_path / "s")
    assert len(list(tmp_path.iterdir())) == 1


def test_no_descriptor_is_left_open(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        atomic.write_bytes(tmp_path / "f", b"")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
