"""Reports of real runs on phantoms: training, evaluation with pictures, comparison, repeats."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from m3di.evaluation.against import compare
from m3di.evaluation.evaluate import evaluate
from m3di.evaluation.members import members_of
from m3di.evaluation.results import Refusal
from m3di.events import ignore
from m3di.report.pages.evaluation import comparison_section, write_evaluation_report
from m3di.report.pages.training import Course, learning_curves, training_page, write_training_report
from m3di.report.pages.worst import CONFUSED, MADE_UP, MISSED, errors_of, worst_blocks
from stores.errors import RefusedError
from tests.evaluation.runs import LEARNT, train
from tests.phantoms import write_msd_dataset
from tests.report.pages.hostile import ALL, assert_harmless
from tests.report.test_write import Outline
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI
OFTEN = ("finetune.evaluate_every=10", "finetune.log_every=5", "finetune.max_steps=30")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two seeds on heads whose structures have hostile names."""
    root = tmp_path_factory.mktemp("heads")
    data = write_msd_dataset(root / "data", 8)
    manifest = json.loads((data / "dataset.json").read_text())
    manifest["labels"] = {"0": "background", "1": ALL, "2": "back"}
    (data / "dataset.json").write_text(json.dumps(manifest))
    for seed in (0, 1):
        train("msd", data, root / f"runs/repeats/repeat-{seed}", *LEARNT, *OFTEN, seed=seed)
    return root


@pytest.fixture(scope="module")
def evaluated(heads):
    run = heads / "runs/repeats/repeat-0"
    return run, evaluate(run, device="cpu", report=ignore)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    return train("table", trees.write_table(root / "data"), root / "runs/one")


def headings(html):
    return Outline(html).text["h2"]


def test_training_ends_with_a_report_that_says_what_is_not_known_yet(heads):
    run = heads / "runs/repeats/repeat-1"
    outline = Outline((run / "report.html").read_text(encoding="utf-8"))
    assert outline.text["h2"] == ["Test scores", "Training", "Settings"]
    assert "Nobody has looked for leaks yet." in outline.text["p"][-1]
    assert f"m3di evaluate --run {run}" in outline.text["span"]
    charts = [svg["aria-label"] for svg in outline.all("svg") if svg.get("role") == "img"]
    assert charts == [
        "Training loss (Dice and cross-entropy): loss over volumes seen", "Validation: Dice: Dice over volumes seen"
    ]  # fmt: skip
    losses, dice = [len(line["points"].split()) for line in outline.all("polyline")]
    assert (losses, dice) == (6, 3), "30 steps, each 5th and each 10th"
    assert "finetune.max_steps" in outline.text["th"]


def test_curves_leave_out_what_is_no_number_and_average_long_logs():
    log = [{"samples_seen": n, "loss": float(n)} for n in range(1, 1001)]
    log += [
        {"samples_seen": 5, "validation": {"dice": float("nan")}},
        {"samples_seen": 9, "validation": {"dice": 0.5}},
    ]
    course = Course("r", {"loss": "cross_entropy"}, log)
    loss, dice = learning_curves([course])
    (series,) = loss.series
    assert len(series.x) == 334
    assert (series.x[0], series.y[0], series.x[-1]) == (2.0, 2.0, 1000.0), "means of three steps"
    assert (list(dice.series[0].x), list(dice.series[0].y)) == ([9], [0.5])
    (nothing,) = learning_curves([Course("r", {}, [])])
    assert "No step was logged" in nothing.text


def test_a_finished_run_that_goes_on_keeps_its_report(heads, tmp_path):
    shutil.copytree(heads / "runs/repeats/repeat-1", tmp_path / "runs/again")
    report = tmp_path / "runs/again/report.html"
    report.write_text("an evaluation's")
    train("msd", heads / "data", tmp_path / "runs/again", *LEARNT, *OFTEN, seed=1, resume=True)
    assert report.read_text() == "an evaluation's"


def test_repeats_have_a_page_together_that_links_to_each(heads):
    repeats = heads / "runs/repeats"
    outline = Outline(write_training_report(repeats).read_text(encoding="utf-8"))
    assert {"repeat-0/report.html", "repeat-1/report.html"} <= {link["href"] for link in outline.all("a")}
    assert outline.text["li"].count("repeat-1") == 2, "a curve of the loss and one of validation"
    assert "The runs" in outline.text["caption"]


def test_an_evaluation_shows_leaks_before_scores_then_the_worst_cases(heads, evaluated):
    run, result = evaluated
    path = write_evaluation_report(result, run, pictures=1, device="cpu")
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    assert_harmless(html)
    assert html.index("no subject or scan shared") < html.index("On the scanner&#39;s grid: mean [95%")
    assert headings(html) == [
        "What was tested", "Scores by class", "Worst cases", "Every case", "Training", "Settings", "Numbers"
    ]  # fmt: skip
    outline = Outline(html)
    assert len(outline.all("img")) == 3
    assert [image["alt"].split(":")[0] for image in outline.all("img")] == [
        "reference",
        "prediction",
        "what is wrong",
    ]
    worst = min(result.cases, key=lambda case: np.nanmean(list(case.dice.values())))
    assert outline.text["h3"][0].startswith(f"{worst.case}: mean Dice {np.nanmean(list(worst.dice.values())):.3f}")
    assert re.search(r"<title>Evaluation: repeat-0</title>", html)


def test_no_pictures_can_be_asked_for_and_another_place(evaluated, tmp_path):
    run, result = evaluated
    before = (run / "report.html").read_bytes()
    html = write_evaluation_report(result, run, file=tmp_path / "e.html", pictures=0).read_text(encoding="utf-8")
    assert "Worst cases" not in headings(html)
    assert "<img" not in html
    assert (run / "report.html").read_bytes() == before


def test_leaks_and_refused_cases_have_their_sections(evaluated, tmp_path):
    run, result = evaluated
    leaky = replace(
        result, warnings=tuple(f"test scan {n} is {ALL}" for n in range(60)), leaks="60 shared",
        refused=(Refusal(ALL, "E_EMPTY", ALL),),
    )  # fmt: skip
    html = write_evaluation_report(leaky, run, file=tmp_path / "e.html", pictures=0).read_text(encoding="utf-8")
    assert_harmless(html)
    assert 'class="notice doubt"' in html
    assert {"Leaks", "Refused cases"} <= set(headings(html))
    assert "10 more are named in evaluation.json." in html


def test_a_comparison_is_a_section_with_the_other_runs_leak_line(heads, evaluated, tmp_path):
    run, result = evaluated
    other = evaluate(heads / "runs/repeats/repeat-1", device="cpu", report=ignore)
    comparison = compare(result, other)
    html = write_evaluation_report(
        result, run, file=tmp_path / "e.html", comparison=comparison, pictures=0
    ).read_text(encoding="utf-8")  # fmt: skip
    assert f"Against {comparison.second}" in headings(html)
    assert "Leak check of the other run:" in html
    found = comparison.differences["scanner/back"]["dice"]
    assert f"\np {found.p_value:.2g}" in html
    assert 'class="notice doubt"' not in html
    leaky = replace(comparison, warnings=("test scan a is of the same subject as b of training",))
    assert comparison_section(leaky, result).blocks[0].tone == "doubt"


def test_seeds_are_told_apart_from_the_interval(heads):
    repeats = heads / "runs/repeats"
    result = evaluate(repeats, device="cpu", report=ignore)
    html = write_evaluation_report(result, repeats, pictures=1, device="cpu").read_text(encoding="utf-8")
    assert "± is the standard deviation of seeds" in html
    assert "the mask of run 1" in html
    assert 'href="repeat-1/report.html"' in html
    several = write_evaluation_report(
        result, [repeats / "repeat-0", repeats / "repeat-1"], file=heads / "both.html", pictures=0
    ).read_text(encoding="utf-8")
    assert "<title>Evaluation: repeat-0, repeat-1</title>" in several
    assert "repeat-1/report.html" not in several


def test_wrong_voxels_are_told_apart():
    reference, prediction = np.array([[0, 1, 1, 2, 0]], np.uint8), np.array([[0, 1, 0, 1, 2]], np.uint8)
    assert errors_of(reference, prediction).tolist() == [[0, 0, MISSED, CONFUSED, MADE_UP]]


def test_the_picture_shows_the_slice_with_most_errors(heads, evaluated):
    run, result = evaluated
    legend, pictures = worst_blocks(result, members_of([run], None), count=1, device="cpu")
    assert [entry.name for entry in legend.key] == [ALL, "back", "missed", "made up", "another structure"]
    reference, prediction, wrong = pictures.items
    assert reference.caption.removeprefix("reference, ") == prediction.caption.removeprefix("prediction, ")
    assert not np.array_equal(reference.pixels, prediction.pixels)
    assert max(wrong.pixels.shape[:2]) == 320
    colours = {tuple(entry.colour) for entry in legend.key[:2]}
    assert colours & {tuple(pixel) for pixel in reference.pixels.reshape(-1, 3)}


def test_a_classification_shows_its_most_confident_errors(classes):
    result = evaluate(classes, device="cpu", report=ignore)
    html = write_evaluation_report(result, classes, pictures=2, device="cpu").read_text(encoding="utf-8")
    found = headings(html)
    assert found[:2] == ["What was tested", "Scores"]
    assert {"Most confident errors", "Confusion", "Ranking and calibration", "Every case"} <= set(found)
    num_wrong = sum(int(np.argmax(case.probabilities) != case.target) for case in result.cases)
    assert len(Outline(html).all("img")) == 3 * min(2, num_wrong)
    assert num_wrong or "was given to its own class" in html


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="E_WEIGHTS"):
        training_page(tmp_path)
