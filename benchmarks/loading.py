"""Batches of 32 volumes of 128^3 with K targets from a feature store, against memcpy and the usual loaders.

python benchmarks/loading.py DATASET...

Up to 96 real scans, at most 24 of a dataset, are made into cubes and kept in two stores, compact and uncompressed;
the targets are random. Every route gives the same voxels of the same draws, which is checked, in one process and by
one thread, warm unless it says otherwise. A time is the least of the rounds of each draw, the mean over the draws;
routes take turns, so that whatever else the machine does meets all of them. MONAI's caches are full, its K targets
were chosen once for all, and nothing random follows that would have it copy an item first: all in its favour.
tensorstore is compared when it is installed.
"""

import itertools
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lmdb
import monai.data
import numcodecs.blosc
import numpy as np
import numpy.typing as npt
import torch
import zarr
from monai.transforms import Transform
from torch.utils.data import DataLoader, Dataset, Subset

from m3di.training.loader import BatchReader, prefetch
from m3di.training.sampler import Draw, PlaneSliceSampler
from m3di.volumes.layouts import survey
from m3di.volumes.pool import prepare_all
from m3di.volumes.prepare import Prepared
from stores import Store, chunks
from stores.chunks import CHECKSUM, LAYOUTS
from stores.embeddings import EmbeddingStore
from stores.manifest import ROWS
from stores.recipe import Recipe
from stores.records import Captions, VolumeRecord
from stores.volumes import VolumeStore, encode_parts

try:
    import tensorstore
except ImportError:
    tensorstore = None

RECIPE = Recipe(cube_size=128, slice_size=8, slice_stride=1)
TEACHER, CAPTIONER = "a1" * 32, "b2" * 32
MOST, MOST_OF_ONE, BATCH, DIM, COUNTS, USUAL = 96, 24, 32, 512, (1, 8, 32), 8
DRAWS, ROUNDS, STEPS, SLOWER = 3, 5, 40, 1.5
AHEAD_S = 0.1  # a step of training, in which a batch that was asked for can come
MIB = 2.0**20
Route = Callable[[int], Any]
Draws = Mapping[int, list[Draw]]


def build(sources: list[Path], folder: Path) -> dict[str, Path]:
    """Two stores of the same cubes and rows, by layout."""
    cases = [case for dataset in survey(sources) for case in dataset.cases[:MOST_OF_ONE]][:MOST]
    paths = {layout: folder / layout for layout in ("compact", "uncompressed")}
    with (
        Store.create_or_open(paths["compact"], RECIPE, layout="compact") as compact,
        Store.create_or_open(paths["uncompressed"], RECIPE, layout="uncompressed") as uncompressed,
    ):
        datasets = set()
        for case, outcome in prepare_all(cases, RECIPE, {}, workers=2):
            if not isinstance(outcome, Prepared):
                print(f"left out {case.id}: {outcome}")
                continue
            record = compact.commit_volume(outcome.record, outcome.chunks)
            parts = {name: compact.volumes.read(name, record.slot) for name in outcome.chunks}
            uncompressed.commit_volume(outcome.record, encode_parts(parts, RECIPE, LAYOUTS["uncompressed"]))
            for store in (compact, uncompressed):
                commit_rows(store, store.record(record.volume))
            datasets.add(record.dataset)
        for store in (compact, uncompressed):
            store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
        print(f"{len(compact.volume_names())} volumes of {', '.join(sorted(datasets))}")
    return paths


def commit_rows(store: Store, record: VolumeRecord) -> None:
    """Captions of no meaning, and random rows of an image and a text part of unit length, the same in every store."""
    random = np.random.default_rng(record.slot)
    counts = [len(record.valid_slices(plane)) for plane in range(3)]
    captions = Captions(record.item_digest, tuple(tuple(map(str, range(count))) for count in counts))
    planes = [random.normal(size=(count, 2, DIM)) for count in counts]
    unit = [(rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float16) for rows in planes]
    store.commit_captions(CAPTIONER, record.volume, captions)
    store.commit_rows(TEACHER, record, unit, captions_digest=captions.digest)


@dataclass(frozen=True)
class Opened:
    """A store open for reading, with the rows of its teacher."""

    volumes: VolumeStore
    embeddings: EmbeddingStore

    @property
    def slots(self) -> npt.NDArray[np.int64]:
        """Slot of each volume."""
        return self.embeddings.index.slots

    def paths(self) -> list[Path]:
        """Image chunk file of each volume."""
        return [self.volumes.chunk_path("image", int(slot)) for slot in self.slots]

    def batch(self, draw: Draw, buffer: torch.Tensor) -> object:
        """What training reads."""
        return BatchReader(self.volumes, self.embeddings).read(draw, buffer)

    def cubes(self, draw: Draw, buffer: torch.Tensor) -> None:
        """Its volumes only."""
        for row, volume in enumerate(draw.volumes):
            self.volumes.read("image", int(self.slots[volume]), out=buffer.numpy()[row, 0])

    def unchecked(self, draw: Draw, buffer: torch.Tensor) -> None:
        """Its volumes only, the checksum neither computed nor compared."""
        with mock.patch.object(chunks, "google_crc32c", SimpleNamespace(value=lambda _: Whatever())):
            self.cubes(draw, buffer)

    def draws(self, count: int) -> list[Draw]:
        """Batches of distinct volumes, with `count` slices of each: the first ones of some epochs."""
        sampler = PlaneSliceSampler(self.embeddings.index, slices_per_volume=count, seed=0)
        return [sampler.draw(epoch * len(self.embeddings), BATCH) for epoch in range(DRAWS)]


class Whatever(int):
    """A checksum that differs from none."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a store as training does."""
    with Store(path) as store:
        yield Opened(store.volumes, store.embeddings(TEACHER))


class Naive(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The volumes of a draw as one writes it first: zarr-python, and LMDB with one key a slice."""

    def __init__(self, array: Any, slots: npt.NDArray[np.int64], database: Any, draw: Draw) -> None:
        self.array, self.slots, self.database, self.draw = array, slots, database, draw

    def __len__(self) -> int:
        return len(self.draw.volumes)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cube and its K rows."""
        volume = int(self.draw.volumes[number])
        cube = torch.from_numpy(np.asarray(self.array[int(self.slots[volume])]))
        places = zip(self.draw.planes[number].tolist(), self.draw.slices[number].tolist(), strict=True)
        with self.database.begin() as transaction:
            rows = [np.frombuffer(transaction.get(slice_key(volume, *place)), np.float16) for place in places]
        return cube[None], torch.from_numpy(np.stack(rows).reshape(-1, 2, DIM))


class LoadItem(Transform):
    """What MONAI caches: the cube, as a MetaTensor (as LoadImage gives it) or as a plain tensor, and K rows."""

    def __init__(self, ram: list[npt.NDArray[np.float16]], rows: npt.NDArray[np.float16], *, meta: bool) -> None:
        self.ram, self.rows, self.meta = ram, rows, meta

    def __call__(self, item: dict[str, int]) -> dict[str, torch.Tensor]:
        """Load one item."""
        volume = item["volume"]
        cube = torch.from_numpy(self.ram[volume])[None].clone()
        image = monai.data.MetaTensor(cube, affine=torch.eye(4)) if self.meta else cube
        return {"image": image, "targets": torch.from_numpy(self.rows[volume]).clone()}


def slice_key(volume: int, plane: int, position: int) -> bytes:
    """The key of a slice's row in the naive database."""
    return f"{volume:06d}/{plane}/{position:03d}".encode()


def write_lmdb(folder: Path, embeddings: EmbeddingStore) -> Any:
    """The rows as plain LMDB, one key a slice, and a plane's rows under one key too; opened for reading."""
    environment = lmdb.open(str(folder), map_size=1 << 34, sync=False)
    index = embeddings.index
    bits = index.bits(np.arange(len(index)))
    with environment.begin(write=True) as transaction:
        for volume, plane in itertools.product(range(len(index)), range(3)):
            rows = embeddings.plane(index.volumes[volume], plane)
            transaction.put(plane_key(volume, plane), rows.tobytes())
            for position, row in zip(np.flatnonzero(bits[volume, plane]).tolist(), rows, strict=True):
                transaction.put(slice_key(volume, plane, position), row.tobytes())
    environment.sync(True)
    environment.close()
    return lmdb.open(str(folder), readonly=True, lock=False)


def plane_key(volume: int, plane: int) -> bytes:
    """The key of all rows of a plane in the naive database."""
    return f"{volume:06d}/{plane}".encode()


def with_memcpy(ram: list[npt.NDArray[np.float16]], draw: Draw, buffer: torch.Tensor) -> None:
    """Copy the cubes from memory."""
    for row, volume in enumerate(draw.volumes):
        np.copyto(buffer.numpy()[row, 0], ram[volume])


def with_pread(paths: list[Path], draw: Draw, buffer: torch.Tensor) -> None:
    """Read the files' bytes; uncompressed ones into their place."""
    for row, volume in enumerate(draw.volumes):
        target = buffer.numpy()[row, 0].reshape(-1).view(np.uint8)
        descriptor = os.open(paths[volume], os.O_RDONLY)
        os.preadv(descriptor, [target], 0)
        os.close(descriptor)


def with_blosc(payloads: list[bytes], draw: Draw, buffer: torch.Tensor) -> None:
    """Decode chunks that lie in memory."""
    for row, volume in enumerate(draw.volumes):
        numcodecs.blosc.decompress(payloads[volume], buffer.numpy()[row, 0])


def with_zarr(array: Any, slots: npt.NDArray[np.int64], draw: Draw, buffer: torch.Tensor) -> None:
    """zarr-python, one volume a call, copied into its place."""
    for row, volume in enumerate(draw.volumes):
        np.copyto(buffer.numpy()[row, 0], array[int(slots[volume])])


def with_tensorstore(array: Any, slots: npt.NDArray[np.int64], draw: Draw, buffer: torch.Tensor) -> None:
    """Tensorstore, all volumes asked for at once, read into their places."""
    cubes = buffer.numpy()
    pending = [
        tensorstore.array(cubes[row, 0]).write(array[int(slots[volume])]) for row, volume in enumerate(draw.volumes)
    ]
    for one in pending:
        one.result()


def open_tensorstore(folder: Path) -> Any:
    """An array of a store as tensorstore opens it, on one thread."""
    limits = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}, "context": limits}
    return tensorstore.open(spec, read=True).result()


def with_naive(array: Any, slots: npt.NDArray[np.int64], database: Any, draw: Draw) -> Any:
    """One batch of the naive Dataset through DataLoader."""
    return next(iter(DataLoader(Naive(array, slots, database, draw), batch_size=BATCH, num_workers=0)))


def with_monai(dataset: Any, draw: Draw) -> Any:
    """One batch of a MONAI dataset through MONAI's DataLoader."""
    chosen = Subset(dataset, draw.volumes.tolist())
    return next(iter(monai.data.DataLoader(chosen, batch_size=BATCH, num_workers=0)))


def with_planes(database: Any, ranks: npt.NDArray[np.int64], draw: Draw) -> npt.NDArray[np.float16]:
    """Rows of a draw by py-lmdb, a plane's rows got whole, without checks."""
    rows = np.empty((*draw.planes.shape, 2, DIM), np.float16)
    with database.begin(buffers=True) as transaction:
        for place in np.ndindex(*draw.planes.shape):
            volume, plane = int(draw.volumes[place[0]]), int(draw.planes[place])
            block = np.frombuffer(transaction.get(plane_key(volume, plane)), np.float16).reshape(-1, 2, DIM)
            rows[place] = block[ranks[place]]
    return rows


def with_slices(database: Any, draw: Draw) -> npt.NDArray[np.float16]:
    """Rows of a draw by py-lmdb, one key a slice, without checks."""
    rows = np.empty((*draw.planes.shape, 2, DIM), np.float16)
    with database.begin(buffers=True) as transaction:
        for place in np.ndindex(*draw.planes.shape):
            key = slice_key(int(draw.volumes[place[0]]), int(draw.planes[place]), int(draw.slices[place]))
            rows[place] = np.frombuffer(transaction.get(key), np.float16).reshape(2, DIM)
    return rows


def measure(routes: Mapping[str, Route], rounds: int) -> dict[str, float]:
    """Seconds a batch of each route: the least of the rounds of each draw, the mean over the draws."""
    seconds = {name: np.full(DRAWS, np.inf) for name in routes}
    for _ in range(rounds + 1):  # one more, as the first one warms up
        for name, route in routes.items():
            for number in range(DRAWS):
                start = time.perf_counter()
                route(number)
                seconds[name][number] = min(seconds[name][number], time.perf_counter() - start)
    return {name: float(least.mean()) for name, least in seconds.items()}


def batch_routes(
    stores: Mapping[str, Opened], ram: list[npt.NDArray[np.float16]], database: Any, folder: Path
) -> tuple[dict[str, Route], torch.Tensor]:
    """Every warm way to a batch by name, and the buffer that those without DataLoader fill."""
    some = stores["compact"]
    draws = {count: some.draws(count) for count in COUNTS}
    usual = draws[USUAL]
    buffer = BatchReader(some.volumes, some.embeddings).buffer(BATCH)
    routes: dict[str, Route] = {"memcpy": lambda number: with_memcpy(ram, usual[number], buffer)}
    for name, store in stores.items():
        slots, image = store.slots, store.volumes.folder / "image"
        for count in COUNTS:
            routes[f"ours, {name}, K = {count}"] = partial(_ours, store.batch, draws[count], buffer)
        routes[f"ours, {name}, volumes only"] = partial(_ours, store.cubes, usual, buffer)
        routes[f"ours, {name}, volumes only, unchecked"] = partial(_ours, store.unchecked, usual, buffer)
        array = zarr.open_group(store.volumes.folder, mode="r")["image"]
        routes[f"zarr-python, {name}, volumes only"] = partial(_by_draw, with_zarr, array, slots, usual, buffer)
        if tensorstore is not None:
            other = open_tensorstore(image)
            key = f"tensorstore, {name}, volumes only"
            routes[key] = partial(_by_draw, with_tensorstore, other, slots, usual, buffer)
        routes[f"zarr + LMDB + DataLoader, {name}, K = {USUAL}"] = partial(
            lambda array, slots, number: with_naive(array, slots, database, usual[number]), array, slots
        )
    files = stores["uncompressed"].paths()
    routes["pread of uncompressed files"] = lambda number: with_pread(files, usual[number], buffer)
    payloads = [path.read_bytes()[:-CHECKSUM] for path in some.paths()]
    routes["blosc decode of compact chunks in RAM"] = lambda number: with_blosc(payloads, usual[number], buffer)
    for name, dataset in monai_datasets(some, ram, folder).items():
        routes[f"MONAI {name} + DataLoader, K = {USUAL}"] = partial(
            lambda dataset, number: with_monai(dataset, usual[number]), dataset
        )
    return routes, buffer


def _ours(
    read: Callable[[Draw, torch.Tensor], object], draws: list[Draw], buffer: torch.Tensor, number: int
) -> object:
    return read(draws[number], buffer)


def _by_draw(
    read: Callable[..., None], array: Any, slots: npt.NDArray[np.int64], draws: list[Draw], *more: Any
) -> None:
    buffer, number = more
    read(array, slots, draws[number], buffer)


def monai_datasets(store: Opened, ram: list[npt.NDArray[np.float16]], folder: Path) -> dict[str, Any]:
    """MONAI's two caches, filled."""
    sampler = PlaneSliceSampler(store.embeddings.index, slices_per_volume=USUAL, seed=0)
    whole = sampler.draw(0, len(ram))
    rows = np.empty((len(ram), USUAL, 2, DIM), np.float16)
    rows[whole.volumes] = store.embeddings.gather(whole.volumes, whole.planes, whole.slices)
    items = [{"volume": volume} for volume in range(len(ram))]
    datasets: dict[str, Any] = {}
    for meta in (False, True):
        load, kind = LoadItem(ram, rows, meta=meta), "MetaTensor" if meta else "plain tensor"
        cache_dir = folder / f"monai-{meta}"
        datasets[f"CacheDataset, {kind}"] = monai.data.CacheDataset(items, load, progress=False)
        persistent = monai.data.PersistentDataset(items, load, cache_dir, track_meta=meta, weights_only=not meta)
        for number in range(len(persistent)):
            persistent[number]
        datasets[f"PersistentDataset, {kind}"] = persistent
    return datasets


def check_routes(routes: Mapping[str, Route], ram: list[npt.NDArray[np.float16]], draw: Draw, buffer: Any) -> None:
    """Make sure that every route gives the same voxels to the last bit."""
    expected = np.stack([ram[volume] for volume in draw.volumes]).view(np.uint16)
    for name, route in routes.items():
        buffer.zero_()
        given = route(0)
        if "DataLoader" in name:
            given = given["image"] if isinstance(given, dict) else given[0]
            cubes = np.asarray(given)
        else:
            cubes = buffer.numpy()
        if not np.array_equal(cubes[:, 0].view(np.uint16), expected):
            raise AssertionError(f"{name} gives other voxels")


def show_batches(seconds: Mapping[str, float]) -> None:
    """Print the table of batches."""
    fast, small = (seconds[f"ours, {layout}, K = {USUAL}"] for layout in ("uncompressed", "compact"))
    print(f"\n{'a warm batch':56} {'ms':>8} {'memcpy':>8} {'ours unc.':>10} {'ours comp.':>10}")
    for name, value in sorted(seconds.items(), key=lambda entry: entry[1]):
        ratios = f"{value / seconds['memcpy']:8.2f} {value / fast:10.2f} {value / small:10.2f}"
        print(f"{name:56} {1e3 * value:8.1f} {ratios}")
    memcpy = seconds["memcpy"]
    print(
        f"K = {USUAL}: {memcpy / fast:.0%} of memcpy's rate uncompressed, {small / memcpy:.1f} times its time compact"
    )
    for layout in ("uncompressed", "compact"):
        whole, bare = seconds[f"ours, {layout}, volumes only"], seconds[f"ours, {layout}, volumes only, unchecked"]
        print(f"checksums of volumes, {layout}: {1e3 * (whole - bare):.1f} ms, {1 - bare / whole:.0%} of the time")


def show_rows(store: Opened, database: Any) -> None:
    """Print rows a second by K."""
    index = store.embeddings.index
    for count in COUNTS:
        draws = store.draws(count)
        ranks = [index.ranks(d.volumes, d.planes, d.slices) for d in draws]
        rows = [store.embeddings.gather(d.volumes, d.planes, d.slices) for d in draws]
        table = np.concatenate([r.reshape(-1, 2 * DIM) for r in rows])
        places = np.random.default_rng(0).permuted(np.arange(len(table)).reshape(DRAWS, -1), axis=1)
        taken = np.empty((BATCH * count, 2 * DIM), np.float16)

        def ours(n: int, draws: list[Draw] = draws) -> object:
            return store.embeddings.gather(draws[n].volumes, draws[n].planes, draws[n].slices)

        routes: dict[str, Route] = {
            "RAM": partial(lambda t, p, o, n: np.take(t, p[n], axis=0, out=o, mode="clip"), table, places, taken),
            "ours": ours,
            "py-lmdb, a plane a key": partial(lambda d, r, n: with_planes(database, r[n], d[n]), draws, ranks),
            "py-lmdb, a slice a key": partial(lambda d, n: with_slices(database, d[n]), draws),
        }
        for name in list(routes)[1:]:
            if not np.array_equal(routes[name](0), rows[0]):
                raise AssertionError(f"{name} gives other rows")
        seconds = measure(routes, 8 * ROUNDS)
        if count == COUNTS[0]:
            print(f"\n{'thousand rows a second, warm':32}" + "".join(f"{name:>26}" for name in routes))
        line = f"K = {count}, {BATCH * count} rows, {1e3 * seconds['ours']:.2f} ms"
        print(f"{line:32}" + "".join(f"{BATCH * count / value / 1e3:26.0f}" for value in seconds.values()))


def drop_cache(path: Path) -> None:
    """Let the system forget the store's image chunks and rows."""
    for file in [*path.glob("volumes.zarr/**/c.*"), path / ROWS / "data.mdb"]:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def show_cold(paths: Mapping[str, Path], buffer: torch.Tensor) -> None:
    """Print what a batch costs after the caches were dropped; stores are opened anew, as mapped pages stay."""
    os.sync()
    print(f"\n{f'a cold batch, K = {USUAL}, best of {DRAWS * ROUNDS}':56} {'ms':>8} {'MiB from disk':>14}")
    for layout, path in paths.items():
        routes: dict[str, Callable[[Opened, Draw], object]] = {
            "ours": lambda store, draw: store.batch(draw, buffer),
            f"ours, asked for {AHEAD_S} s before": lambda store, draw: store.batch(draw, buffer),
            "ours, rows only": lambda store, draw: store.embeddings.gather(draw.volumes, draw.planes, draw.slices),
            "pread of the image files, undecoded": lambda store, draw: with_pread(store.paths(), draw, buffer),
        }
        for name, route in routes.items():
            found = []
            for number in range(DRAWS * ROUNDS):
                drop_cache(path)
                with opened(path) as store:
                    draw = store.draws(USUAL)[number % DRAWS]
                    if "asked" in name:
                        BatchReader(store.volumes, store.embeddings).will_need(draw)
                        time.sleep(AHEAD_S)
                    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_inblock, time.perf_counter()
                    route(store, draw)
                    seconds = time.perf_counter() - start
                    read = (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before) * 512
                found.append((seconds, read))
            seconds, read = min(found)
            print(f"{f'{name}, {layout}':56} {1e3 * seconds:8.1f} {read / MIB:14.1f}")


def show_stall(paths: Mapping[str, Path]) -> None:
    """Print how long steps that take 1.5 times a fill wait for batches that a thread reads ahead."""
    title = f"stall over {STEPS} steps of {SLOWER} fills, K = {USUAL}, best of {ROUNDS}"
    print(f"\n{title:56} {'all':>8} {'after 3':>8}")
    for layout, path in paths.items():
        with opened(path) as store:
            reader = BatchReader(store.volumes, store.embeddings)
            step_s = SLOWER * typical_fill(reader, store.draws(USUAL))
            found = []
            for _ in range(ROUNDS):
                waits, steps = stall(reader, store, step_s)
                found.append([sum(waits[n:]) / (sum(waits[n:]) + sum(steps[n:])) for n in (0, 3)])
        whole, later = np.min(found, axis=0)
        print(f"{f'{layout}, a step of {1e3 * step_s:.0f} ms':56} {whole:8.2%} {later:8.2%}")


def typical_fill(reader: BatchReader, draws: list[Draw]) -> float:
    """Median seconds of a fill, over a ring of buffers that have been touched before."""
    ring, found = [reader.buffer(BATCH) for _ in draws], []
    for _ in range(2 * ROUNDS):
        for draw, buffer in zip(draws, ring, strict=True):
            start = time.perf_counter()
            reader.read(draw, buffer)
            found.append(time.perf_counter() - start)
    return float(np.median(found[DRAWS:]))


def stall(reader: BatchReader, store: Opened, step_s: float) -> tuple[list[float], list[float]]:
    """Seconds waited for each batch, and seconds that each step took."""
    sampler = PlaneSliceSampler(store.embeddings.index, slices_per_volume=USUAL, seed=1)
    waits, steps = [], []
    mark = time.perf_counter()
    for _ in prefetch(reader, sampler, start=0, stop=STEPS * BATCH, batch_size=BATCH):
        got = time.perf_counter()
        waits.append(got - mark)
        time.sleep(step_s)
        mark = time.perf_counter()
        steps.append(mark - got)
    return waits, steps


def show_bytes(stores: Mapping[str, Opened], ram: list[npt.NDArray[np.float16]]) -> None:
    """Print what the cubes take on disk."""
    sizes = {name: sum(path.stat().st_size for path in store.paths()) for name, store in stores.items()}
    gzipped = sum(len(zlib.compress(cube.astype(np.float32).tobytes("F"), 6)) for cube in ram)
    equal = all(
        np.array_equal(np.asarray(one).view(np.uint16), cube.view(np.uint16))
        for one, cube in zip((stores["compact"].volumes.read("image", int(s)) for s in stores["compact"].slots), ram,
                             strict=True)
    )  # fmt: skip
    print(f"\n{'bytes of the cubes':56} {'MiB each':>8} {'compact':>8}")
    for name, size in {**sizes, "float32 .nii.gz": gzipped}.items():
        print(f"{name:56} {size / MIB / len(ram):8.2f} {size / sizes['compact']:8.2f}")
    print(f"decoded compact cubes equal the float16 cubes bit by bit: {equal}")


def main(sources: list[Path]) -> None:
    """Build the stores and print all tables."""
    torch.set_num_threads(1)
    numcodecs.blosc.use_threads = False
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    if tensorstore is None:
        print("tensorstore is not installed and left out")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = build(sources, folder)
        with opened(paths["compact"]) as compact, opened(paths["uncompressed"]) as uncompressed:
            stores = {"compact": compact, "uncompressed": uncompressed}
            ram = [uncompressed.volumes.read("image", int(slot)) for slot in uncompressed.slots]
            if len(ram) < BATCH:
                raise SystemExit(f"{len(ram)} volumes are too few for a batch of {BATCH}")
            database = write_lmdb(folder / "naive", compact.embeddings)
            routes, buffer = batch_routes(stores, ram, database, folder)
            check_routes(routes, ram, compact.draws(USUAL)[0], buffer)
            show_batches(measure(routes, 2 * ROUNDS))
            show_rows(compact, database)
            show_bytes(stores, ram)
            database.close()
        del routes
        show_stall(paths)
        show_cold(paths, buffer)


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
