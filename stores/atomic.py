"""Durable, atomic files and folders: temporary name, fsync, rename, fsync of the folder."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.errors import RefusedError, ResourceError

TEMPORARY = ".partial-"  # prefix of every name that is not committed yet; swept at the next open for writing


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaint about space or rights at `path` into an error that names it.

    Raises:
        ResourceError: E_DISK, when the disk or quota is full or the medium failed.
        RefusedError: E_PATH, when the place may not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise ResourceError(
                "E_DISK", f"cannot write {path}: {error.strerror}", hint="make room and run the command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RefusedError(
                "E_PATH", f"cannot write {path}: {error.strerror}", hint="choose a place you may write to"
            ) from error
        raise


def write_bytes(path: Path, payload: bytes) -> None:
    """Replace `path` by `payload` so that a reader, or a kill, sees the old or the new bytes, never a mix."""
    write_file(path, lambda temporary: temporary.write_bytes(payload))


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make it durable and move it into place.

    The temporary name keeps the ending of `path`, since many writers choose the format by it.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with disk_errors(path):
        try:
            write(temporary)
            _fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync(path.parent)


def write_folder(path: Path, fill: Callable[[Path], object], *, replace: bool = True) -> bool:
    """Let `fill` write a whole folder aside, make it durable and move it to `path`.

    Args:
        path: Where the folder shall be.
        fill: Writes its content into the folder it is given.
        replace: Take the place of what is there; else leave alone what another process made there meanwhile.

    Returns:
        Whether `path` is the folder that was written.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with disk_errors(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            fill(temporary)
            for entry in (*temporary.rglob("*"), temporary):
                _fsync(entry)
            if replace and path.exists():
                retired = path.with_name(f"{TEMPORARY}{os.getpid()}-old-{path.name}")
                path.replace(retired)
                temporary.replace(path)
                shutil.rmtree(retired)
            else:
                temporary.rename(path)
        except OSError as error:
            if not replace and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _fsync(path.parent)
    return True


def sweep(folder: Path) -> int:
    """Remove what an interrupted writer left in `folder`; return how many entries went."""
    leftovers = list(folder.glob(f"{TEMPORARY}*"))
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return len(leftovers)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
