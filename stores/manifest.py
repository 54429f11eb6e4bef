"""The marker file that makes a folder a store, and the empty store's creation in one rename."""

import json
import os
from pathlib import Path
from typing import Final

from stores import atomic
from stores.database import Database
from stores.errors import DamagedError, RefusedError
from stores.recipe import Recipe
from stores.volumes import VolumeStore

MARKER: Final = "m3di-store.json"
FORMAT_VERSION: Final = 1
VOLUMES: Final = "volumes.zarr"
ROWS: Final = "rows.lmdb"
TEACHERS: Final = "teachers"


def create_store(path: Path, recipe: Recipe) -> None:
    """Create an empty store at `path`; a kill leaves nothing, or all of it.

    Raises:
        RefusedError: E_STORE, when something that is not a store stands there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RefusedError("E_STORE", f"{path} exists and is not a store", hint="choose another place by --store")
    with atomic.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_folder(path, lambda folder: _fill(folder, recipe))


def read_recipe(path: Path) -> Recipe:
    """Read and check the marker of a store.

    Raises:
        RefusedError: E_STORE, when there is no store.
        DamagedError: E_VERSION for a newer format; E_CORRUPT for a marker that does not hold together.
    """
    try:
        marker = json.loads((path / MARKER).read_bytes())
        version, fields, digest = int(marker["version"]), marker["recipe"], marker["recipe_digest"]
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "build one with `m3di build-store SOURCE`, or point --store or M3DI_STORE at one"
        raise RefusedError("E_STORE", f"there is no store at {path}", hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(path) from error
    if version > FORMAT_VERSION:
        message = f"{path} has format version {version}, this m3di reads up to {FORMAT_VERSION}"
        raise DamagedError("E_VERSION", message, hint="use a newer m3di")
    try:
        recipe = Recipe.from_dict(fields)
    except TypeError as error:
        raise _corrupt(path) from error
    if recipe.digest != digest:
        raise _corrupt(path)
    return recipe


def _fill(folder: Path, recipe: Recipe) -> None:
    VolumeStore.create(folder / VOLUMES, recipe)
    (folder / TEACHERS).mkdir()
    Database(folder / ROWS, readonly=False).close()
    marker = {
        "format": "m3di-store",
        "version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + os.linesep)


def _corrupt(path: Path) -> DamagedError:
    return DamagedError("E_CORRUPT", f"{path / MARKER} does not hold together", hint="restore it from a copy")
