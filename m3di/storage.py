"""Stores as the settings say that they may be written, and from where they are read."""

from pathlib import Path

from m3di.config import StorageConfig
from stores import Store
from stores.copying import copy_for_training


def open_for_writing(path: Path, storage: StorageConfig) -> Store:
    """Open a store that exists, to write to it; raises as `Store` does."""
    return Store(path, writable=True, wait_s=storage.wait_s, allow_network=storage.allow_network)


def to_train_from(path: Path, storage: StorageConfig) -> Path:
    """The store that training reads: itself, or its copy on a disk of this machine; raises as `copy_for_training`."""
    return copy_for_training(path, Path(storage.local_copy).expanduser()) if storage.local_copy else path
