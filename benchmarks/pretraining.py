"""Which way of pretraining gives the better encoder: retrieval of slices, and segmentation with few labels.

    python benchmarks/pretraining.py run OUT --data DATA [--seeds 3] [--workers 2] [--arms NAME ...]
    python benchmarks/pretraining.py table OUT

`run` builds a store of the sets of `SETS` below DATA at 48^3 with dense rows, then pretrains a small ViT in each of
`ARMS` and fine-tunes it on 5 and on 15 labelled hippocampus cases. Every cell is a command line of m3di in
a folder of its own below OUT; finished ones are left alone, so a stopped `run` goes on where it was. `table` writes
what is finished to OUT/results.json, with `rows` as those of `m3di reproduce`, and prints it: retrieval among the
slices of held-out subjects, and Dice of the same 40 test subjects, who were neither pretrained nor trained on,
cases averaged over seeds, with their paired difference to no pretraining (95% interval over cases) and that of each
seed. OUT may be such a results.json itself; arms that were run again elsewhere, beside others there, may be put into
it as `repeat`, and are then compared with those by themselves.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np

from m3di.evaluation.statistics import over_seeds, paired_difference

SETS = (
    "msd_hippocampus", "acdc_ed", "brain_tumor_dicom", "hippocrop_dicom", "lung_ct_elastix", "niivue", "oasis",
    "pyradiomics", "spine_generic", "torchio_ct_dicom", "totalsegmentator_example",
)  # fmt: skip
SIZES = """
[volumes]
cube_size = 48
[storage]
wait_s = 600
[encoder]
name = "vit"
[encoder.options]
patch_size = 8
hidden_size = 128
mlp_dim = 512
num_layers = 4
num_heads = 4
[psat]
width = 128
num_queries = 32
num_heads = 4
[objective]
kind = "infonce"
image_weight = 1
text_weight = 1
dense_weight = 0
reconstruction_weight = 0
[pretrain]
slices_per_volume = 8
batch_size = 16
max_steps = 200
learning_rate = 5e-4
warmup_fraction = 0.1
checkpoint_every = 1000
evaluate_every = 200
log_every = 10
[finetune]
batch_size = 2
max_steps = 300
learning_rate = 1e-3
encoder_rate_factor = 0.3
checkpoint_every = 1000
evaluate_every = 1000
log_every = 50
"""
CURVE = ("pretrain.evaluate_every=20",)  # to see how recall grows, not only where it ends
# Settings beside SIZES, which names every weight of the objective: presets change, arms do not.
ARMS: dict[str, tuple[str, ...]] = {
    "none": (),
    "infonce": CURVE,
    "infonce, K = 1": (*CURVE, "pretrain.slices_per_volume=1"),
    "soft": ("objective.kind=soft",),
    "sigmoid": ("objective.kind=sigmoid",),
    "transport": ("objective.kind=transport",),
    "dense": ("objective.dense_weight=1", "objective.image_weight=0", "objective.text_weight=0"),
    "dense + light infonce": (
        "objective.dense_weight=1", "objective.image_weight=0.03", "objective.text_weight=0.03",
    ),
    "dense + reconstruction": (
        "objective.dense_weight=1", "objective.image_weight=0", "objective.text_weight=0",
        "objective.reconstruction_weight=1",
    ),
    "infonce + dense + reconstruction": ("objective.dense_weight=1", "objective.reconstruction_weight=1"),
}  # fmt: skip
RETRIEVAL_ONLY = ("infonce, K = 1",)
MAX_SEEDS = 100
LABELS = {5: 0.036, 15: 0.107}  # labelled cases -> share of the 140 training subjects


@dataclass(frozen=True)
class Cell:
    """Command lines that end with a file, in a folder of their own."""

    folder: Path
    result: Path
    commands: tuple[tuple[str, ...], ...]


def cells(out: Path, data: Path, seed: int, arm: str) -> Iterator[Cell]:
    """Pretraining, then fine-tuning for each number of labels."""
    common = ("--config", str(out / "sizes.toml"), "--seed", str(seed), "--device", "cpu", "--quiet")
    encoder = folder_of(out, arm, seed)
    if arm != "none":
        settings = tuple(part for setting in ARMS[arm] for part in ("--set", setting))
        command = ("pretrain", "--store", str(out / "store"), "--run", str(encoder), *common, *settings)
        yield Cell(encoder, last_checkpoint(encoder), (command,))
    for labels, fraction in LABELS.items():
        if arm in RETRIEVAL_ONLY:
            continue
        run = encoder.with_name(f"{encoder.name}-labels{labels}")
        start = ("--init", str(encoder)) if arm != "none" else ()
        train = ("finetune", "--task", "msd", "--data", str(data / "msd_hippocampus"), "--run", str(run))
        yield Cell(
            run,
            run / "evaluation.json",
            (
                (*train, *common, *start, "--label-fraction", str(fraction)),
                ("evaluate", "--run", str(run), "--quiet"),
            ),
        )


def folder_of(out: Path, arm: str, seed: int) -> Path:
    """Where an arm's pretraining run is."""
    words = "".join(letter if letter.isalnum() else "-" for letter in arm.lower())
    return out / "runs" / f"{'-'.join(filter(None, words.split('-')))}-seed{seed}"


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint that ends a pretraining run; one that was stopped has an earlier one."""
    sizes = tomllib.loads(SIZES)["pretrain"]
    return folder / "checkpoints" / f"{sizes['max_steps'] * sizes['batch_size']:012d}"


def fill(cell: Cell) -> None:
    """Run a cell's commands, unless its result is there."""
    if cell.result.exists():
        return
    shutil.rmtree(cell.folder, ignore_errors=True)
    for command in cell.commands:
        subprocess.run([sys.executable, "-m", "cli", *command], check=True, stdout=subprocess.DEVNULL)
    print(cell.folder.name, flush=True)


def run(out: Path, data: Path, *, arms: list[str], seeds: int, workers: int) -> None:
    """Fill the cells of some arms, the first seed of every arm first."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "sizes.toml").write_text(SIZES)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sets = [str(data / name) for name in SETS]
    build = ("build-store", *sets, "--store", str(out / "store"), "--set", "volumes.cube_size=48", "--slice-stride")
    subprocess.run([sys.executable, "-m", "cli", *build, "3", "--set", "teacher.dense_dim=48", "-q"], check=True)

    def chain(job: tuple[int, str]) -> None:
        for cell in cells(out, data, *job):
            fill(cell)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(chain, [(seed, arm) for seed in range(seeds) for arm in arms]))


def collect(out: Path) -> dict[str, Any]:
    """What is finished, small enough to be kept: curves of each seed, and Dice of each test case and seed."""
    found: dict[str, Any] = {"sizes": tomllib.loads(SIZES), "arms": {}}
    for arm, settings in ARMS.items():
        folders = {seed: folder_of(out, arm, seed) for seed in range(MAX_SEEDS)}
        found["arms"][arm] = {
            "settings": settings,
            "curves": {seed: curve for seed, folder in folders.items() if (curve := learning_curve(folder))},
            "dice": {
                labels: {seed: dice for seed, folder in folders.items() if (dice := dice_of(folder, labels))}
                for labels in LABELS
            },
        }
    return found


def print_tables(found: dict[str, Any]) -> None:
    """Print retrieval and Dice as Markdown, then the curves of K = 1 and K = 8."""
    arms = found["arms"]
    print("| pretraining | seeds | image, at 1 / 10 | text, at 1 / 10 | plane, place off | 5 labels | 15 labels |")
    print("|---|---|---|---|---|---|---|")
    for name, arm in arms.items():
        looks = [curve[-1] for curve in arm["curves"].values()]
        cells = [name, str(max(len(looks), *(len(dice) for dice in arm["dice"].values())))]
        cells += held_out(looks) if looks else [""] * 3
        cells += [gain(found, name, labels) for labels in LABELS]
        print(f"| {' | '.join(cells)} |")
    for name in ("infonce", "infonce, K = 1"):
        looks_at = zip(*arms[name]["curves"].values(), strict=True)
        points = [f"{looks[0]['samples_seen']}: {mean_of([*looks], 'image', '10'):.1%}" for looks in looks_at]
        print(f"{name}, image recall at 10 by volumes seen, mean of the seeds: {', '.join(points)}")


def print_repeat(found: dict[str, Any]) -> None:
    """Print gains over the repeated arms, of each other and of the arms that were run beside them."""
    beside = {name: arm for name, arm in found["arms"].items() if "reconstruction" in name}
    there = {"arms": found["repeat"]["arms"] | beside}
    for against in found["repeat"]["arms"]:
        for row in rows_of(there, against):
            gained = "{labelled_cases} labels, {gain_dice:+.1f} ({gain_low:+.1f} to {gain_high:+.1f})".format(**row)
            print(f"repeat: {row['pretraining']} against {against}, {gained}")


def held_out(looks: list[dict[str, Any]]) -> list[str]:
    """Recall of image and text, and localisation."""
    recalls = [" / ".join(f"{mean_of(looks, kind, k):.1%}" for k in ("1", "10")) for kind in ("image", "text")]
    return [*recalls, f"{mean_of(looks, 'plane_accuracy'):.1%}, {mean_of(looks, 'position_error'):.3f}"]


def mean_of(looks: list[dict[str, Any]], *path: str) -> float:
    """Mean over seeds of what a path of keys leads to."""
    return float(np.mean([reduce(getitem, path, look) for look in looks]))


def rows_of(found: dict[str, Any], against: str = "none") -> list[dict[str, Any]]:
    """Compare each arm with no pretraining or another one, paired over the test cases, at each number of labels."""
    base = found["arms"][against]["dice"]
    rows = []
    for (arm, results), (labels, fraction) in product(found["arms"].items(), LABELS.items()):
        own, scratch = results["dice"][str(labels)], base[str(labels)]
        seeds = [seed for seed in own if seed in scratch]
        if arm in {"none", against} or not seeds:
            continue
        first, second = (over_seeds([scores[seed] for seed in seeds]) for scores in (own, scratch))
        difference = paired_difference(first.cases, second.cases)
        rows.append(
            {
                "dataset": "hippocampus",
                "network": "vit",
                "label_fraction": fraction,
                "labelled_cases": labels,
                "pretraining": arm,
                "seeds": [int(seed) for seed in seeds],
                "scratch_dice": second.cases.mean(),
                "pretrained_dice": first.cases.mean(),
                "gain_dice": 100 * difference.mean,
                "gain_low": 100 * difference.low,
                "gain_high": 100 * difference.high,
                "gain_by_seed": [100 * (a - b) for a, b in zip(first.means, second.means, strict=True)],
                "test_cases": len(first.cases),
            }
        )
    return rows


def gain(found: dict[str, Any], arm: str, labels: int) -> str:
    """Mean Dice of an arm and, in points, its paired gain over no pretraining with interval and spread over seeds."""
    if arm == "none":
        scores = list(found["arms"][arm]["dice"][str(labels)].values())
        return f"{over_seeds(scores).cases.mean():.3f}" if scores else ""
    for row in found["rows"]:
        if (row["pretraining"], row["labelled_cases"]) == (arm, labels):
            each = ", ".join(f"{value:+.1f}" for value in row["gain_by_seed"])
            interval = "{gain_dice:+.1f} ({gain_low:+.1f} to {gain_high:+.1f})".format(**row)
            return f"{row['pretrained_dice']:.3f}, {interval}; seeds {each}"
    return ""


def learning_curve(folder: Path) -> list[dict[str, Any]]:
    """What a finished run's metrics say about held-out subjects."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if last_checkpoint(folder).exists() else []
    return [
        {
            "samples_seen": line["samples_seen"],
            **line["retrieval"]["recall"],
            "plane_accuracy": line["localisation"]["plane_accuracy"],
            "position_error": line["localisation"]["position_error"],
        }
        for line in lines
        if "retrieval" in line
    ]


def dice_of(folder: Path, labels: int) -> list[float] | None:
    """Mean Dice over classes of each test case."""
    path = folder.with_name(f"{folder.name}-labels{labels}") / "evaluation.json"
    if not path.exists():
        return None
    return [float(np.nanmean(list(case["dice"].values()))) for case in json.loads(path.read_text())["cases"]]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.command == "table":
        kept = arguments.out if arguments.out.is_file() else arguments.out / "results.json"
        found = collect(arguments.out) if arguments.out.is_dir() else json.loads(kept.read_text())
        found = json.loads(json.dumps(found))  # seeds and labels are text, whichever it was
        found["rows"] = rows_of(found)
        kept.write_text(json.dumps(found, indent=1) + "\n")
        print_tables(found)
        if "repeat" in found:
            print_repeat(found)
    else:
        run(
            arguments.out, arguments.data, arms=arguments.arms, seeds=arguments.seeds, workers=arguments.workers
        )  # fmt: skip


if __name__ == "__main__":
    main()
