import threading
import time
from pathlib import Path

import pytest

from stores import Store, locking, manifest
from stores.errors import LockedError, RefusedError
from tests.stores.stores import RECIPE, build

MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/export /mnt/scans nfs4 rw 0 0
tmpfs /mnt/scans/local tmpfs rw 0 0
//host/share /mnt/with\\040blank cifs rw 0 0
/dev/vdb /mnt/disk/inner xfs rw 0 0
server:/other /mnt/disk nfs rw 0 0
/dev/vdc /mnt/twice ext4 rw 0 0
server:/third /mnt/twice fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a/store", "ext4"),
        ("/mnt/scans/store", "nfs4"),
        ("/mnt/scans/local/s", "tmpfs"),
        ("/mnt/with blank/s", "cifs"),
        ("/mnt/disk/inner/s", "xfs"),  # mounted before what lies above it
        ("/mnt/diskette/s", "ext4"),
        ("/mnt/twice/s", "fuse.sshfs"),  # the later one hides the earlier
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_nearest_mount(tmp_path, path, kind):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert locking.file_system(Path(path), mounts=tmp_path / "mounts") == kind


def test_a_system_that_does_not_say_its_mounts_is_no_network(tmp_path):
    assert locking.file_system(tmp_path, mounts=tmp_path / "none") == ""


def test_writing_on_a_network_file_system_needs_the_users_word(tmp_path, monkeypatch):
    path = build(tmp_path / "s", 1)
    (path / "rows.lmdb/lock.mdb").unlink()
    Store(path).close()
    assert (path / "rows.lmdb/lock.mdb").exists(), "on a disk of this machine a reader is known to the writer"
    (tmp_path / "mounts").write_text(f"server:/x {tmp_path} nfs rw 0 0\n")
    monkeypatch.setattr(locking.file_system, "__kwdefaults__", {"mounts": tmp_path / "mounts"})
    with pytest.raises(RefusedError, match=r"E_PATH .* network file system \(nfs\)"):
        Store(path, writable=True)
    with pytest.raises(RefusedError, match="E_PATH"):
        Store.create_or_open(tmp_path / "new", RECIPE)
    (path / "rows.lmdb/lock.mdb").unlink()
    Store(path).close()
    assert not (path / "rows.lmdb/lock.mdb").exists(), "a reader goes without a lock that cannot be trusted"
    Store(path, writable=True, allow_network=True).close()


def test_a_second_builder_waits_as_long_as_it_is_asked(tmp_path):
    path = build(tmp_path / "s", 1)
    first = Store(path, writable=True)
    begun = time.monotonic()
    with pytest.raises(LockedError):
        Store(path, writable=True, wait_s=0.3)
    assert time.monotonic() - begun >= 0.3
    threading.Timer(0.3, first.close).start()
    Store(path, writable=True, wait_s=30).close()


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "fuse.sshfs"])
def test_file_systems_that_others_may_mount_are_told_from_those_of_this_machine(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(locking.file_system, "__kwdefaults__", {"mounts": tmp_path / "mounts"})
    (tmp_path / "mounts").write_text(f"x / {kind} rw 0 0\n")
    assert locking.is_network(tmp_path)
    for local in ("ext4", "xfs", "tmpfs", "fuse.ntfs", "overlay"):
        (tmp_path / "mounts").write_text(f"x / {local} rw 0 0\n")
        assert not locking.is_network(tmp_path)


def test_a_lock_is_held_within_its_block_and_says_what_it_was_told(tmp_path):
    file = tmp_path / "lock"
    with locking.only_holder(file, busy="a is busy", hint="wait for a"):
        with pytest.raises(LockedError, match="E_LOCKED a is busy") as caught:
            locking.only_holder(file, busy="a is busy", hint="wait for a").__enter__()
        assert caught.value.hint == "wait for a"
    with locking.only_holder(file, busy="", hint=""):
        pass


def test_a_refused_builder_keeps_no_descriptor(tmp_path):
    path = build(tmp_path / "s", 1)
    with Store(path, writable=True):
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(LockedError) as caught:
            locking.lock_builder(path)
        assert "storage.wait_s" in caught.value.hint
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_store_that_another_builder_made_meanwhile_is_not_replaced(tmp_path):
    path = build(tmp_path / "s", 2)
    manifest.create_store(path, manifest.Marker(RECIPE))
    with Store(path) as store:
        assert store.volume_names() == ["v0", "v1"]
    assert not list(tmp_path.glob(".partial-*"))
