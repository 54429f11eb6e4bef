"""Stores as the settings say that they may be written."""

from pathlib import Path

from m3di.config import StorageConfig
from stores import Store


def open_for_writing(path: Path, storage: StorageConfig) -> Store:
    """Open a store that exists, to write to it; raises as `Store` does."""
    return Store(path, writable=True, wait_s=storage.wait_s, allow_network=storage.allow_network)
