"""`m3di predict` and `m3di evaluate --run` as people type them."""

import json

import pytest

from cli.app import run
from tests.evaluation.runs import train
from tests.phantoms import write_msd_dataset
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads")
    data = write_msd_dataset(root / "data", 8)
    for seed in (0, 1):
        train("msd", data, root / f"runs/repeats/repeat-{seed}", seed=seed)
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    train("table", trees.write_table(root / "data"), root / "run")
    return root


def m3di(*arguments):
    return run([*(str(argument) for argument in arguments), "--device", "cpu"])


def test_masks_are_written_and_named(heads, tmp_path, capsys):
    code = m3di(
        "predict", heads / "data/imagesTr", "--run", heads / "runs/repeats/repeat-0", "--out", tmp_path, "--json"
    )
    assert code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = lines[-1]
    assert result["schema"] == "m3di.predict/1"
    assert len(result["masks"]) == len(result["predictions"]) == 8
    assert [line["volume"] for line in lines if line.get("event") == "committed"] == [
        note["case"] for note in result["predictions"]
    ]
    (used,) = [line["used"] for line in lines if line.get("event") == "weights"]
    assert "best in validation" in used


def test_some_refused_scans_are_exit_code_3(heads, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/good.nii.gz").write_bytes((heads / "data/imagesTr/head_000.nii.gz").read_bytes())
    (tmp_path / "scans/bad.nii.gz").write_bytes(b"")
    code = m3di("predict", tmp_path / "scans", "--run", heads / "runs/repeats", "--out", tmp_path / "out")
    out, err = capsys.readouterr()
    assert code == 3
    assert out.splitlines() == [str(tmp_path / "out/good.nii.gz")]
    assert "quarantined  volume bad  code E_EMPTY" in err


def test_a_classification_prints_and_writes_its_table(classes, tmp_path, capsys):
    code = m3di("predict", classes / "data/scan0.nii.gz", "--run", classes / "run", "--out", tmp_path / "t.tsv")
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "scan0" in out
    assert (tmp_path / "t.tsv").read_text().startswith("case\tclass\tprobability of a\t")


def test_settings_reach_the_prediction(heads, tmp_path, capsys):
    options = ["--run", heads / "runs/repeats", "--out", tmp_path / "out", "--set", "predict.uncertainty=runs"]
    assert m3di("predict", heads / "data/imagesTr/head_000.nii.gz", *options, "--set", "predict.overview=false") == 0
    assert (tmp_path / "out/uncertainty/head_000.nii.gz").is_file()
    assert not (tmp_path / "out/overview").exists()
    assert m3di("predict", heads / "data", *options, "--set", "predict.format=stl") == 2
    assert "predict.format" in capsys.readouterr().err


def test_a_run_is_evaluated_with_intervals_weights_and_the_line_on_leaks(heads, capsys):
    code = m3di("evaluate", "--run", heads / "runs/repeats")
    out, err = capsys.readouterr()
    assert code == 0, err
    for words in (
        "mean on the scanner's grid [95% interval]", "mean on the cube [95% interval]", "surface Dice 2 mm",
        "best in validation", "no subject or scan shared among", "2 runs: 2 seeds of 1 test sets",
    ):  # fmt: skip
        assert words in out
    for place in ("", "/repeat-0", "/repeat-1"):
        assert (heads / f"runs/repeats{place}/evaluation.json").is_file()


def test_worst_cases_come_first_and_not_all_without_verbose(heads, capsys):
    from cli.commands import scores  # noqa: PLC0415

    m3di("evaluate", "--run", heads / "runs/repeats/repeat-0", "--json")
    cases = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
    ordered = sorted(cases, key=lambda case: sum(case["dice"].values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "MAX_CASES", 1)
        m3di("evaluate", "--run", heads / "runs/repeats/repeat-0")
        short = capsys.readouterr().out
        m3di("evaluate", "--run", heads / "runs/repeats/repeat-0", "-v")
        full = capsys.readouterr().out
    assert f"the 1 worst of {len(cases)} test cases" in short
    assert ordered[0]["case"] in short.splitlines()[1]
    assert [line.split()[0] for line in full.splitlines()[1 : len(cases) + 1]] == [case["case"] for case in ordered]


def test_two_runs_are_compared(heads, classes, capsys):
    runs = heads / "runs/repeats"
    code = m3di("evaluate", "--run", runs / "repeat-0", "--against", runs / "repeat-1", "--json")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert (result["schema"], result["against"]["num_cases"]) == ("m3di.evaluate/1", len(result["cases"]))
    assert result["against"]["differences"]["scanner/all"]["dice"].keys() >= {"mean", "low", "high", "p_value"}
    assert m3di("evaluate", "--run", runs / "repeat-0", "--against", runs / "repeat-1") == 0
    assert "difference [95% interval]" in capsys.readouterr().out
    assert m3di("evaluate", "--run", runs / "repeat-0", "--against", classes / "run") == 2
    assert "error: E_CONFIG" in capsys.readouterr().err


def test_a_classification_is_evaluated(classes, capsys):
    code = m3di("evaluate", "--run", classes / "run")
    out, err = capsys.readouterr()
    assert code == 0, err
    for words in ("balanced accuracy", "AUC", "calibration error", "true class, predicted as", "mean confidence"):
        assert words in out
