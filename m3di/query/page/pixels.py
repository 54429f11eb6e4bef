"""Grey pixels of a store's cubes and slices, and how they travel."""

import base64
import gzip
import io

import numpy as np
import numpy.typing as npt

from stores import Store
from stores.geometry import PLANES
from stores.records import VolumeRecord

Pixels = npt.NDArray[np.uint8]


def grey_cube(store: Store, record: VolumeRecord) -> Pixels:
    """A volume's cube in 256 greys, (x, y, z)."""
    cube = store.volumes.read("image", record.slot).astype(np.float32)
    return np.rint(cube.clip(0, 1) * np.float32(255)).astype(np.uint8)


def slice_stack(store: Store, record: VolumeRecord, plane: int) -> Pixels:
    """The slices of a plane at the recipe's positions, (s, y, x); from the cube in a store that keeps no slices."""
    if store.recipe.slice_size:
        return store.volumes.read(PLANES[plane], record.slot)
    from m3di.volumes.slices import displayed  # noqa: PLC0415

    return displayed(grey_cube(store, record), plane)[np.array(store.recipe.positions)]


def halved(cube: Pixels) -> Pixels:
    """A cube of half the edge: the mean of each 2 x 2 x 2 voxels; an odd last layer is left out."""
    edge = len(cube) // 2
    blocks = cube[: 2 * edge, : 2 * edge, : 2 * edge].reshape(edge, 2, edge, 2, edge, 2)
    return np.rint(blocks.mean(axis=(1, 3, 5), dtype=np.float32)).astype(np.uint8)


def packed(cube: Pixels) -> str:
    """A cube's bytes, compressed, as text; equal cubes give equal text."""
    return base64.b64encode(gzip.compress(cube.tobytes(), mtime=0)).decode("ascii")


def png(picture: Pixels) -> bytes:
    """A grey picture (y, x) as PNG, quickly."""
    from PIL import Image  # noqa: PLC0415

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
