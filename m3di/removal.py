"""`m3di remove`: a person's scans out of a store, with what lies beside it."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m3di.config import StorageConfig
from m3di.shards import folder_of_shards
from m3di.storage import open_for_writing
from stores import Store
from stores.errors import RefusedError
from stores.withdrawal import choose, withdraw


def remove(
    path: Path, storage: StorageConfig, *, volumes: Sequence[str], subjects: Sequence[str], dry_run: bool = False
) -> dict[str, Any]:
    """Take volumes, or all of some people, out of a store, so that no file of it keeps a trace; see `withdraw`.

    Args:
        path: The store.
        storage: How it may be written.
        volumes: Ids of volumes or refused cases.
        subjects: People.
        dry_run: Only say what would go.

    Raises:
        RefusedError: E_CONFIG, when nothing is named; E_STORE, when there is no store, or shards that may hold the
            same scans; else as `choose`.
        LockedError, DamagedError, ResourceError: See `stores.errors`.
    """
    if not volumes and not subjects:
        raise RefusedError("E_CONFIG", "nothing to remove", hint="name it: --volume ID, or --subject ID")
    _refuse_shards(path)
    opened = Store(path) if dry_run else open_for_writing(path, storage)
    with opened as store:
        chosen = choose(store, volumes=volumes, subjects=subjects)
        if not dry_run:
            _remove_search(path)
        return asdict(withdraw(store, chosen, dry_run=dry_run)) | {"dry_run": dry_run}


def take_back(path: Path, storage: StorageConfig, scans: Sequence[Path]) -> dict[str, Any]:
    """Forget that scans were withdrawn, so that the next build takes them up again.

    Args:
        path: The store.
        storage: How it may be written.
        scans: Their files or DICOM folders.

    Raises:
        RefusedError: E_MISSING, for a scan that was not withdrawn.
    """
    from m3di.volumes.readers import content_digest  # noqa: PLC0415 - its formats take their time to import

    with open_for_writing(path, storage) as store:
        digests = {content_digest(scan): scan for scan in scans}
        withdrawn = store.withdrawn()
        for digest, scan in digests.items():
            if digest not in withdrawn:
                hint = "only the very file that was withdrawn is known, by its content"
                raise RefusedError("E_MISSING", f"{scan} was not withdrawn from {path}", hint=hint)
        store.commit_withdrawn(withdrawn - digests.keys())
    return {"taken_back": len(digests)}


def _refuse_shards(path: Path) -> None:
    """Refuse a store that has shards, or is one: the scans would be left in the others, or come back from them."""
    for shards in (folder_of_shards(path), path.resolve().parent):
        if shards.name.endswith(".shards") and shards.is_dir():
            hint = f"once they are merged, delete {shards.name} and remove from the one store; a build makes it anew"
            raise RefusedError("E_STORE", f"{path} is built in shards ({shards})", hint=hint)


def _remove_search(path: Path) -> None:
    """Remove the indexes of approximate search, which hold embeddings; a search makes them anew."""
    place = path.resolve()
    with suppress(FileNotFoundError):
        shutil.rmtree(place.with_name(f"{place.name}.search"))
