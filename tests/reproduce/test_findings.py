"""Tables from cells made by hand, with numbers worked out by hand."""

import math
from dataclasses import replace

from m3di.reproduce.cells import Grid
from m3di.reproduce.findings import findings_of
from m3di.reproduce.formats import to_csv, to_json, to_latex, to_markdown
from m3di.reproduce.literal import LITERAL
from m3di.reproduce.programme import Comparison, Table
from m3di.reproduce.rows import rows_of
from tests.reproduce.made import CLASSES, HEARTS, TWO, classified, grid, hearts, pretrained, segmented

ONE_SEED = replace(HEARTS, seeds=(0,))


def rows(table, records):
    return [row.to_dict() for row in rows_of(grid(table), table, records)]


def test_a_row_holds_means_over_cases_and_seeds_and_the_paired_gain_in_points():
    (row,) = rows(TWO, hearts())
    assert (row["dataset"], row["network"], row["label_fraction"], row["seeds"]) == ("acdc", "vit", 0.2, [0, 1])
    assert row["test_cases"] == 3, "two seeds on three cases are three cases"
    assert (row["scratch_dice"], row["pretrained_dice"]) == (0.65, 0.68)
    assert (row["gain_dice"], row["gain_low"], row["gain_high"]) == (3.0, 3.0, 3.0), "each case gains 3 points"
    assert row["p_value"] == 0.25, "of 2^2 sign patterns of three cases one is as far from 0"
    assert row["scratch_dice_spread"] == round(0.1 / math.sqrt(2), 6), "seeds at 0.6 and 0.7"
    myocardium = row["classes"]["Myocardium"]
    assert (myocardium["scratch_dice"], myocardium["pretrained_dice"], myocardium["gain_dice"]) == (0.65, 0.68, 3.0)
    assert (myocardium["scratch_dice_low"], myocardium["scratch_dice_high"]) == (0.55, 0.75)
    assert row["retrieval"]["image_recall_at_10"] == 0.6, "0.5 and 0.7"


def test_a_seed_that_one_side_lacks_counts_for_neither():
    records = hearts()
    del records["acdc-vit-20pct-main-seed1"]
    (row,) = rows(TWO, records)
    assert (row["seeds"], row["scratch_dice"], row["pretrained_dice"]) == ([0], 0.6, 0.62)
    assert row["gain_dice"] == 2.0


def test_one_side_alone_is_shown_without_a_gain():
    records = {name: one for name, one in hearts().items() if "main" not in name}
    (row,) = rows(TWO, records)
    assert (row["scratch_dice"], row["pretrained_dice"], row["gain_dice"]) == (0.65, None, None)
    assert rows(TWO, {}) == []


def test_a_structure_that_a_case_lacks_is_left_out_of_its_mean():
    scratch, main = (
        segmented("acdc-vit-20pct-scratch-seed0", 0.5, 0.7),
        segmented("acdc-vit-20pct-main-seed0", 0.5, 0.7),
    )
    main.result["cases"][0]["dice"]["label 1"] = None
    main.result["cases"][0]["dice"]["label 2"] = 0.9
    (row,) = rows(Table("t", "T", "methods", (ONE_SEED,)), {one.name: one for one in (scratch, main)})
    assert row["pretrained_dice"] == 0.7, "(0.9 + 0.5) / 2 and 0.7"
    right, left = (row["classes"][name] for name in ("RV", "LV"))
    assert (right["pretrained_dice"], right["gain_dice"]) == (0.7, 0.0), "of the other case"
    assert (right["test_cases"], left["test_cases"]) == (2, 2)


def test_accuracy_and_auc_are_paired_too():
    table = Table("table2", "Classification", "methods", (CLASSES,))
    scratch = classified("acdc-diagnosis-vit-100pct-scratch-seed0", (0, 0.4), (1, 0.4), (1, 0.6), (0, 0.6))
    main = classified("acdc-diagnosis-vit-100pct-main-seed0", (0, 0.1), (1, 0.9), (1, 0.6), (0, 0.7))
    (row,) = rows(table, {one.name: one for one in (scratch, main)})
    assert (row["scratch_accuracy"], row["pretrained_accuracy"], row["gain_accuracy"]) == (0.5, 0.75, 25.0)
    assert (row["scratch_auc"], row["pretrained_auc"], row["gain_auc"]) == (0.5, 0.75, 25.0), "2 and 3 of 4 pairs"
    assert row["gain_low"] <= 25 <= row["gain_high"]
    assert row["gain_auc_low"] <= 25 <= row["gain_auc_high"]


def test_recall_of_each_class_and_balanced_accuracy_show_what_accuracy_hides():
    table = Table("table2", "Classification", "methods", (CLASSES,))
    scratch = classified("acdc-diagnosis-vit-100pct-scratch-seed0", (0, 0.1), (0, 0.2), (0, 0.3), (1, 0.4))
    main = classified("acdc-diagnosis-vit-100pct-main-seed0", (0, 0.1), (0, 0.6), (0, 0.7), (1, 0.9))
    (row,) = rows(table, {one.name: one for one in (scratch, main)})
    assert (row["scratch_accuracy"], row["pretrained_accuracy"]) == (0.75, 0.5)
    assert (row["scratch_balanced_accuracy"], row["pretrained_balanced_accuracy"]) == (0.5, 0.666667)
    assert row["gain_balanced_accuracy"] == 16.666667
    no, yes = (row["classes"][name] for name in ("no", "yes"))
    assert (no["scratch_recall"], no["pretrained_recall"], no["test_cases"]) == (1.0, 0.333333, 3)
    assert (yes["scratch_recall"], yes["pretrained_recall"], yes["test_cases"]) == (0.0, 1.0, 1)
    assert (no["gain_low"], no["gain_high"]) == (-100.0, 0.0)
    assert yes["gain_recall"] == 100.0
    assert math.isnan(yes["gain_low"]), "one case has no interval"


def test_an_ablation_holds_each_arm_against_scratch_with_its_retrieval():
    comparison = replace(ONE_SEED, arms=("scratch", "ex1", "ex3"))
    table = Table("table3", "PSAT", "arms", (comparison,))
    records = {
        one.name: one
        for one in (
            segmented("acdc-vit-20pct-scratch-seed0", 0.5, 0.6),
            segmented("acdc-vit-20pct-ex1-seed0", 0.4, 0.5),
            segmented("acdc-vit-20pct-infonce-seed0", 0.6, 0.7),
            pretrained("pretrain-common-vit-ex1-seed0", 0.3),
            pretrained("pretrain-common-vit-infonce-seed0", 0.9),
        )
    }
    found = findings_of(grid(table), table, records)
    assert [(row.arm, round(row.main.gain.mean, 6)) for row in found.rows] == [("ex1", -10.0), ("ex3", 10.0)]
    (retrieval,) = [block for block in found.blocks if block.title.startswith("Retrieval")]
    assert [line[:3] for line in retrieval.rows] == [
        ("Ex1: projection alone", "ViT", "30.0"),
        ("Ex3: QTrans and PSPE", "ViT", "90.0"),
    ]
    shape = found.blocks[0].rows
    assert [line[0] for line in shape] == ["ViT", "Ex1: projection alone", "", "Ex3: QTrans and PSPE", ""]


def test_an_ablation_holds_the_other_arms_against_the_main_recipe_too():
    comparison = replace(ONE_SEED, arms=("scratch", "main", "infonce", "dense"))
    table = Table("ablation", "Objectives", "arms", (comparison,))
    made = {"scratch": (0.5, 0.6), "main": (0.55, 0.65), "infonce": (0.45, 0.6)}
    records = {
        one.name: one for one in (segmented(f"acdc-vit-20pct-{arm}-seed0", *dice) for arm, dice in made.items())
    }
    found = findings_of(grid(table), table, records)
    (against,) = found.to_dict()["against_main"]
    assert (against["against"], against["pretraining"], against["gain_dice"]) == ("main", "infonce", -7.5)
    assert (against["gain_low"], against["gain_high"], against["test_cases"]) == (-10.0, -5.0, 2)
    (block,) = [block for block in found.blocks if block.title == "Against the main recipe"]
    assert block.rows[0][3:] == (
        "InfoNCE, pooled", "Dice", "1", "2", "60.0 [55.0, 65.0]", "52.5 [45.0, 60.0]", "-7.5 [-10.0, -5.0]", "0.5"
    )  # fmt: skip
    assert findings_of(grid(TWO), TWO, hearts()).to_dict()["against_main"] == []


def test_the_papers_numbers_stand_in_brackets_where_the_same_was_measured():
    table = Table("table1", "Segmentation", "methods", (Comparison("chaos", "nnformer", 1.0, (0,)),))
    names = "chaos-nnformer-100pct-scratch-seed0", "chaos-nnformer-100pct-main-seed0"
    records = {name: segmented(name, dice) for name, dice in zip(names, (0.9, 0.92), strict=True)}
    for one in records.values():
        one.result["cases"][0]["dice"] = {"liver": one.result["cases"][0]["dice"]["label 1"]}
        one.result["classes"][:] = ["liver"]
    found = findings_of(Grid(LITERAL, frozenset({"chaos", "3dseg8"})), table, records)
    assert found.blocks[0].rows == (
        ("nnFormer", "100%", "90.0 (91.9)"),
        ("+ pretraining", "100%", "92.0 (94.1)"),
        ("", "", "+2.0"),
    ), "one subject has no interval"


def test_the_line_about_leaks_and_what_is_missing_go_with_every_table():
    records = hearts()
    leaky = segmented("acdc-vit-20pct-main-seed1", 0.6, 0.7, 0.8, leaks="1 of the test scans shared")
    records[leaky.name] = leaky
    del records["store-common"]
    notes = findings_of(grid(TWO), TWO, records).notes
    assert "Leaks, ACDC (3 runs): no scan shared among 3 test, 7 training, 0 pretraining scans" in notes
    assert "Leaks, ACDC (1 runs): 1 of the test scans shared" in notes
    assert "Not finished: 1 of 7 cells, store-common the first." in notes
    nothing = findings_of(grid(TWO), TWO, {})
    assert any("Without ACDC" in note and "humanheart" in note for note in nothing.notes)


def test_markdown_is_as_written_here():
    text = to_markdown(findings_of(grid(TWO), TWO, hearts()), ["picture.png"])
    assert text.startswith(MARKDOWN)
    assert "| nnFormer + Med3DInsight | 89.3 | 89.1 |" in text
    assert text.endswith(
        "- Leaks, ACDC (4 runs): no scan shared among 3 test, 7 training, 0 pretraining scans\n"
    )  # fmt: skip


def test_latex_is_as_written_here():
    assert LATEX in to_latex(findings_of(grid(TWO), TWO, hearts()))


def test_csv_is_as_written_here():
    header, line, end = to_csv(findings_of(grid(TWO), TWO, hearts())).split("\n")
    assert header.startswith("dataset,network,label_fraction,pretraining,seeds,scratch_dice,scratch_dice_low,")
    assert line.startswith(
        "acdc,vit,0.2,main,0 1,0.65,0.55,0.75,0.070711,0.68,0.58,0.78,0.084853,3.0,3.0,3.0,0.25,3,"
    )
    assert header.count(",") == line.count(",")
    assert end == ""


def test_json_is_strict_and_the_same_cells_give_the_same_bytes():
    first, second = (to_json(findings_of(grid(TWO), TWO, hearts())) for _ in range(2))
    assert first == second
    assert "NaN" not in to_json(findings_of(grid(TWO), TWO, {**hearts(), "acdc-vit-20pct-main-seed1": segmented(
        "acdc-vit-20pct-main-seed1", None, 0.5, 0.5
    )}))  # fmt: skip


MARKDOWN = """\
# table1: Segmentation

Scale `small`, 7 of 7 cells.

![Segmentation](picture.png)

## Segmentation, percent

| Method | Labels | ACDC RV | ACDC Myocardium | ACDC LV | ACDC Avg. |
| --- | --- | --- | --- | --- | --- |
| ViT | 20% | 65.0 | 65.0 | 65.0 | 65.0 |
| + pretraining | 20% | 68.0 | 68.0 | 68.0 | 68.0 |
|  |  |  |  |  | +3.0 [+3.0, +3.0] |

## Comparisons

| Dataset | Network | Labels | Pretraining | Metric | Seeds | Test cases | Scratch | Pretrained | Difference | p |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| ACDC | ViT | 20% | main recipe | Dice | 2 | 3 | 65.0 [55.0, 75.0] | 68.0 [58.0, 78.0] | +3.0 [+3.0, +3.0] | 0.25 |

## By class

| Dataset | Network | Labels | Pretraining | Class | Metric | Test cases | Scratch | Pretrained | Difference | p |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| ACDC | ViT | 20% | main recipe | RV | Dice | 3 | 65.0 [55.0, 75.0] | 68.0 [58.0, 78.0] | +3.0 [+3.0, +3.0] | 0.25 |
"""
LATEX = r"""
\begin{table}
\centering
\caption{Segmentation: Segmentation, percent}
\begin{tabular}{llllll}
\hline
Method & Labels & ACDC RV & ACDC Myocardium & ACDC LV & ACDC Avg. \\
\hline
ViT & 20\% & 65.0 & 65.0 & 65.0 & 65.0 \\
+ pretraining & 20\% & 68.0 & 68.0 & 68.0 & 68.0 \\
 &  &  &  &  & +3.0 [+3.0, +3.0] \\
\hline
\end{tabular}
\end{table}
"""
