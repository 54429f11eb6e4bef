"""The scripts in `examples/`, as a user runs them, on phantoms."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3di.config import load_config
from m3di.events import ignore
from m3di.training.pretrain import pretrain
from tests.phantoms import head, ras_affine, write_scan
from tests.stores.stores import build

ROOT = Path(__file__).parent.parent
SPACING = (1.5, 1.25, 2.0)


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("examples") / "store", 8)


@pytest.mark.slow
def test_own_loop_learns_to_tell_two_kinds_of_scans_apart(store, tmp_path):
    settings = ["pretrain.max_steps=1", "pretrain.slices_per_volume=3", "encoder.options.hidden_size=24"]
    pretrain(store, tmp_path / "run", load_config(preset="smoke", settings=settings), device="cpu", report=ignore)
    rows = []
    for number in range(6):
        image, _ = head(seed=number)
        kind = ("plain", "inverse")[number % 2]
        scan = image if kind == "plain" else image.max() - image
        rows.append((write_scan(tmp_path / f"{number}.nii.gz", scan, affine=ras_affine(SPACING)).name, kind))
    with (tmp_path / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "class"), *rows])
    lines = run("own_loop.py", tmp_path / "run", tmp_path / "scans.csv", "--steps", 40)
    losses = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("step")]
    assert losses[-1] < 0.5 * losses[0]
    assert lines[-1] == "6 of 6 training scans told right"


def test_own_encoder_is_checked_pretrained_and_loaded_again(store, tmp_path):
    settings = ("max_steps=2", "batch_size=2", "slices_per_volume=3")
    pairs = [part for setting in settings for part in ("--set", f"pretrain.{setting}")]
    lines = run("own_encoder.py", store, tmp_path / "run", *pairs, "--set", "psat.width=16", "--set",
                "objective.dense_weight=0")  # fmt: skip
    assert any(line.startswith("step") for line in lines)
    assert lines[-1].startswith("4 volumes seen; PatchEncoder with ")
