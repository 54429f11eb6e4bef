"""The marker file that makes a folder a store, and the empty store's creation in one rename."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stores import atomic
from stores.chunks import LAYOUTS
from stores.database import Database
from stores.errors import DamagedError, RefusedError
from stores.recipe import Recipe
from stores.volumes import VolumeStore

MARKER: Final = "m3di-store.json"
FORMAT_VERSION: Final = 2
VOLUMES: Final = "volumes.zarr"
ROWS: Final = "rows.lmdb"
TEACHERS: Final = "teachers"


@dataclass(frozen=True)
class Marker:
    """What makes a folder a store.

    Attributes:
        recipe: How scans became volumes.
        layout: Name of the chunks' layout, a key of `stores.chunks.LAYOUTS`.
        group: Zarr group of the recipe's arrays, relative to the store.
        version: Format version that it was written in.
    """

    recipe: Recipe
    layout: str = "compact"
    group: str = VOLUMES
    version: int = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """The marker file."""
        fields = {
            "format": "m3di-store",
            "version": self.version,
            "layout": self.layout,
            "group": self.group,
            "recipe": self.recipe.to_dict(),
            "recipe_digest": self.recipe.digest,
        }
        return (json.dumps(fields, indent=2) + os.linesep).encode()


def create_store(path: Path, marker: Marker) -> None:
    """Create an empty store at `path`; a kill leaves nothing, or all of it. One that another process made is kept.

    Raises:
        RefusedError: E_STORE, when something that is not a store stands there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not (path / MARKER).exists():
        raise RefusedError("E_STORE", f"{path} exists and is not a store", hint="choose another place by --store")
    with atomic.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_folder(path, lambda folder: _fill(folder, marker), replace=False)


def read_marker(path: Path) -> Marker:
    """Read and check the marker of a store.

    Raises:
        RefusedError: E_STORE, when there is no store.
        DamagedError: E_VERSION for a newer format; E_CORRUPT for a marker that does not hold together.
    """
    try:
        fields = json.loads((path / MARKER).read_bytes())
        version, recipe, digest = int(fields["version"]), fields["recipe"], fields["recipe_digest"]
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "build one with `m3di build-store SOURCE`, or point --store or M3DI_STORE at one"
        raise RefusedError("E_STORE", f"there is no store at {path}", hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path) from error
    if version > FORMAT_VERSION:
        message = f"{path} has format version {version}, this m3di reads up to {FORMAT_VERSION}"
        raise DamagedError("E_VERSION", message, hint="use a newer m3di")
    try:
        marker = _marker(version, Recipe.from_dict(recipe), fields)
    except (TypeError, KeyError) as error:
        raise _corrupt(path) from error
    if marker.recipe.digest != digest or marker.layout not in LAYOUTS or not _is_below(marker.group):
        raise _corrupt(path)
    return marker


def write_marker(path: Path, marker: Marker) -> None:
    """Replace the marker of the store at `path`."""
    atomic.write_bytes(path / MARKER, marker.to_bytes())


def _marker(version: int, recipe: Recipe, fields: dict[str, Any]) -> Marker:
    if version == 1:
        return Marker(recipe, layout="version-1", group=VOLUMES, version=1)
    return Marker(recipe, layout=fields["layout"], group=fields["group"], version=version)


def _is_below(group: str) -> bool:
    """Whether a marker's group is a plain path below the store's Zarr folder, or that folder."""
    parts = Path(group).parts
    return parts[:1] == (VOLUMES,) and len(parts) <= 2 and ".." not in parts


def _fill(folder: Path, marker: Marker) -> None:
    VolumeStore.create(folder / marker.group, marker.recipe, LAYOUTS[marker.layout])
    (folder / TEACHERS).mkdir()
    Database(folder / ROWS, readonly=False).close()
    (folder / MARKER).write_bytes(marker.to_bytes())


def _corrupt(path: Path) -> DamagedError:
    return DamagedError("E_CORRUPT", f"{path / MARKER} does not hold together", hint="restore it from a copy")
