"""`m3di finetune` on every task, on trees in the exact layouts, at a size that a few seconds are enough for."""

import json
import signal

import numpy as np
import pytest

from cli.app import run
from m3di.training import checkpoint
from m3di.training.runtime import read_metrics
from tests.cli.running import events, m3di
from tests.cli.test_restart import interrupted
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI
SMALL = [
    "--preset", "smoke", "--set", "volumes.cube_size=16", "--set", "finetune.evaluate_every=2",
    "--set", "finetune.checkpoint_every=2", "--max-steps", "4", "--device", "cpu",
]  # fmt: skip
LIVER = ["background", "liver"]
HEART = ["background", "left ventricle", "right ventricle", "left atrium", "right atrium", "ascending aorta"]


def finetune(*arguments):
    return run(["finetune", *(str(argument) for argument in arguments), *SMALL, "--json"])


def facts_of(run_folder):
    return checkpoint.load(run_folder, kind="finetune").facts


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, write, classes",
    [
        ("chaos", trees.write_chaos, LIVER),
        ("chaos-mr", trees.write_chaos, ["background", "liver", "right kidney", "left kidney", "spleen"]),
        ("mmwhs", trees.write_mmwhs, HEART),
        ("mmwhs-both", trees.write_mmwhs, HEART),
        ("oasis-seg", trees.write_oasis1, None),
        ("oasis-ad", trees.write_oasis2, ["NC", "AD"]),
        ("msd", trees.write_msd, ["background", "front", "back"]),
        ("msd", trees.write_nnunet, ["background", "front", "back"]),
        ("labelled", trees.write_labelled, ["background", "label 3", "label 6"]),
        ("table", trees.write_table, ["a", "b", "c"]),
        ("table", trees.write_medmnist, ["normal", "hyperplasia"]),
    ],
)
def test_every_task_trains_from_its_layout(tmp_path, capsys, task, write, classes):
    data = tmp_path / "data"
    write(data)
    split = ["--set", "split.ratios=[0.5, 0.25, 0.25]", "--set", "split.seed=3"]
    code = finetune("--task", task, "--data", data, "--run", tmp_path / "run", *split)
    out, err = capsys.readouterr()
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["schema"], summary["samples_seen"]) == ("m3di.finetune/1", 8)
    assert 0 <= summary["best"] <= 1
    facts = facts_of(tmp_path / "run")
    assert classes is None or list(facts["classes"].values()) == classes
    assert all(facts["split"][share] for share in ("train", "validation", "test"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert np.isfinite(losses).all()
    assert facts["recipe"]["ct_window_hu"] == ([-160, 240] if task == "chaos" else facts["recipe"]["ct_window_hu"])


@pytest.mark.slow
def test_a_users_window_wins_over_the_tasks(tmp_path, capsys):
    trees.write_chaos(tmp_path / "data", mr=0)
    code = finetune(
        "--task", "chaos", "--data", tmp_path / "data", "--run", tmp_path / "run",
        "--set", "volumes.ct_window_hu=[-1000, 1000]",
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    assert facts_of(tmp_path / "run")["recipe"]["ct_window_hu"] == [-1000, 1000]


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path, capsys):
    assert finetune("--task", "tabel", "--data", tmp_path) == 2
    err = capsys.readouterr().err
    assert "error: E_CONFIG no task is called 'tabel'" in err
    assert "hint: did you mean 'table'?" in err


def test_the_data_of_a_variant_lies_in_its_sets_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M3DI_DATA", str(tmp_path))
    assert finetune("--task", "chaos-mr", "--run", tmp_path / "run") == 2
    assert f"{tmp_path / 'chaos'} does not exist" in capsys.readouterr().err
    monkeypatch.delenv("M3DI_DATA")
    assert finetune("--task", "chaos-mr", "--run", tmp_path / "run") == 2
    assert "set M3DI_DATA" in capsys.readouterr().err


@pytest.mark.slow
def test_scans_that_cannot_be_used_are_told_by_the_exit_code(tmp_path, capsys):
    trees.write_msd(tmp_path / "data")
    (tmp_path / "data/imagesTr/head_002.nii.gz").write_bytes(b"")
    assert finetune("--task", "msd", "--data", tmp_path / "data", "--run", tmp_path / "run") == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_quarantined"] == 1


@pytest.mark.slow
def test_repeats_go_into_folders_of_one_run(tmp_path, capsys):
    trees.write_msd(tmp_path / "data")
    code = finetune("--task", "msd", "--data", tmp_path / "data", "--run", tmp_path / "run", "--repeats", 2)
    out, err = capsys.readouterr()
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert [one["run"] for one in summary["repeats"]] == [str(tmp_path / f"run/repeat-{n}") for n in (0, 1)]
    assert [facts_of(tmp_path / f"run/repeat-{n}")["config"]["seed"] for n in (0, 1)] == [0, 1]
    assert (tmp_path / ".data").is_dir(), "the cubes are beside the run, once"


@pytest.mark.slow
@pytest.mark.parametrize("task, write", [("msd", trees.write_msd), ("table", trees.write_table)])
def test_a_killed_or_stopped_run_goes_on_to_the_same_weights(tmp_path, task, write):
    write(tmp_path / "data")
    common = [
        "finetune", "--task", task, "--data", tmp_path / "data", *SMALL, "--max-steps", 6,
        "--set", "finetune.log_every=3", "--set", "finetune.freeze_fraction=0.5",
    ]  # fmt: skip
    straight = m3di(*common, "--run", "straight", "--json", cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    num_cases = sum(event.get("event") == "committed" for event in events(straight))
    assert num_cases, "the cubes are built: from now on only checkpoints are counted"
    broken = [*common, "--run", "broken"]
    assert interrupted(broken, cwd=tmp_path, after=1) == -signal.SIGKILL
    assert interrupted([*broken, "--resume"], cwd=tmp_path, after=1, number=signal.SIGTERM) in (143, 0)
    done = m3di(*broken, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (checkpoint.load(tmp_path / name, kind="finetune") for name in ("straight", "broken"))
    assert first.facts == second.facts, "weights and optimiser state are bit-equal, by their digests"
    assert read_metrics(tmp_path / "straight/metrics.jsonl") == read_metrics(tmp_path / "broken/metrics.jsonl")
