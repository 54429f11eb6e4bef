"""Volumes on disk: one Zarr array a kind, one chunk file a volume (FORMAT.md, section 3).

zarr-python declares the arrays and is the reference for what a chunk's bytes are; chunks are written and read here.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stores import atomic
from stores.chunks import LAYOUTS, Array, Chunk, Layout, encode_chunk, read_chunk
from stores.errors import DamagedError
from stores.geometry import PLANES
from stores.recipe import Recipe
from stores.records import StoredObject

if TYPE_CHECKING:
    import zarr

MIN_CAPACITY: Final = 64  # slots that a new array declares; grows by doubling, missing chunks cost nothing
OME_VERSION: Final = "0.5"


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


def encode_parts(parts: Mapping[str, Array], recipe: Recipe, layout: Layout = LAYOUTS["compact"]) -> dict[str, Chunk]:
    """Encode a volume's arrays, by name, as a store of this recipe and layout keeps them; in any process."""
    for name, part in parts.items():
        declared = layouts(recipe)[name]
        if part.shape != declared.shape or part.dtype != declared.dtype:
            message = f"{name} is {part.dtype}{part.shape}, the array holds {declared.dtype}{declared.shape}"
            raise ValueError(message)
    return {name: encode_chunk(part, layout) for name, part in parts.items()}


def layouts(recipe: Recipe) -> dict[str, ArrayLayout]:
    """The arrays of a store of this recipe, by name."""
    cube = (recipe.cube_size,) * 3
    pictures = (len(recipe.positions), recipe.slice_size, recipe.slice_size)
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
        layout: How its chunks are compressed.
    """

    def __init__(self, folder: Path, recipe: Recipe, layout: Layout = LAYOUTS["compact"]) -> None:
        self.folder = folder
        self.layouts = layouts(recipe)
        self.layout = layout

    @classmethod
    def create(cls, folder: Path, recipe: Recipe, layout: Layout = LAYOUTS["compact"]) -> "VolumeStore":
        """Write an empty group with its arrays."""
        import zarr  # noqa: PLC0415 - see `Layout.codecs`

        store = cls(folder, recipe, layout)
        group = zarr.create_group(folder, zarr_format=3, attributes=_attributes(store.layouts))
        for name, array in store.layouts.items():
            _create_array(group, name, array, layout)
        return store

    def write(self, slot: int, chunks: Mapping[str, Chunk]) -> dict[str, StoredObject]:
        """Write one volume's chunks into `slot`, durably, and return what is on disk now.

        Nothing refers to the slot until its record is committed; an interrupted write is swept later.
        """
        self._ensure_capacity(slot)
        for name, chunk in chunks.items():
            atomic.write_bytes(self.chunk_path(name, slot), chunk.payload)
        return {name: chunk.stored for name, chunk in chunks.items()}

    def read(self, name: str, slot: int, *, out: Array | None = None, checksum: int = 0) -> Array:
        """Read one volume's part of the array `name`, its checksum verified.

        Args:
            name: `image`, `label` or a plane.
            slot: The volume's slot.
            checksum: What the volume's record says that the chunk ends with; 0 if unknown.
            out: Optional C-contiguous array of the part's shape and type to decode into.

        Raises:
            DamagedError: E_MISSING or E_CORRUPT, naming the chunk file.
        """
        declared = self.layouts[name]
        part = np.empty(declared.shape, declared.dtype) if out is None else out
        read_chunk(self.chunk_path(name, slot), part, self.layout, checksum=checksum)
        return part

    def will_need(self, name: str, slots: Iterable[int]) -> None:
        """Ask the system to bring chunks into its cache while something else is done; nothing waits for it."""
        if not hasattr(os, "posix_fadvise"):
            return  # macOS
        for slot in slots:
            with suppress(OSError):  # whoever reads the chunk says what is wrong with it
                descriptor = os.open(self.chunk_path(name, slot), os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)

    def chunk(self, name: str, slot: int, stored: StoredObject) -> Chunk:
        """A chunk as it is on disk, for another store.

        Raises:
            DamagedError: E_CORRUPT or E_MISSING, when it is not what the record says.
        """
        path = self.chunk_path(name, slot)
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise DamagedError("E_MISSING", f"chunk {path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(payload).hexdigest() != stored.sha256:
            raise DamagedError("E_CORRUPT", f"chunk {path} fails its sha256", hint="run m3di verify")
        return Chunk(payload, stored)

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

    def remove(self, slot: int) -> None:
        """Remove the chunks of a slot that no record owns any more."""
        remove_slot(self.folder, slot)

    def sweep(self, committed: Iterable[int]) -> None:
        """Remove what interrupted writers left: temporary files and chunks of slots that no record owns."""
        keep = set(committed)
        for name in self.layouts:
            atomic.sweep(self.folder / name)
        for _, slot, path in list(self.chunks()):
            if slot not in keep:
                path.unlink()

    def _ensure_capacity(self, slot: int) -> None:
        """Let every array's metadata declare `slot`, so that plain Zarr readers see it."""
        for name in self.layouts:
            path = self.folder / name / "zarr.json"
            metadata = json.loads(path.read_bytes())
            if slot >= metadata["shape"][0]:
                metadata["shape"][0] = 2 * (slot + 1)
                atomic.write_bytes(path, json.dumps(metadata, indent=2).encode())


def remove_slot(group: Path, slot: int) -> None:
    """Remove the chunks of a slot from a group's folder, whatever recipe its arrays are of."""
    for array in group.glob("*/zarr.json"):
        (array.parent / f"c.{slot}.0.0.0").unlink(missing_ok=True)


def _create_array(group: "zarr.Group", name: str, array: ArrayLayout, layout: Layout) -> None:
    """Create one array: a chunk holds one volume's part, in one file named `c.SLOT.0.0.0`."""
    from zarr.codecs import BytesCodec  # noqa: PLC0415

    group.create_array(
        name,
        shape=(MIN_CAPACITY, *array.shape),
        chunks=(1, *array.shape),
        dtype=array.dtype,
        fill_value=array.fill,
        serializer=BytesCodec(endian=None if array.dtype == "uint8" else "little"),
        filters=None,
        compressors=layout.codecs,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("volume", *array.axes),
    )


def declared_array(array: ArrayLayout, layout: Layout, capacity: int) -> dict[str, Any]:
    """What the metadata of an array must say, by field of its `zarr.json`."""
    import zarr  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        group = zarr.create_group(folder, zarr_format=3)
        _create_array(group, "array", array, layout)
        fields: dict[str, Any] = json.loads((Path(folder) / "array/zarr.json").read_bytes())
    return {**fields, "shape": [capacity, *array.shape]}


def _attributes(arrays: Mapping[str, ArrayLayout]) -> dict[str, Any]:
    """OME-Zarr's account of the arrays, so that its viewers open them.

    A cube's voxel has another size in mm in each volume, so the unit is the voxel; records hold the millimetres.
    """
    pictures = [
        {
            "name": name,
            "axes": [{"name": "volume"}, *({"name": axis, "type": "space"} for axis in array.axes)],
            "datasets": [{"path": name, "coordinateTransformations": [{"type": "scale", "scale": [1.0] * 4}]}],
        }
        for name, array in arrays.items()
    ]
    return {"ome": {"version": OME_VERSION, "multiscales": pictures}}
