"""One pretraining run, killed again and again and resumed, against one that was left alone: equal bit by bit?

    python benchmarks/resume.py STORE [COUNT]     COUNT signals (30), KILL, TERM or INT, at random moments

Weights, averaged weights, the optimiser's state and every logged number are compared. Only signals that reach a
living process count. Ends with 1 when anything differs or is left over.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from m3di.training import checkpoint

ROOT = Path(__file__).parents[1]
# While Python imports, INT is an exception that a library's `except:` may swallow: it is only sent to a run at work.
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CLEAN_EXITS = (0, 130, 143, *(-number for number in SIGNALS))
SETTINGS = (
    "pretrain.max_steps=300", "pretrain.batch_size=4", "pretrain.accumulation=2", "pretrain.ema_decay=0.99",
    "pretrain.checkpoint_every=5", "pretrain.evaluate_every=40",
)  # fmt: skip
EARLY = 0.2  # share of signals that are sent while a process starts


def start(store: Path, run: Path) -> "subprocess.Popen[str]":
    """Begin or continue a run."""
    command = [sys.executable, "-m", "cli", "pretrain", "--store", str(store), "--run", str(run), "--resume"]
    command += ["--preset", "smoke", "--device", "cpu", "--json"]
    return subprocess.Popen(
        [*command, *(part for setting in SETTINGS for part in ("--set", setting))],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def straight(store: Path, run: Path) -> tuple[float, float]:
    """An undisturbed run: seconds until it begins to train, and until it is done after that."""
    started = time.monotonic()
    process = start(store, run)
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    process.communicate()
    if process.returncode:
        sys.exit(f"the undisturbed run ended with {process.returncode}")
    return begun - started, time.monotonic() - begun


def kill_once(process: "subprocess.Popen[str]", *, after_s: float, early: bool, number: int) -> bool:
    """Send a signal after some time, counted from the start or from the first step; False when it came too late."""
    assert process.stdout is not None
    if not early:
        process.stdout.readline()
    end = time.monotonic() + after_s
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    alive = process.poll() is None
    if alive:
        process.send_signal(number)
    process.communicate()
    return alive


def broken(store: Path, run: Path, count: int, times: tuple[float, float]) -> Counter[str]:
    """A run that gets `count` signals and is then left to end; counts what went wrong."""
    start_s, work_s = times
    faults: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    chance = random.Random(0)
    while sent.total() < count:
        early = chance.random() < EARLY
        number = chance.choice(SIGNALS[:2] if early else SIGNALS)
        process = start(store, run)
        after_s = chance.uniform(0, start_s if early else work_s / count)
        if not kill_once(process, after_s=after_s, early=early, number=number):
            faults["ended before the last signal"] += 1
            break
        sent[signal.Signals(number).name + (" while starting" if early else "")] += 1
        faults["unexpected exit"] += process.returncode not in CLEAN_EXITS
        found = checkpoint.latest(run)
        print(
            f"{sent.total()} signals, exit {process.returncode}, at {found.samples_seen if found else 0}", flush=True
        )
    last = start(store, run)
    last.communicate()
    faults["did not end"] += last.returncode != 0
    print(f"signals: {dict(sent)}")
    return faults


def compare(one: Path, other: Path) -> Counter[str]:
    """Count what differs between two runs, and what is left over in the second."""
    first, second = checkpoint.latest(one), checkpoint.latest(other)
    assert first is not None and second is not None
    lines = [(run / "metrics.jsonl").read_bytes() for run in (one, other)]
    print(f"files compared: {', '.join(first.facts['files'])}; {len(lines[0].splitlines())} lines of metrics")
    return Counter(
        {
            "other weights or state": first.facts["files"] != second.facts["files"],
            "other facts": json.dumps(first.facts) != json.dumps(second.facts),
            "other metrics": lines[0] != lines[1],
            "left-over files": len(list(other.rglob(".partial-*"))),
        }
    )


def main(store: Path, count: int) -> None:
    """Run, break, compare."""
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "straight", Path(folder) / "broken"
        times = straight(store, one)
        print(f"undisturbed: {times[0]:.1f} s to begin, {times[1]:.1f} s to train", flush=True)
        faults = broken(store, other, count, times)
        faults = +(faults + compare(one, other))
    print(f"faults: {dict(faults)}" if faults else "no fault")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 30)
