"""A copy of what training reads of a store, on a disk of the machine that trains."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile

from stores import atomic, manifest
from stores.errors import DamagedError
from stores.locking import lock_builder
from stores.store import Store


def copy_for_training(path: Path, scratch: Path) -> Path:
    """Copy marker, records, rows and cubes of a store into a folder below `scratch`; slices and teachers stay behind.

    The copy is named after the store's digest: one that is there already is of equal content, and is used again. Of
    several processes one copies, and the others wait for it.

    Args:
        path: A store, finished, and perhaps on a file system that this machine may only read.
        scratch: A folder on a disk of this machine; created when there is none.

    Returns:
        The copy.

    Raises:
        RefusedError, DamagedError, ResourceError: See `stores.errors`; nothing is left of a copy that failed.
    """
    with atomic.disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    with Store(path) as store, _alone(scratch):
        digest = store.digest()
        copy = scratch / f"{path.resolve().name}-{digest[:16]}"
        if not copy.exists():
            atomic.sweep_beside(copy)
            atomic.write_folder(copy, lambda folder: _fill(folder, store, digest))
    return copy


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Wait until no other process copies to the same place."""
    held = lock_builder(scratch, wait_s=float("inf"))
    try:
        yield
    finally:
        os.close(held)


def _fill(folder: Path, store: Store, digest: str) -> None:
    group = Path(store.marker.group)
    (folder / group).mkdir(parents=True)
    (folder / manifest.TEACHERS).mkdir()
    copyfile(store.path / group / "zarr.json", folder / group / "zarr.json")
    for name in store.volumes.layouts:
        (folder / group / name).mkdir()
        copyfile(store.path / group / name / "zarr.json", folder / group / name / "zarr.json")
    store.copy_rows(folder / manifest.ROWS)
    (folder / manifest.MARKER).write_bytes(store.marker.to_bytes())
    with Store(folder) as copy:
        if copy.digest() != digest:
            hint = "wait for whoever builds it, or run m3di verify"
            raise DamagedError("E_STORE", f"{store.path} changed while it was copied", hint=hint)
        for record in copy.records():
            chunk = store.volumes.chunk("image", record.slot, record.objects["image"])
            copy.volumes.chunk_path("image", record.slot).write_bytes(chunk.payload)
