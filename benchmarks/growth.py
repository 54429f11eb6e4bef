"""What grows with a store, and what must not: 10^2 to 10^6 volumes with a row a plane and no voxels.

    python benchmarks/growth.py [MAX_VOLUMES]

For each size: bytes of the database, the time to open the store with its index, the index's own memory, the start of
a sampler, and a batch of 32 volumes with K = 3 rows (draw, and gather, best of 50).
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from m3di.training.sampler import PlaneSliceSampler
from stores import Store
from stores.blocks import encode_block
from stores.embeddings import EmbeddingStore
from stores.geometry import Geometry
from stores.keys import block_key, derived_key, volume_key
from stores.recipe import Recipe
from stores.records import RowsRecord, StoredObject, VolumeRecord, pack_bits
from stores.store import PARTS

RECIPE = Recipe(slice_size=0, slice_stride=128)
TEACHER = "a1" * 32
BATCH, K, WIDTH = 32, 3, 16
STEP = 20_000  # volumes a transaction: a simulation may lose them


def fill(store: Store, count: int) -> None:
    """Write the records and rows of `count` volumes as a build would, many to a transaction."""
    bit = np.zeros(RECIPE.cube_size, bool)
    bit[RECIPE.slice_stride // 2] = True
    valid = pack_bits(bit)
    grid = Geometry((512, 512, 300), np.diag([0.7, 0.7, 1.5, 1]))
    rows = np.ones((1, 2, WIDTH), np.float16)
    for start in range(0, count, STEP):
        with store._database.writing() as transaction:
            for number in range(start, min(start + STEP, count)):
                name = f"study-{number:07d}-series-1"
                record = VolumeRecord(
                    volume=name,
                    subject=f"subject-{number // 2:07d}",
                    dataset="hospital",
                    modality="CT",
                    body_part="",
                    source_digest=f"{number:064x}",
                    label_digest="",
                    item_digest=f"{number:064x}",
                    slot=number,
                    source=grid,
                    valid=(valid, valid, valid),
                    recipe_digest=RECIPE.digest,
                    objects={"image": StoredObject(1 << 20, f"{number:064x}", number)},
                )
                keys = [block_key(TEACHER, name, plane) for plane in range(3)]
                made = RowsRecord(record.slices_digest(RECIPE), "", PARTS, (1, 1, 1), WIDTH, ("", "", ""))
                transaction.put_json("volumes", volume_key(name), record.to_dict())
                transaction.put_json("embedded", derived_key(TEACHER, name), made.to_dict())
                for key in keys:
                    transaction.put("rows", key, encode_block(rows, key))


def measure(path: Path, count: int) -> str:
    """One line of the table."""
    size = (path / "rows.lmdb/data.mdb").stat().st_size
    begun = time.perf_counter()
    with Store(path) as store:
        embeddings = store.embeddings(TEACHER)
        opened = time.perf_counter() - begun
        index = embeddings.index
        assert len(index) == count
        names = (index.volumes, index.subjects)
        memory = sum(name.letters.nbytes + name.ends.nbytes for name in names)
        memory += index.datasets.codes.nbytes + index.slots.nbytes + index.checksums.nbytes + index.valid.nbytes
        begun = time.perf_counter()
        sampler = PlaneSliceSampler(index, slices_per_volume=K, seed=0)
        sampler.draw(0, BATCH)
        start = time.perf_counter() - begun
        draw, gather = batches(sampler, embeddings)
    return (
        f"{count:9d} {size / 2**20:10.1f} {opened:9.2f} {memory / 2**20:10.1f} {start:11.3f} {1e3 * draw:9.2f} "
        f"{1e3 * gather:9.2f}"
    )


def batches(sampler: PlaneSliceSampler, embeddings: EmbeddingStore) -> tuple[float, float]:
    """Best seconds of a draw, and of a gather of rows that were not read before."""
    draws, gathers = [], []
    for step in range(1, 51):
        begun = time.perf_counter()
        draw = sampler.draw(step * BATCH, BATCH)
        drawn = time.perf_counter()
        embeddings.gather(draw.volumes, draw.planes, draw.slices)
        draws.append(drawn - begun)
        gathers.append(time.perf_counter() - drawn)
    return min(draws), min(gathers)


def main() -> None:
    """Print the table."""
    largest = int(float(sys.argv[1])) if len(sys.argv) > 1 else 10**6
    names = ("volumes", "rows MiB", "open s", "index MiB", "sampler s", "draw ms", "gather ms")
    print(" ".join(f"{name:>{width}}" for name, width in zip(names, (9, 10, 9, 10, 11, 9, 9), strict=True)))
    count = 100
    while count <= largest:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            with Store.create_or_open(path, RECIPE) as store:
                fill(store, count)
                store._keep_index(TEACHER)
            print(measure(path, count), flush=True)
        count *= 10


if __name__ == "__main__":
    main()
