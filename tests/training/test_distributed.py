"""Two processes on this machine are as one: same losses, gradients and weights, one stop, one end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m3di.training import checkpoint
from m3di.training.distributed import World, join
from m3di.training.runtime import read_metrics
from m3di.training.steps import compute_gradients
from tests.stores.stores import build
from tests.training.test_pretrain import SETTINGS, assert_same, batch, config, cut, forward, gradients, model_of

ROOT = Path(__file__).parents[2]
END_S = 30  # a run of which a process is gone ends within this


def started_by_torchrun(*arguments, cwd, num_processes=2, restarts=0):
    """Start a program as several processes; what they print goes to `cwd/output`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    launcher += ["--max-restarts", str(restarts), "--monitor-interval", "0.2"]
    # Everything after -- is the program's: torchrun would take --run for its own --run-path.
    with (cwd / "errors").open("w") as errors:
        return subprocess.Popen(
            [*launcher, "-m", "--", *(str(argument) for argument in arguments)], cwd=cwd, text=True,
            stdout=subprocess.PIPE, stderr=errors,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def pretraining(store, run, *settings):
    given = [part for setting in (*SETTINGS, "pretrain.ema_decay=0.5", *settings) for part in ("--set", setting)]
    return [
        "cli",
        "pretrain",
        "--preset",
        "smoke",
        "--store",
        store,
        "--run",
        run,
        "--device",
        "cpu",
        "--json",
        "--resume",
        *given,
    ]


def run_to_end(*arguments, cwd, num_processes):
    process = started_by_torchrun(*arguments, cwd=cwd, num_processes=num_processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (cwd / "errors").read_text()
    return [json.loads(line) for line in output.splitlines()]


def workers_of(process):
    """Process ids of torchrun's workers."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("distributed") / "store", 10)


def share_of_gradients(folder):
    """What one of two processes does: its half of the batch, in two parts."""
    torch.set_num_threads(1)
    with join() as world:
        model = model_of(config("objective.reconstruction_weight=0.5"))
        own = cut(batch(), 4)[2 * world.rank : 2 * world.rank + 2]
        outcome = compute_gradients(model, own, forward(model), model.objective, world)
        found = {"gradients": gradients(model), "losses": outcome.losses, "names": outcome.names}
        torch.save(found, folder / f"{world.rank}.pt")


@pytest.mark.slow
def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    model = model_of(config("objective.reconstruction_weight=0.5"))
    outcome = compute_gradients(model, [batch()], forward(model), model.objective, World())
    expected = gradients(model)
    process = started_by_torchrun("tests.training.test_distributed", tmp_path, cwd=tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(found["gradients"], expected)
        assert_same(found["losses"], outcome.losses)
        assert torch.equal(found["names"], outcome.names)


@pytest.mark.slow
def test_a_run_may_go_on_with_another_number_of_processes(store, tmp_path):
    constant = ["pretrain.schedule=constant", "pretrain.warmup_fraction=0"]
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    run_to_end(*pretraining(store, alone, *constant), cwd=tmp_path, num_processes=1)
    told = run_to_end(*pretraining(store, mixed, *constant, "pretrain.max_steps=2"), cwd=tmp_path, num_processes=2)
    assert [line["event"] for line in told if "event" in line].count("begin") == 1, "one process speaks"
    run_to_end(*pretraining(store, mixed, *constant, "pretrain.max_steps=3"), cwd=tmp_path, num_processes=1)
    run_to_end(*pretraining(store, mixed, *constant, "pretrain.accumulation=2"), cwd=tmp_path, num_processes=2)
    one, other = ([line for line in read_metrics(run / "metrics.jsonl") if "loss" in line] for run in (alone, mixed))
    assert [line["samples_seen"] for line in other] == [4, 8, 12, 16]
    for expected, found in zip(one, other, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    first, second = (checkpoint.load(run, kind="pretrain") for run in (alone, mixed))
    for part in ("encoder", "psat", "objective", "ema"):
        weights = second.weights(part)
        for name, weight in first.weights(part).items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "victim"), [(signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 0)])
def test_what_happens_to_one_process_ends_all_at_once(store, tmp_path, number, victim):
    process = started_by_torchrun(*pretraining(store, tmp_path / "run", "pretrain.max_steps=4000"), cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "checkpoint":
            break
    os.kill(workers_of(process)[victim], number)
    sent = time.monotonic()
    process.communicate(timeout=END_S)
    assert time.monotonic() - sent < END_S
    assert process.returncode != 0
    found = checkpoint.load(tmp_path / "run", kind="pretrain")
    logged = read_metrics(tmp_path / "run/metrics.jsonl")
    told = (tmp_path / "errors").read_text()
    if number == signal.SIGKILL:
        assert "E_WORKER" in told
    else:
        assert "stopped by SIGTERM" in told
        assert found.samples_seen == logged[-1]["samples_seen"], "all finished the step, and it is saved"
    length = f"pretrain.max_steps={found.samples_seen // 4 + 2}"
    ended = run_to_end(*pretraining(store, tmp_path / "run", length), cwd=tmp_path, num_processes=2)
    assert ended[-1]["samples_seen"] == found.samples_seen + 8


@pytest.mark.slow
def test_a_run_of_which_a_process_is_killed_goes_on_when_torchrun_restarts_it(store, tmp_path):
    process = started_by_torchrun(
        *pretraining(store, tmp_path / "run", "pretrain.max_steps=60"), cwd=tmp_path, restarts=1
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "checkpoint":
            break
    os.kill(workers_of(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    lines = [json.loads(line) for line in output.splitlines()]
    (begun,) = [line["samples_seen"] for line in lines if line.get("event") == "begin"]
    assert begun > 0, "it went on from a checkpoint"
    assert lines[-1]["samples_seen"] == 240


if __name__ == "__main__":
    share_of_gradients(Path(sys.argv[1]))
