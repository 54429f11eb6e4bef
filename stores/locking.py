"""One writer at a time: the builder's lock, and the file systems on which locks and memory maps cannot be trusted."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stores.errors import LockedError, RefusedError

LOCK: Final = "builder.lock"
POLL_S: Final = 0.2
MOUNTS: Final = Path("/proc/self/mounts")
_NETWORK: Final = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
)


def lock_builder(path: Path, *, wait_s: float = 0.0) -> int:
    """Take the lock of the store at `path`; returns the descriptor that holds it until it is closed.

    Args:
        path: The store's folder.
        wait_s: How long to wait for another writer, seconds.

    Raises:
        LockedError: E_LOCKED, when another process still holds it.
    """
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                hint = "wait for it, let this one wait by --set storage.wait_s=600, or choose another --store"
                raise LockedError("E_LOCKED", f"another process writes to {path}", hint=hint) from error
        time.sleep(POLL_S)


@contextmanager
def only_holder(file: Path, *, busy: str, hint: str) -> Iterator[None]:
    """Hold a lock file, which is made if there is none, within the block.

    Raises:
        LockedError: E_LOCKED, saying `busy` and `hint`, when another process holds it.
    """
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError("E_LOCKED", busy, hint=hint) from error
        yield


def refuse_network(path: Path) -> None:
    """Refuse to write where another machine may write too: LMDB's locks and maps hold on one machine only.

    Raises:
        RefusedError: E_PATH, naming the file system.
    """
    if is_network(path):
        hint = "use a local disk, or --set storage.allow_network=true when this machine alone writes there"
        raise RefusedError("E_PATH", f"{path} lies on a network file system ({file_system(path)})", hint=hint)


def is_network(path: Path) -> bool:
    """Whether a path lies on a file system that other machines may mount too."""
    return file_system(path).startswith(_NETWORK)


def file_system(path: Path, *, mounts: Path = MOUNTS) -> str:
    """Type of the file system that holds `path`, such as `ext4` or `nfs4`; empty where the system does not say."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    where = path.resolve()
    # A later mount hides an earlier one at the same place.
    over = [(len(Path(line[1]).parts), number, line[2]) for number, line in enumerate(lines)
            if where.is_relative_to(line[1].replace("\\040", " "))]  # fmt: skip
    return max(over)[2] if over else ""
