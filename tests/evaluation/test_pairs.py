"""Masks against masks: what the literal reference gives must come out of files in the layouts that people have."""

import json
import math
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from m3di.evaluation.pairs import evaluate_pairs, find_pairs
from m3di.evaluation.segmentation import METRICS
from m3di.events import ignore
from stores.errors import RefusedError
from tests.dicoms import write_series
from tests.phantoms import ras_affine
from tests.references import surface

SPACING = (1.5, 1.5, 4.0)
AFFINE = ras_affine(SPACING, (-20, -30, 40))
SHAPE = (12, 12, 5)
MR_GREYS = np.array([0, 63, 126, 189, 252], np.uint8)


def labels(seed, num_classes=1):
    """A label map in blocks, so that structures have an inside; some touch the edges."""
    blocks = np.random.default_rng(seed).integers(0, num_classes + 1, (4, 4, 5))
    return np.repeat(np.repeat(blocks, 3, axis=0), 3, axis=1).astype(np.uint8)


def shifted(array):
    moved = np.zeros_like(array)
    moved[1:, :, :] = array[:-1]
    return moved


def literal(prediction, reference, value, spacing_mm=SPACING):
    return surface.scores_of(prediction == value, reference == value, spacing_mm=spacing_mm, tolerance_mm=2.0)


def write_nifti(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def write_masks(folder, greys, *, name="mask_{:03d}.png", mode="L", backwards=False):
    """(i, j, k) grey values as one picture a slice: rows run along j."""
    folder.mkdir(parents=True, exist_ok=True)
    count = greys.shape[2]
    for k in range(count):
        number = count - k if backwards else k
        Image.fromarray(np.ascontiguousarray(greys[:, :, k].T)).convert(mode).save(folder / name.format(number))


def write_scan(folder, *, modality="CT"):
    """A series whose files' names run against space, and whose SliceThickness is a lie."""
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.int16)
    write_series(folder, array, affine=AFFINE, modality=modality)


def found(case):
    return {value: [getattr(scores, name) for name in METRICS] for value, scores in case.scores.items()}


@pytest.fixture
def sample(tmp_path):
    """The organisers' own example: `Ground` of black and white, `Segmentation` of another grey, `DICOM_anon`."""
    truth, guess = labels(1), shifted(labels(1))
    write_scan(tmp_path / "Data_3D/DICOM_anon")
    ground, drawn = tmp_path / "Data_3D/Ground", tmp_path / "Data_3D/Segmentation"
    write_masks(ground, truth * np.uint8(255), name="liver_GT_{:03d}.png", mode="1", backwards=True)
    write_masks(drawn, guess * np.uint8(63), name="results{:03d}.png", backwards=True)
    return ground, drawn, literal(guess, truth, 1)


def test_the_layout_of_the_organisers_sample_gives_the_literal_figures(sample):
    ground, drawn, expected = sample
    result = evaluate_pairs(drawn, ground, report=ignore)
    (case,) = result.cases
    assert (case.case, case.spacing_mm) == ("Data_3D", pytest.approx(SPACING))
    np.testing.assert_allclose(found(case)[1], expected)
    assert result.classes == {1: "liver"}


def test_positions_not_the_slice_thickness_say_how_far_slices_lie_apart(sample):
    """99 mm is what SliceThickness says; no distance comes near it."""
    ground, drawn, _ = sample
    scores = evaluate_pairs(drawn, ground, report=ignore).cases[0].scores[1]
    assert 0 < scores.mssd_mm < 30


@pytest.mark.skipif("M3DI_CHAOS_SAMPLE" not in os.environ, reason="set it to a checkout of CHAOS-evaluation")
def test_the_organisers_sample_gives_their_published_figures():
    data = Path(os.environ["M3DI_CHAOS_SAMPLE"]) / "Data_3D"
    scores = evaluate_pairs(data / "Segmentation", data / "Ground", report=ignore).cases[0].scores[1]
    assert round(scores.dice, 3) == 0.978
    assert round(scores.ravd_percent, 3) == 0.665
    assert round(scores.assd_mm, 3) == 0.734
    assert round(scores.mssd_mm, 3) == 14


@pytest.fixture
def tree(tmp_path):
    """A person in CT, one in MR with two sequences, and masks of all of them as a challenge's submission."""
    truth, guess = {}, {}
    for seed, (place, modality) in enumerate({"CT/1": "CT", "MR/2/T1DUAL": "MR", "MR/2/T2SPIR": "MR"}.items()):
        scan = tmp_path / "Train_Sets" / place
        images = ["DICOM_anon/InPhase", "DICOM_anon/OutPhase"] if "T1" in place else ["DICOM_anon"]
        for folder in images:
            write_scan(scan / folder, modality=modality)
        truth[place] = labels(seed, 1 if modality == "CT" else 4)
        guess[place] = shifted(truth[place])
        greys = MR_GREYS if modality == "MR" else np.array([0, 255], np.uint8)
        write_masks(scan / "Ground", greys[truth[place]], backwards=True)
        write_masks(tmp_path / "out" / place / "Results", greys[guess[place]], backwards=True)
    return tmp_path / "Train_Sets", tmp_path / "out", truth, guess


def test_a_challenge_tree_is_scored_series_by_series(tree):
    reference, prediction, truth, guess = tree
    result = evaluate_pairs(prediction, reference, report=ignore)
    assert result.refused == ()
    assert {case.case: case.subject for case in result.cases} == {
        "CT/1": "CT/1", "MR/2/T1DUAL": "MR/2", "MR/2/T2SPIR": "MR/2"
    }  # fmt: skip
    assert result.classes == {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
    for case in result.cases:
        for value, scores in found(case).items():
            np.testing.assert_allclose(scores, literal(guess[case.case], truth[case.case], value))


def test_masks_of_m3di_predict_are_scored_against_a_challenge_tree(tree, tmp_path):
    reference, _, truth, guess = tree
    ids = {"chaos_ct_1": "CT/1", "chaos_mr_2_t1dual_inphase": "MR/2/T1DUAL", "chaos_mr_2_t2spir": "MR/2/T2SPIR"}
    for name, place in ids.items():
        write_nifti(tmp_path / f"masks/{name}.nii.gz", guess[place])
    result = evaluate_pairs(tmp_path / "masks", reference, report=ignore)
    assert [(one.case, one.code) for one in result.refused] == [("chaos_mr_2_t1dual_outphase", "E_MISSING")]
    for case in result.cases:
        for value, scores in found(case).items():
            np.testing.assert_allclose(scores, literal(guess[ids[case.case]], truth[ids[case.case]], value))


def test_a_task_scores_its_structures_only(tree):
    reference, prediction, *_ = tree
    result = evaluate_pairs(prediction / "CT", reference / "CT", task="chaos", report=ignore)
    assert result.classes == {1: "liver"}
    with pytest.raises(RefusedError, match="E_CONFIG"):
        evaluate_pairs(prediction, reference, task="oasis-ad", report=ignore)


def test_nifti_files_are_paired_by_stem_and_scored_on_their_own_grid(tmp_path):
    expected = {}
    for name in ("a", "b"):
        truth, guess = labels(ord(name), 3), shifted(labels(ord(name), 3))
        write_nifti(tmp_path / f"truth/{name}.nii.gz", truth)
        write_nifti(tmp_path / f"guess/{name}.nii", guess)
        expected[name] = {value: literal(guess, truth, value) for value in (1, 2, 3)}
    result = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore)
    assert result.classes == {1: "1", 2: "2", 3: "3"}
    for case in result.cases:
        for value, scores in found(case).items():
            np.testing.assert_allclose(scores, expected[case.case][value])
    dice = [[expected[name][value][0] for value in (1, 2, 3)] for name in ("a", "b")]
    assert result.mean["2"]["dice"].mean == pytest.approx(np.mean(dice, axis=0)[1])
    assert result.mean["all"]["dice"].mean == pytest.approx(np.mean(dice))


def test_a_prediction_with_its_axes_turned_lies_on_the_same_grid(tmp_path):
    truth = labels(3, 2)
    write_nifti(tmp_path / "truth/a.nii.gz", truth)
    turned = AFFINE @ np.array([[0, -1, 0, SHAPE[0] - 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_nifti(tmp_path / "guess/a.nii.gz", np.ascontiguousarray(truth.transpose(1, 0, 2)[:, ::-1]), turned)
    (case,) = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore).cases
    assert [scores[0] for scores in found(case).values()] == [1, 1]


@pytest.mark.parametrize("problem", ["shape", "shift", "spacing"])
def test_another_grid_is_refused_and_both_files_are_named(tmp_path, problem):
    truth = labels(4)
    guess = truth[:-1] if problem == "shape" else truth
    affine = AFFINE.copy()
    if problem == "shift":
        affine[0, 3] += 1.0
    if problem == "spacing":
        affine[2, 2] = 4.5
    for name in ("good", "bad"):
        write_nifti(tmp_path / f"truth/{name}.nii.gz", truth)
    write_nifti(tmp_path / "guess/good.nii.gz", truth)
    write_nifti(tmp_path / "guess/bad.nii.gz", guess, affine)
    result = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore)
    assert [case.case for case in result.cases] == ["good"]
    (refused,) = result.refused
    assert (refused.case, refused.code) == ("bad", "E_LABEL_GEOMETRY")
    assert str(tmp_path / "guess/bad.nii.gz") in refused.message
    assert str(tmp_path / "truth/bad.nii.gz") in refused.message


def test_masks_in_other_number_than_slices_are_refused(sample):
    ground, drawn, _ = sample
    (drawn / "results001.png").unlink()
    with pytest.raises(RefusedError, match="4 masks for 5 slices") as refused:
        evaluate_pairs(drawn, ground, report=ignore)
    assert refused.value.code == "E_LABEL_GEOMETRY"
    assert str(ground) in refused.value.message


def test_what_has_no_other_half_is_named_and_the_rest_is_scored(tmp_path):
    for side, names in (("truth", "ab"), ("guess", "bc")):
        for name in names:
            write_nifti(tmp_path / f"{side}/{name}.nii.gz", labels(5))
    result = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore)
    assert [case.case for case in result.cases] == ["b"]
    assert [(one.case, one.code, one.message.split()[-1]) for one in result.refused] == [
        ("a", "E_MISSING", "prediction"), ("c", "E_MISSING", "reference")
    ]  # fmt: skip


def test_a_structure_that_was_missed_counts_and_one_that_nobody_has_does_not(tmp_path):
    truth = labels(6)
    empty = np.zeros_like(truth)
    write_nifti(tmp_path / "truth/missed.nii.gz", truth)
    write_nifti(tmp_path / "guess/missed.nii.gz", empty)
    write_nifti(tmp_path / "truth/right.nii.gz", truth)
    write_nifti(tmp_path / "guess/right.nii.gz", truth)
    write_nifti(tmp_path / "truth/nothing.nii.gz", empty)
    write_nifti(tmp_path / "guess/nothing.nii.gz", empty)
    result = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore)
    diagonal = math.hypot(*(n * step for n, step in zip(SHAPE, SPACING, strict=True)))
    assert result.mean["1"]["dice"].mean == 0.5
    assert result.mean["1"]["hd95_mm"].mean == pytest.approx(diagonal / 2)
    assert result.mean["all"]["ravd_percent"].mean == 50


def test_cases_of_one_subject_are_drawn_together(tmp_path):
    """Two scans of one person are one unit, which has no interval; a second person makes one."""
    for number, name in enumerate(("patient001_ed", "patient001_es", "patient002_ed")):
        write_nifti(tmp_path / f"truth/{name}.nii.gz", labels(number))
        write_nifti(tmp_path / f"guess/{name}.nii.gz", shifted(labels(number)))
        result = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore)
        assert math.isnan(result.mean["1"]["dice"].low) == (number < 2)
    assert [case.subject for case in result.cases] == ["patient001", "patient001", "patient002"]


def test_codes_of_a_challenge_are_read_as_its_classes(tmp_path):
    truth = labels(8, 7)
    codes = np.array([0, 500, 600, 420, 550, 205, 820, 850], np.int16)
    write_nifti(tmp_path / "truth/a.nii.gz", codes[truth])
    write_nifti(tmp_path / "guess/a.nii.gz", shifted(truth))
    result = evaluate_pairs(tmp_path / "guess", tmp_path / "truth", task="mmwhs", report=ignore)
    assert list(result.classes) == [1, 2, 3, 4, 6], "the paper's five structures"
    for value, scores in found(result.cases[0]).items():
        np.testing.assert_allclose(scores, literal(shifted(truth), truth, value))


def test_a_value_that_the_task_does_not_name_is_refused(tmp_path):
    write_nifti(tmp_path / "truth/a.nii.gz", labels(9, 5))
    write_nifti(tmp_path / "guess/a.nii.gz", labels(9, 5))
    with pytest.raises(RefusedError, match="holds the value 5, which the task does not name"):
        evaluate_pairs(tmp_path / "guess", tmp_path / "truth", task="oasis-seg", report=ignore)


def test_the_result_is_strict_json(tmp_path):
    for side in ("truth", "guess"):
        write_nifti(tmp_path / f"{side}/a.nii.gz", labels(10))
    shown = json.dumps(
        evaluate_pairs(tmp_path / "guess", tmp_path / "truth", report=ignore).to_dict(), allow_nan=False
    )
    assert json.loads(shown)["mean"]["1"]["dice"] == [1.0, None, None]


@pytest.mark.parametrize(
    "files, code",
    [
        (["truth/a.nii.gz"], "E_MISSING"),
        (["truth/a.nii.gz", "guess/b.nii.gz"], "E_MISSING"),
        (["truth/a.nii.gz", "guess/a.nii.gz", "guess/a.nii"], "E_DUPLICATE_ID"),
        (["truth/a.nii.gz", "guess/a/m.png"], "E_FORMAT"),
        (["truth/readme.txt", "guess/a.nii.gz"], "E_MISSING"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path, files, code):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(RefusedError) as refused:
        find_pairs(tmp_path / "guess", tmp_path / "truth")
    assert refused.value.code == code


def test_masks_without_their_scan_beside_them_are_refused(sample):
    """Nothing else says how large their pixels are."""
    ground, drawn, _ = sample
    (ground.parent / "DICOM_anon").rename(ground.parent / "elsewhere")
    with pytest.raises(RefusedError, match="no DICOM_anon beside it") as refused:
        evaluate_pairs(drawn, ground, report=ignore)
    assert refused.value.code == "E_MISSING"
