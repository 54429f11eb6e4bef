import json

import pytest

from tests.cli.running import events, m3di
from tests.evaluation.test_pairs import labels, shifted, write_nifti


@pytest.fixture
def masks(tmp_path):
    for name in ("a", "b"):
        write_nifti(tmp_path / f"truth/{name}.nii.gz", labels(ord(name)))
        write_nifti(tmp_path / f"guess/{name}.nii.gz", shifted(labels(ord(name))))
    return tmp_path


def evaluate(folder, *options):
    return m3di("evaluate", "--prediction", "guess", "--reference", "truth", *options, cwd=folder)


def test_masks_are_scored_without_a_run(masks):
    done = evaluate(masks)
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout for word in ("Dice", "HD95 mm", "ASSD mm", "MSSD mm", "RAVD %", "surface Dice 2 mm")
    )
    assert "nobody looked for leaks" in done.stdout, "no metric without a word on leaks"


def test_the_tolerance_is_a_setting(masks):
    done = evaluate(masks, "--json", "--set", "evaluate.tolerance_mm=0.5")
    result = events(done)[-1]
    assert (result["schema"], result["tolerance_mm"]) == ("m3di.evaluate/1", 0.5)
    assert result["cases"][0]["scores"]["1"].keys() >= {"dice", "surface_dice", "hd95_mm", "assd_mm"}


def test_some_refused_cases_are_exit_code_3(masks):
    write_nifti(masks / "guess/b.nii.gz", labels(1)[:, :-1])
    done = evaluate(masks, "--json")
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [(one["case"], one["code"]) for one in result["refused"]] == [("b", "E_LABEL_GEOMETRY")]


@pytest.mark.parametrize(
    "options",
    [[], ["--run", "r", "--prediction", "guess", "--reference", "truth"], ["--prediction", "guess"],
     ["--run", "r", "--task", "msd"]],
)  # fmt: skip
def test_a_run_and_masks_exclude_one_another(masks, options):
    done = m3di("evaluate", *options, cwd=masks)
    assert done.returncode == 2
    assert done.stderr.startswith("error: E_CONFIG ")
