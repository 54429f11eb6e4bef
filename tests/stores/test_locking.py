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
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a/store", "ext4"),
        ("/mnt/scans/store", "nfs4"),
        ("/mnt/scans/local/s", "tmpfs"),
        ("/mnt/with blank/s", "cifs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_its_nearest_mount(tmp_path, path, kind):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert locking.file_system(Path(path), mounts=tmp_path / "mounts") == kind


def test_a_system_that_does_not_say_its_mounts_is_no_network(tmp_path):
    assert locking.file_system(tmp_path, mounts=tmp_path / "none") == ""


def test_writing_on_a_network_file_system_needs_the_users_word(tmp_path, monkeypatch):
    path = build(tmp_path / "s", 1)
    (tmp_path / "mounts").write_text(f"server:/x {tmp_path} nfs rw 0 0\n")
    monkeypatch.setattr(locking.file_system, "__kwdefaults__", {"mounts": tmp_path / "mounts"})
    with pytest.raises(RefusedError, match=r"E_PATH .* network file system \(nfs\)"):
        Store(path, writable=True)
    with pytest.raises(RefusedError, match="E_PATH"):
        Store.create_or_open(tmp_path / "new", RECIPE)
    Store(path).close()
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


def test_a_store_that_another_builder_made_meanwhile_is_not_replaced(tmp_path):
    path = build(tmp_path / "s", 2)
    manifest.create_store(path, manifest.Marker(RECIPE))
    with Store(path) as store:
        assert store.volume_names() == ["v0", "v1"]
    assert not list(tmp_path.glob(".partial-*"))
