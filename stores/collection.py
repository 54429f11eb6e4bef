"""`gc`: remove what no reader can reach any more, and give its space back."""

from dataclasses import dataclass

from stores import manifest
from stores.store import Store


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be.

    Attributes:
        volumes: Volumes of a former recipe.
        derived: Captions and rows of volumes that are gone, or are no longer what they were made of.
        folders: Folders of teachers that the store does not know.
        num_bytes: Size of the store before and after.
    """

    volumes: tuple[str, ...]
    derived: tuple[str, ...]
    folders: tuple[str, ...]
    num_bytes: tuple[int, int]


def collect(store: Store, *, dry_run: bool = False) -> Collected:
    """Remove volumes of former recipes, captions and rows that are out of date, and teachers without facts.

    Args:
        store: Open for writing, or for reading with `dry_run`.
        dry_run: Only say what would go.
    """
    before = size_of(store)
    former = [record.volume for record in store.all_records() if not store.is_current(record)]
    derived = [f"{table} {key.decode()}" for table, key in store.outdated()]
    folders = [
        entry for entry in (store.path / manifest.TEACHERS).glob("*") if store.facts("teacher", entry.name) is None
    ]
    if not dry_run:
        store.remove(volumes=former, derived=list(store.outdated()), folders=folders)
    names = tuple(sorted(entry.name for entry in folders))
    return Collected(tuple(former), tuple(derived), names, (before, size_of(store)))


def size_of(store: Store) -> int:
    """Bytes of all files of a store."""
    return sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
