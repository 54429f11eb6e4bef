"""Volumes on disk: one Zarr array a kind, one chunk file a volume (FORMAT.md, section 3).

zarr-python declares the arrays and is the reference for what a chunk's bytes are; chunks are written and read here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from stores import atomic
from stores.errors import DamagedError
from stores.geometry import PLANES
from stores.recipe import Recipe
from stores.records import StoredObject

Array = npt.NDArray[Any]
CNAME: Final = "lz4"
CLEVEL: Final = 5
MIN_CAPACITY: Final = 64  # slots that a new array declares; grows by doubling, missing chunks cost nothing


@dataclass(frozen=True)
class ArrayLayout:
    """One Zarr array: the shape and type of a volume's part of it, and how that part is cut into chunks.

    Attributes:
        shape: Of one volume.
        dtype: Numpy type name.
        fill: What a chunk that does not exist reads as, in any Zarr reader.
        axes: Names of the dimensions.
    """

    shape: tuple[int, ...]
    dtype: str
    fill: float
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Chunk:
    """One volume's part of an array as the bytes of its chunk file, with what the record says of them."""

    payload: bytes
    stored: StoredObject


def encode_parts(parts: Mapping[str, Array], recipe: Recipe) -> dict[str, Chunk]:
    """Encode a volume's arrays, by name, as a store of this recipe keeps them; in any process."""
    return {name: _encode(part, layouts(recipe)[name]) for name, part in parts.items()}


def layouts(recipe: Recipe) -> dict[str, ArrayLayout]:
    """The arrays of a store of this recipe, by name."""
    cube = (recipe.cube_size,) * 3
    positions = -(-recipe.cube_size // recipe.slice_stride)
    pictures = (positions, recipe.slice_size, recipe.slice_size)
    arrays = {"image": ArrayLayout(cube, "float16", float("nan"), ("right", "anterior", "superior"))}
    if recipe.labels:
        arrays["label"] = ArrayLayout(cube, "uint8", 0, ("right", "anterior", "superior"))
    for plane in PLANES:
        arrays[plane] = ArrayLayout(pictures, "uint8", 0, ("slice", "row", "column"))
    return arrays


class VolumeStore:
    """The Zarr group of a store: writes whole volumes durably, reads them back checked.

    Args:
        folder: The group's folder.
        recipe: The recipe of the store.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.layouts = layouts(recipe)

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> "VolumeStore":
        """Write an empty group with its arrays."""
        store = cls(folder, recipe)
        group = zarr.create_group(folder, zarr_format=3)
        for name, layout in store.layouts.items():
            _create_array(group, name, layout)
        return store

    def write(self, slot: int, chunks: Mapping[str, Chunk]) -> dict[str, StoredObject]:
        """Write one volume's chunks into `slot`, durably, and return what is on disk now.

        Nothing refers to the slot until its record is committed; an interrupted write is swept later.
        """
        self._ensure_capacity(slot)
        for name, chunk in chunks.items():
            atomic.write_bytes(self.chunk_path(name, slot), chunk.payload)
        return {name: chunk.stored for name, chunk in chunks.items()}

    def read(self, name: str, slot: int, *, out: Array | None = None) -> Array:
        """Read one volume's part of the array `name`, its checksum verified.

        Args:
            name: `image`, `label` or a plane.
            slot: The volume's slot.
            out: Optional C-contiguous array of the part's shape and type to decode into.

        Raises:
            DamagedError: E_MISSING or E_CORRUPT, naming the chunk file.
        """
        layout = self.layouts[name]
        part = np.empty(layout.shape, layout.dtype) if out is None else out
        path = self.chunk_path(name, slot)
        try:
            payload = path.read_bytes()
        except FileNotFoundError as error:
            raise DamagedError("E_MISSING", f"chunk {path} is missing", hint="run m3di verify") from error
        _decode(payload, part, path)
        return part

    def chunk_path(self, name: str, slot: int) -> Path:
        """The chunk file of `slot` in the array `name`."""
        zeros = ".0" * len(self.layouts[name].shape)
        return self.folder / name / f"c.{slot}{zeros}"

    def chunks(self) -> Iterator[tuple[str, int, Path]]:
        """Every chunk file there is: array name, slot, path."""
        for name in self.layouts:
            for entry in os.scandir(self.folder / name):
                if entry.name.startswith("c."):
                    yield name, int(entry.name.split(".")[1]), Path(entry.path)

    def sweep(self, committed: Iterable[int]) -> int:
        """Remove what interrupted writers left: temporary files and chunks of slots that no record owns."""
        keep = set(committed)
        removed = sum(atomic.sweep(self.folder / name) for name in self.layouts)
        for _, slot, path in list(self.chunks()):
            if slot not in keep:
                path.unlink()
                removed += 1
        return removed

    def _ensure_capacity(self, slot: int) -> None:
        """Let every array's metadata declare `slot`, so that plain Zarr readers see it."""
        for name in self.layouts:
            path = self.folder / name / "zarr.json"
            metadata = json.loads(path.read_bytes())
            if slot >= metadata["shape"][0]:
                metadata["shape"][0] = 2 * (slot + 1)
                atomic.write_bytes(path, json.dumps(metadata, indent=2).encode())


def _create_array(group: zarr.Group, name: str, layout: ArrayLayout) -> None:
    """Create one array: a chunk holds one volume's part, in one file named `c.SLOT.0.0.0`."""
    group.create_array(
        name,
        shape=(MIN_CAPACITY, *layout.shape),
        chunks=(1, *layout.shape),
        dtype=layout.dtype,
        fill_value=layout.fill,
        serializer=BytesCodec(endian=None if layout.dtype == "uint8" else "little"),
        filters=None,
        compressors=(BloscCodec(cname=CNAME, clevel=CLEVEL, shuffle="bitshuffle"), Crc32cCodec()),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("volume", *layout.axes),
    )


def _encode(part: Array, layout: ArrayLayout) -> Chunk:
    """Turn a volume's part into the bytes of its chunk: those that zarr-python writes, without its call cost.

    A part that equals the fill value has a chunk too: an absent chunk always means an absent volume.
    """
    if part.shape != layout.shape or part.dtype != layout.dtype:
        raise ValueError(f"part is {part.dtype}{part.shape}, the array holds {layout.dtype}{layout.shape}")
    body = blosc.compress(np.ascontiguousarray(part), CNAME.encode(), CLEVEL, blosc.BITSHUFFLE)
    payload = bytes(body) + google_crc32c.value(body).to_bytes(4, "little")
    return Chunk(payload, StoredObject(len(payload), hashlib.sha256(payload).hexdigest()))


def _decode(payload: bytes, part: Array, path: Path) -> None:
    """Decode a chunk (crc32c, blosc) into `part`: the same bytes that zarr-python gives, without its call cost."""
    body = memoryview(payload)[:-4]
    stored = int.from_bytes(payload[-4:], "little")
    if len(payload) < 20 or google_crc32c.value(np.frombuffer(body, np.uint8)) != stored:
        raise DamagedError("E_CORRUPT", f"chunk {path} fails its checksum", hint="run m3di verify")
    try:
        blosc.decompress(body, part)
    except (RuntimeError, ValueError) as error:
        raise DamagedError("E_CORRUPT", f"chunk {path} does not decode: {error}", hint="run m3di verify") from error
