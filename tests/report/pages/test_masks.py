import math

from m3di.evaluation.pairs import PairScores, PairsEvaluation, summarise
from m3di.evaluation.results import Refusal
from m3di.evaluation.segmentation import MaskScores
from m3di.report import write_page
from m3di.report.pages.masks import pairs_page
from tests.report.pages.hostile import ALL, assert_harmless
from tests.report.test_write import Outline

NOTHING = MaskScores(*[math.nan] * 6)


def scores(dice):
    return MaskScores(dice, dice, 3.0, 1.0, 9.0, 20.0)


def pairs(*, name="liver"):
    cases = tuple(
        PairScores(case, "one person", (1.0, 1.0, 1.0), found)
        for case, found in {
            "good": {1: scores(0.9), 2: scores(0.8)},
            "bad": {1: scores(0.1), 2: NOTHING},
            "none": {1: NOTHING, 2: NOTHING},
            name: {1: scores(0.5), 2: scores(0.7)},
        }.items()
    )
    classes = {1: name, 2: "spleen"}
    return PairsEvaluation(
        classes, cases, summarise(cases, classes), (Refusal(name, "E_MISSING", name),), 2.0, "nobody looked"
    )  # fmt: skip


def test_masks_against_masks_come_worst_first_and_say_that_nobody_looked_for_leaks(tmp_path):
    page = pairs_page(pairs(), prediction="guess", reference="truth")
    assert [section.title for section in page.sections] == ["Scores by class", "Every case", "Refused cases"]
    notice, means = page.sections[0].blocks
    assert (notice.text, notice.tone) == ("nobody looked", "doubt")
    assert [row[0] for row in means.rows] == ["liver", "spleen", "mean of the classes"]
    table, note = page.sections[1].blocks
    assert [row[0] for row in table.rows] == ["bad", "liver", "good", "none"]
    assert table.columns[:5] == ("case", "subject", "Dice", "Dice, liver", "Dice, spleen")
    assert table.rows[1][2:5] == (0.6, 0.5, 0.7)
    assert math.isnan(table.rows[0][4])
    assert note.text.startswith("–:")
    outline = Outline(write_page(page, tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "ascending" in [head.get("aria-sort") for head in outline.all("th")]


def test_hostile_names_are_harmless(tmp_path):
    page = pairs_page(pairs(name=ALL), prediction=ALL, reference=ALL)
    assert_harmless(write_page(page, tmp_path / "p.html").read_text(encoding="utf-8"))
