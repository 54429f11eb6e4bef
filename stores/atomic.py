"""Durable, atomic files and folders: temporary name, fsync, rename, fsync of the folder."""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stores.errors import RefusedError, ResourceError

TEMPORARY = ".partial-"  # prefix of every name that is not committed yet; swept at the next open for writing

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2  # linux/fs.h


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's complaint about space, rights or the way to `path` into an error that names it.

    Raises:
        ResourceError: E_DISK, when the disk or quota is full or the medium failed.
        RefusedError: E_PATH, when the place may not be written, or cannot be: its folder is missing or a file.
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
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            obstacle = _obstacle(path, error)
            if obstacle:
                raise RefusedError(
                    "E_PATH", f"cannot write {path}: {obstacle}", hint="choose another place"
                ) from error
        raise


def _obstacle(path: Path, error: OSError) -> str:
    """What is wrong on the way to `path`; empty when nothing is, and the complaint was about something else."""
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not nearest.is_dir() and (nearest != path or error.errno == errno.EEXIST):
        return f"{nearest} is not a folder"
    if nearest not in (path, path.parent):
        return f"there is no folder {path.parent}"
    return f"{path} is a folder" if error.errno == errno.EISDIR else ""


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
                _exchange(temporary, path)  # what was there goes with the temporary name
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


def _exchange(one: Path, two: Path) -> None:
    """Let two folders change places: at once where the system can (Linux), else by three renames."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is not None and not renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE
    ):
        return
    aside = one.with_name(f"{one.name}-old")
    two.rename(aside)
    one.rename(two)
    aside.rename(one)


def sweep(folder: Path) -> None:
    """Remove what an interrupted writer left in `folder`, where nobody else writes."""
    _remove(list(folder.glob(f"{TEMPORARY}*")))


def sweep_beside(path: Path) -> None:
    """Remove what interrupted writers of `path` left beside it, but not what others are writing there now."""
    _remove([entry for entry in path.parent.glob(f"{TEMPORARY}*-{path.name}") if not _is_writing(entry)])


def _remove(leftovers: list[Path]) -> None:
    for entry in leftovers:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _is_writing(entry: Path) -> bool:
    """Whether the process whose number a temporary name holds is another one that still runs."""
    number = entry.name.removeprefix(TEMPORARY).partition("-")[0]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
