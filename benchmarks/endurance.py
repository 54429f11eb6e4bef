"""What a store goes through: kills, two builders, full disks, readers beside a builder, long training.

    python benchmarks/endurance.py kills SOURCE [COUNT]      COUNT kills at random moments of m3di build-store
    python benchmarks/endurance.py pairs SOURCE [COUNT]      the same with two builders started together
    python benchmarks/endurance.py disk SOURCE               on small file systems in memory (root, for mount)
    python benchmarks/endurance.py readers STORE [SECONDS]   8 readers while a builder appends
    python benchmarks/endurance.py training STORE [SECONDS]  memory and open files while batches are read

Each prints what it counted, and ends with 1 when anything was lost, damaged or left over.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from m3di.training.loader import BatchReader, prefetch
from m3di.training.sampler import PlaneSliceSampler
from stores import Store
from stores.verification import verify

ROOT = Path(__file__).parents[1]
SIZES = ("volumes.cube_size=48", "volumes.slice_size=96", "volumes.slice_stride=6", "teacher.fit_steps=50")
LIMIT = 12
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CLEAN_EXITS = (0, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)


def build(source: str, store: Path) -> "subprocess.Popen[str]":
    """Start a build of a few volumes."""
    settings = [part for size in SIZES for part in ("--set", size)]
    command = [
        sys.executable,
        "-m",
        "cli",
        "build-store",
        source,
        "--store",
        str(store),
        "--limit",
        str(LIMIT),
        "--json",
    ]
    return subprocess.Popen(
        [*command, *settings], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def clean_build(source: str, store: Path) -> tuple[str, float]:
    """Digest of an uninterrupted build, and how long it worked after its first event, seconds."""
    process = build(source, store)
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    output, errors = process.communicate()
    if process.returncode:
        sys.exit(f"the clean build failed: {errors}")
    return json.loads(output.splitlines()[-1])["digest"], time.monotonic() - begun


def kill_at_random(
    process: "subprocess.Popen[str]", work_s: float, chance: random.Random
) -> tuple[bool, int, list[str]]:
    """Send a signal at a random moment of the work: whether it came in time, exit code, items acknowledged."""
    assert process.stdout is not None
    first = process.stdout.readline()
    try:
        process.wait(chance.uniform(0, work_s))  # what it prints fits into the pipe
        hit = False
    except subprocess.TimeoutExpired:
        process.send_signal(chance.choice(SIGNALS))
        hit = True
    output, _ = process.communicate()
    return hit, process.returncode, _acknowledged(first + output)


def check(store: Path, acknowledged: set[str], faults: Counter[str]) -> None:
    """Count what is damaged, missing or lost in a store that a build was interrupted in."""
    if not store.exists():
        faults["lost"] += bool(acknowledged)
        return
    faults["damaged or missing"] += sum(problem.serious for problem in verify(store))
    with Store(store) as opened:
        current = {record.volume for record in opened.records()}
        held = {f"volumes {volume}" for volume in current}
        held |= {f"captions {volume}" for volume in current if opened.captioners(volume)}
        held |= {f"embeddings {volume}" for volume in current if opened.row_sets(volume)}
    faults["lost"] += len(acknowledged - held)


def kills(source: str, count: int, builders: int = 1) -> Counter[str]:
    """Kill builds until `count` signals were sent; each store is built to the end before the next."""
    faults: Counter[str] = Counter()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        digest, work_s = clean_build(source, Path(folder) / "clean")
        sent = stores = 0
        while sent < count:
            stores += 1
            store, acknowledged = Path(folder) / f"store-{stores}", set[str]()
            for _ in range(6):
                processes = [build(source, store) for _ in range(builders)]
                victim, *others = chance.sample(processes, builders)
                hit, code, items = kill_at_random(victim, work_s, chance)
                for other in others:
                    output, _ = other.communicate()
                    items += _acknowledged(output)
                    faults["unexpected exit"] += other.returncode not in (0, 6)
                sent += hit
                if not hit:
                    work_s *= 0.8  # the clean build was slower, as other work ran beside it
                faults["unexpected exit"] += code not in (*CLEAN_EXITS, *((6,) if builders > 1 else ()))
                acknowledged |= set(items)
                check(store, acknowledged, faults)
            final = build(source, store)
            output, _ = final.communicate()
            faults["did not finish"] += final.returncode != 0
            faults["other digest"] += (
                final.returncode == 0 and json.loads(output.splitlines()[-1])["digest"] != digest
            )
            faults["damaged or missing"] += len(list(verify(store)))
            faults["left-over files"] += len(list(store.rglob(".partial-*")))
            print(f"{sent} signals, {stores} stores, faults {dict(+faults)}", flush=True)
    return faults


def disk(source: str) -> Counter[str]:
    """Build on file systems of several sizes, then give them room."""
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        digest, _ = clean_build(source, Path(folder) / "clean")
        size = sum(file.stat().st_size for file in (Path(folder) / "clean").rglob("*") if file.is_file())
        for share in (0.002, 0.005, 0.01, 0.02, 0.05, 0.3, 0.7, 0.9, 0.97):
            mount = Path(folder) / "small"
            mount.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(share * size)}", "tmpfs", mount], check=True)
            try:
                output, errors = (process := build(source, mount / "store")).communicate()
                named = process.returncode == 5 and "E_DISK" in errors
                faults["not exit 5 with E_DISK"] += not named
                check(mount / "store", set(_acknowledged(output)), faults)
                subprocess.run(["mount", "-o", f"remount,size={4 * size}", mount], check=True)
                after, _ = (again := build(source, mount / "store")).communicate()
                whole = again.returncode == 0 and json.loads(after.splitlines()[-1])["digest"] == digest
                faults["not completed with room"] += not whole
                faults["left-over files"] += len(list(mount.rglob(".partial-*")))
                said = errors.strip().splitlines()[-2:]
                room, done = share * size / 2**20, len(_acknowledged(output))
                print(f"{room:.2f} MiB: exit {process.returncode}, {done} items acknowledged; {said}", flush=True)
            finally:
                subprocess.run(["umount", mount], check=True)
    return faults


def _acknowledged(output: str) -> list[str]:
    events = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return [f"{event['stage']} {event['volume']}" for event in events if event.get("event") == "committed"]


def readers(path: Path, seconds: float) -> Counter[str]:
    """Eight processes read while a ninth appends copies of what is there under new names."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "store"
        subprocess.run(["cp", "-r", path, copy], check=True)
        queue = context.Queue()
        workers = [context.Process(target=_read, args=(copy, seconds, number, queue)) for number in range(8)]
        for worker in workers:
            worker.start()
        appended = _append(path, copy, seconds)
        counts = [queue.get(timeout=seconds + 120) for _ in workers]
        for worker in workers:
            worker.join()
        rows, volumes, errors = (sum(count[i] for count in counts) for i in range(3))
        print(f"{appended} volumes appended; {rows} rows and {volumes} volumes read by 8 processes, {errors} errors")
        serious = sum(problem.serious for problem in verify(copy))
    return Counter({"errors": errors, "damaged or missing": serious})


def _append(source: Path, target: Path, seconds: float) -> int:
    appended, end = 0, time.monotonic() + seconds
    with Store(source) as known, Store(target, writable=True) as store:
        current = known.current()
        embeddings = known.embeddings(current["teacher"])
        while time.monotonic() < end:
            for record in known.records():
                chunks = {name: known.volumes.chunk(name, record.slot, it) for name, it in record.objects.items()}
                new = store.commit_volume(replace(record, volume=f"{record.volume}-{appended}"), chunks)
                captions = known.captions(current["captioner"], record.volume)
                assert captions is not None
                store.commit_captions(current["captioner"], new.volume, captions)
                planes = [embeddings.plane(record.volume, plane) for plane in range(3)]
                store.commit_rows(current["teacher"], new, planes, captions_digest=captions.digest)
                appended += 1
                if time.monotonic() > end:
                    break
            store.commit_current(**current)
    return appended


def _read(path: Path, seconds: float, seed: int, queue: object) -> None:
    rows = volumes = errors = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with Store(path) as store:
                embeddings = store.embeddings(store.current()["teacher"])
                sampler = PlaneSliceSampler(embeddings.index, slices_per_volume=4, seed=seed)
                for step in range(50):
                    draw = sampler.draw(seed * 1000 + step * 8, 8)
                    rows += embeddings.gather(draw.volumes, draw.planes, draw.slices).shape[0] * 4
                    store.volumes.read("image", int(embeddings.index.slots[draw.volumes[0]]))
                    volumes += 1
        except Exception as error:
            errors += 1
            print(f"reader {seed}: {type(error).__name__}: {error}", flush=True)
    queue.put((rows, volumes, errors))  # type: ignore[attr-defined]


def training(path: Path, seconds: float) -> Counter[str]:
    """Read batches as training does, a step every 100 ms, and watch memory and open files."""
    with Store(path) as store:
        embeddings = store.embeddings(store.current()["teacher"])
        sampler = PlaneSliceSampler(embeddings.index, slices_per_volume=8, seed=0)
        begun, steps, marks = time.monotonic(), 0, []
        for batch in prefetch(BatchReader(store.volumes, embeddings), sampler, start=0, stop=1 << 40, batch_size=32):
            time.sleep(0.1)
            steps += 1
            assert np.isfinite(batch.targets[0, 0].float().numpy()).all()
            if steps % 500 == 100:
                marks.append((_resident_mib(), len(list(Path("/proc/self/fd").iterdir()))))
                memory, files = marks[-1]
                print(f"{time.monotonic() - begun:.0f} s, step {steps}: {memory:.0f} MiB, {files} files", flush=True)
            if time.monotonic() - begun > seconds:
                break
    grown = marks[-1][0] - marks[len(marks) // 4][0] if len(marks) > 3 else 0.0
    print(f"{steps} steps; memory grew {grown:.1f} MiB after the first quarter")
    return Counter({"memory grew": int(grown > 16), "open files grew": int(marks[-1][1] > marks[0][1])})


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main(arguments: list[str]) -> None:
    """Run one of them."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    kind, where, number = arguments[0], arguments[1], float(arguments[2]) if len(arguments) > 2 else 0
    runs = {
        "kills": lambda: kills(where, int(number) or 100),
        "pairs": lambda: kills(where, int(number) or 100, builders=2),
        "disk": lambda: disk(where),
        "readers": lambda: readers(Path(where), number or 60),
        "training": lambda: training(Path(where), number or 3600),
    }
    faults = +runs[kind]()
    print(f"faults: {dict(faults)}" if faults else "no fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(sys.argv[1:])
