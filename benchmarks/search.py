"""How fast a store is searched, exactly and by index: time and memory at sizes of a hospital's archive.

    python benchmarks/search.py [VOLUMES ...] [--approximate] [--keep DIR]

For each size (2,000 volumes by default) a store of synthetic rows: 105 slices of each plane, image and text rows of
width 512, which vary by place, by volume and by chance. Then, in a process of its own each, exact search from the map
(the baseline), from the copy that an engine makes once it is asked again and again, and on request the approximate
index. Of each: opening the store with a first question, making the copy, the question again (best of five), the
question to the middle thirds of all scans for the first time and again (best of five), a slice question with the same
place in other people (best of five), and a first question for volumes. Seconds of the wall and of the CPU, by as many
threads as there are cores (`taskset -c 0` for one); peak memory, pages of the map included, and what is the process's
own. Ratios are of CPU time, to the baseline.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from m3di.query import Searcher, Wanted
from stores import Store
from stores.blocks import encode_block
from stores.geometry import Geometry
from stores.keys import block_key, derived_key, volume_key
from stores.recipe import Recipe
from stores.records import RowsRecord, StoredObject, VolumeRecord, pack_bits
from stores.store import PARTS

RECIPE = Recipe(slice_size=0)
TEACHER, CAPTIONER = "a1" * 32, "b2" * 32
SLICES, WIDTH = 105, 512
STEP = 200  # volumes a transaction: a simulation may lose them
REPEATS = 5


def fill(path: Path, count: int) -> None:
    """Write a store of `count` volumes, many to a transaction."""
    random = np.random.default_rng(0)
    places = random.standard_normal((2, 3, SLICES, WIDTH), dtype=np.float32).cumsum(axis=2)
    places /= np.sqrt(np.arange(1, SLICES + 1, dtype=np.float32))[:, None]
    with Store.create_or_open(path, RECIPE) as store:
        for start in range(0, count, STEP):
            with store._database.writing() as transaction:
                for number in range(start, min(start + STEP, count)):
                    _put(transaction, number, places, random)
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)


def _put(transaction: Any, number: int, places: np.ndarray, random: np.random.Generator) -> None:
    bits = np.zeros(RECIPE.cube_size, bool)
    bits[11 : 11 + SLICES] = True
    name = f"study-{number:07d}"
    record = VolumeRecord(
        volume=name, subject=f"subject-{number // 2:07d}", dataset="hospital", modality="CT" if number % 2 else "MR",
        body_part="", source_digest=f"{number:064x}", label_digest="", item_digest=f"{number:064x}", slot=number,
        source=Geometry((512, 512, 300), np.diag([0.7, 0.7, 1.5, 1])), valid=(pack_bits(bits),) * 3,
        recipe_digest=RECIPE.digest, objects={"image": StoredObject(1 << 20, f"{number:064x}", number)},
    )  # fmt: skip
    made = RowsRecord(record.slices_digest(RECIPE), "", PARTS, (SLICES,) * 3, WIDTH, ("", "", ""))
    transaction.put_json("volumes", volume_key(name), record.to_dict())
    transaction.put_json("embedded", derived_key(TEACHER, name), made.to_dict())
    own = random.standard_normal((2, 1, WIDTH), dtype=np.float32)
    for plane in range(3):
        rows = places[:, plane] + 0.7 * own + 0.5 * random.standard_normal((2, SLICES, WIDTH), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        key = block_key(TEACHER, name, plane)
        transaction.put("rows", key, encode_block(rows.swapaxes(0, 1).astype(np.float16), key))


def measure(path: Path, how: str) -> dict[str, float]:
    """Seconds of a first and of later questions, and MiB."""
    times: dict[str, float] = {}
    wanted = Wanted(approximate=how == "approximate")

    def keep(name: str, call: Callable[[], object], repeats: int = 1) -> None:
        timed = [_timed(call) for _ in range(repeats)]
        times[name], times[f"{name} cpu"] = min(wall for wall, _ in timed), min(cpu for _, cpu in timed)

    begun = time.perf_counter(), time.process_time()
    with Searcher(path, compact=how == "copied") as searcher:
        volume = searcher.embeddings.index.volumes[len(searcher.embeddings) // 2]
        vector = searcher.vector_of(volume, 1, 60)
        searcher.by_vector(vector, wanted)
        times["first"], times["first cpu"] = time.perf_counter() - begun[0], time.process_time() - begun[1]
        if how == "copied":
            keep("copy", searcher.part(0).compact)
        keep("warm", lambda: searcher.by_vector(vector, wanted), REPEATS)
        in_place = replace(wanted, where=("place=middle",))
        keep("first in a place", lambda: searcher.by_vector(vector, in_place))
        keep("in a place", lambda: searcher.by_vector(vector, in_place), REPEATS)
        keep("slice", lambda: searcher.by_slice(volume, "coronal", 60, wanted), REPEATS)
        times["own MiB"] = _own_memory()
        keep("volumes", lambda: searcher.by_volume(volume))
        if how == "approximate":
            times["recall"] = searcher._indices[0].recall
    times["peak MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return times


def _own_memory() -> float:
    """MiB that are not pages of a file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def _in_process(path: Path, how: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", how, "--keep", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print a line for each size and way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("volumes", nargs="*", type=int, default=[2000])
    parser.add_argument("--approximate", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for the stores, which are kept and used again")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.keep, options.measure)))
        return
    ways = ["mapped", "copied", *(["approximate"] if options.approximate else [])]
    print(f"{len(os.sched_getaffinity(0))} threads")
    with tempfile.TemporaryDirectory() as temporary:
        for count in options.volumes:
            path = (options.keep or Path(temporary)) / f"store-{count}"
            if not path.exists():
                fill(path, count)
            found = {how: _in_process(path, how) for how in ways}
            for how, times in found.items():
                shown = ", ".join(f"{name} {value:.4g}" for name, value in times.items())
                print(f"{count:6d} volumes, {how:11} {shown}", flush=True)
            for name in ("warm cpu", "slice cpu"):
                ratios = (f"{how} {found['mapped'][name] / times[name]:.2f}" for how, times in found.items())
                print(f"{count:6d} volumes, {name}: times as fast: {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
