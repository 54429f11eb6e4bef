"""How much faster two worker processes build volumes than one: reading, resampling, rendering, committing.

python benchmarks/build_workers.py DATASET... [--limit N]

One core with one worker against two cores with two, on the same cases, each into a new store, without captions and
embeddings. Prints seconds, volumes a second, the ratio, and the largest memory of a process.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

from m3di.build import commit_volumes
from m3di.events import ignore
from m3di.volumes.layouts import survey
from stores import Store
from stores.recipe import Recipe


def main(sources: list[Path], limit: int | None) -> None:
    """Build twice and compare."""
    cases = [case for dataset in survey(sources) for case in dataset.cases][:limit]
    cores = sorted(os.sched_getaffinity(0))[:2]
    seconds = []
    for count in (1, 2):
        os.sched_setaffinity(0, cores[:count])
        with tempfile.TemporaryDirectory() as folder, Store.create_or_open(Path(folder) / "store", Recipe()) as store:
            start = time.perf_counter()
            done = commit_volumes(store, cases, workers=count, strict=False, report=ignore, check=lambda: None)
            seconds.append(time.perf_counter() - start)
        print(f"{count} core{'s' * (count > 1)}: {done.built} volumes, {done.refused} refused, {seconds[-1]:.1f} s,"
              f" {done.built / seconds[-1]:.2f} a second", flush=True)  # fmt: skip
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"ratio {seconds[0] / seconds[1]:.2f}, largest process {peak / 1e6:.2f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    main(arguments.sources, arguments.limit)
