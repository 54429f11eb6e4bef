import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.evaluation.classification import area_under_roc
from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.inference import Weights
from m3di.evaluation.scoring import ClassificationCase
from m3di.evaluation.summaries import summarise_classes
from m3di.report import Charts, Matrix, Page, Table, write_page
from m3di.report.pages.classes import class_sections, confident_errors, roc_points
from m3di.report.pages.evaluation import lead_of
from tests.report.pages.hostile import ALL, assert_harmless

WEIGHTS = Weights("runs/r", "vit", 0, "best", 10, "a" * 64)
GIVEN = {  # case: true class and probabilities
    "sure and right": (0, (0.9, 0.05, 0.05)),
    "sure and wrong": (0, (0.05, 0.9, 0.05)),
    "hardly wrong": (1, (0.4, 0.35, 0.25)),
    "right": (1, (0.2, 0.5, 0.3)),
    "third": (2, (0.1, 0.3, 0.6)),
}  # fmt: skip


def evaluation(classes=("a", "b", "c"), given=None, seeds=1):
    found = GIVEN if given is None else given
    cases = [ClassificationCase(name, f"of {name}", "set", target, row) for name, (target, row) in found.items()]
    return Evaluation(
        "table", "classification", dict(enumerate(classes)), ("balanced_accuracy",), (WEIGHTS,) * seeds,
        seeds, 1, 2.0, summarise_classes([cases] * seeds), (), (), "no subject or scan shared",
    )  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return evaluation()


def test_a_roc_curve_by_hand():
    x, y = roc_points(np.array([0.9, 0.8, 0.8, 0.1]), np.array([True, True, False, False]))
    assert (x, y) == ([0, 0, 0.5, 1], [0, 0.5, 1, 1]), "equal scores are one slanting step"


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_the_area_under_the_curve_is_the_auc_that_is_told(pairs):
    scores, truth = np.array([s for s, _ in pairs], float), np.array([t for _, t in pairs])
    if truth.all() or not truth.any():
        return
    x, y = roc_points(scores, truth)
    area = sum((b - a) * (p + q) / 2 for a, b, p, q in zip(x, x[1:], y, y[1:], strict=False))
    assert area == pytest.approx(area_under_roc(scores, truth))


def test_confident_errors_come_first(result):
    assert [case.case for case in confident_errors(result.cases)] == ["sure and wrong", "hardly wrong"]


def test_a_classification_has_confusion_curves_calibration_and_cases(result):
    sections = {section.title: section.blocks for section in class_sections(result, [])}
    assert list(sections) == ["Scores", "Confusion", "Ranking and calibration", "Every case"]
    (matrix,) = sections["Confusion"]
    assert isinstance(matrix, Matrix)
    assert [list(row) for row in matrix.counts] == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    charts, bins = sections["Ranking and calibration"]
    assert isinstance(charts, Charts)
    roc, reliability = charts.items
    assert [one.name for one in roc.series] == ["by chance", "a, AUC 0.5", "b, AUC 0.6667", "c, AUC 1"]
    assert sum(row[1] for row in bins.rows) == len(GIVEN)
    assert list(reliability.series[1].x) == [row[2] for row in bins.rows]
    assert list(reliability.series[1].y) == [row[3] for row in bins.rows]
    (table,) = sections["Every case"]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows][:2] == ["sure and wrong", "hardly wrong"]
    assert table.rows[0][:6] == ("sure and wrong", "of sure and wrong", "a", "b", "no", 0.05)
    assert table.columns[table.order.column] == "p(true class)"
    scores, rest = sections["Scores"]
    assert dict(scores.rows)["accuracy"].startswith("0.6")
    assert [row[:2] for row in rest.rows] == [("a", 2), ("b", 2), ("c", 1)]
    assert "5 test cases of 5 subjects" in lead_of(result)


def test_of_two_classes_the_second_is_drawn():
    given = {"x": (0, (0.7, 0.3)), "y": (1, (0.4, 0.6)), "z": (1, (0.8, 0.2))}
    sections = {s.title: s.blocks for s in class_sections(evaluation(("no", "yes"), given), [])}
    roc = sections["Ranking and calibration"][0].items[0]
    assert [one.name for one in roc.series] == ["by chance", "yes, AUC 0.5"]
    assert "yes is the positive class" in sections["Scores"][0].caption


def test_a_class_without_test_cases_is_no_reason_to_fail(tmp_path):
    given = {"x": (0, (0.7, 0.2, 0.1)), "y": (1, (0.4, 0.5, 0.1))}
    result = evaluation(given=given)
    page = Page("T", lead_of(result), class_sections(result, []))
    html = write_page(page, tmp_path / "p.html").read_text()
    assert "c, AUC" not in html


def test_one_subject_has_no_interval_and_seeds_have_a_spread():
    one = evaluation(given={"x": (0, (0.7, 0.2, 0.1))})
    assert "[" not in lead_of(one)
    several = class_sections(evaluation(seeds=2), [])
    assert "± 0" in dict(several[0].blocks[0].rows)["accuracy"]
    assert sum(map(sum, several[1].blocks[0].counts)) == 2 * len(GIVEN), "of all seeds together"


def test_hostile_class_and_case_names_are_harmless(tmp_path):
    given = {ALL: (0, (0.2, 0.8)), f"{ALL} too": (1, (0.2, 0.8))}
    sections = class_sections(evaluation((ALL, f"other {ALL}"), given), [])
    assert_harmless(write_page(Page(ALL, ALL, sections), tmp_path / "p.html").read_text(encoding="utf-8"))
