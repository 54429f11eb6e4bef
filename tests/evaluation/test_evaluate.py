import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from m3di.config import load_config
from m3di.evaluation.against import compare
from m3di.evaluation.evaluate import evaluate
from m3di.evaluation.inference import load_predictor
from m3di.evaluation.pairs import evaluate_pairs
from m3di.evaluation.predict import predict_scans
from m3di.evaluation.scoring import score_segmentation
from m3di.evaluation.seen import look_for_leaks
from m3di.evaluation.segmentation import METRICS
from m3di.events import ignore
from m3di.tasks.registry import load_task
from m3di.training import checkpoint
from m3di.volumes.layouts import discover
from m3di.volumes.readers import content_digest
from stores import Store
from stores.errors import RefusedError
from tests.evaluation.runs import LEARNT, train
from tests.evaluation.stand_ins import Constant, predictor
from tests.phantoms import write_msd_dataset
from tests.stores import stores
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Runs on eight heads: two seeds of one split."""
    root = tmp_path_factory.mktemp("heads")
    data = write_msd_dataset(root / "data", 8)
    for seed in (0, 1):
        train("msd", data, root / f"runs/repeats/repeat-{seed}", *LEARNT, seed=seed)
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    data = trees.write_table(root / "data")
    for seed in (0, 1):
        train("table", data, root / f"runs/repeats/repeat-{seed}", seed=seed)
    return root


def test_scores_on_the_scanners_grid_are_those_of_the_masks_that_predict_writes(heads, tmp_path):
    run, data = heads / "runs/repeats/repeat-0", heads / "data"
    result = evaluate(run, device="cpu", report=ignore)
    scans = [case.image for case in discover(data) if case.id in {one.case for one in result.cases}]
    predict_scans(scans, [run], tmp_path / "masks", device="cpu", report=ignore)
    reference = tmp_path / "labels"
    reference.mkdir()
    for scan in scans:
        (reference / scan.name).symlink_to(data / "labelsTr" / scan.name)
    pairs = evaluate_pairs(tmp_path / "masks", reference, report=ignore)
    for one in pairs.cases:
        mine = next(case for case in result.cases if case.case == one.case)
        for value, scores in one.scores.items():
            for metric in METRICS:
                np.testing.assert_allclose(getattr(mine.scanner[value], metric), getattr(scores, metric), rtol=1e-6)
    assert len(pairs.cases) == len(result.cases) == 2
    assert min(case.dice[2] for case in result.cases) > 0.2, "there was something to score"


def test_scores_are_on_both_grids_with_intervals_and_kept_with_the_run(heads):
    run = heads / "runs/repeats/repeat-0"
    result = evaluate(run, device="cpu", report=ignore)
    kept = json.loads((run / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert kept["schema"] == "m3di.evaluate/1"
    assert kept["classes"] == {"1": "front", "2": "back"}
    assert kept["mean"].keys() == {"scanner", "cube"}
    for grid in ("scanner", "cube"):
        assert kept["mean"][grid].keys() == {"front", "back", "all"}
        for metric in METRICS:
            mean, low, high = kept["mean"][grid]["front"][metric]
            values = [case[grid]["1"][metric] for case in kept["cases"]]
            np.testing.assert_allclose(mean, np.mean(values))
            assert low <= mean <= high
    case = kept["cases"][0]
    assert case["dice"] == {value: scores["dice"] for value, scores in case["scanner"].items()}
    assert case["spacing_mm"] == pytest.approx([1.5, 1.25, 2.0])
    assert case["voxel_mm"] == pytest.approx(36 / 16)
    facts = checkpoint.load(run, kind="finetune").facts
    assert kept["runs"][0]["part"] == "best"
    assert kept["runs"][0]["sha256"] == facts["files"]["best.safetensors"]
    assert kept["leaks"] == result.leaks
    assert result.leaks.startswith("no subject or scan shared among 2 test, 4 training, 2 validation, 0 pretraining")


def test_seeds_are_averaged_over_each_case_first(heads):
    repeats = heads / "runs/repeats"
    together = evaluate(repeats, device="cpu", report=ignore)
    alone = [json.loads((repeats / f"repeat-{n}/evaluation.json").read_text()) for n in (0, 1)]
    assert (together.num_seeds, together.num_folds, len(together.runs)) == (2, 1, 2)
    kept = json.loads((repeats / "evaluation.json").read_text())
    for number, case in enumerate(kept["cases"]):
        for value in ("1", "2"):
            expected = np.mean([one["cases"][number]["scanner"][value]["assd_mm"] for one in alone])
            assert case["scanner"][value]["assd_mm"] == pytest.approx(expected)
    found = kept["seeds"]["scanner"]["all"]["dice"]
    means = [one["mean"]["scanner"]["all"]["dice"][0] for one in alone]
    assert found["means"] == pytest.approx(means)
    assert found["spread"] == pytest.approx(np.std(means, ddof=1))
    assert kept["mean"]["scanner"]["all"]["dice"][0] == pytest.approx(np.mean(means))
    assert alone[0]["seeds"] == {}


def test_folds_are_put_together_and_other_splits_are_refused(heads, tmp_path):
    data = heads / "data"
    folds = [
        train("msd", data, tmp_path / f"fold-{n}", "split.folds=4", f"split.fold={n}", "finetune.max_steps=1")
        for n in (0, 1)
    ]
    result = evaluate(folds, device="cpu", report=ignore)
    tested = [set(checkpoint.load(fold, kind="finetune").facts["split"]["test"]) for fold in folds]
    assert (result.num_seeds, result.num_folds) == (1, 2)
    assert {case.case for case in result.cases} == tested[0] | tested[1]
    assert len(result.cases) == 4
    other = train("msd", data, tmp_path / "other", "split.folds=2", "split.fold=1", "finetune.max_steps=1")
    for runs in ([*folds, other], [folds[0], folds[0], folds[1]]):
        with pytest.raises(RefusedError) as error:
            evaluate(runs, device="cpu", report=ignore)
        assert error.value.code == "E_CONFIG"


def test_a_case_that_cannot_be_read_is_refused_and_the_others_are_scored(heads, tmp_path):
    run = heads / "runs/repeats/repeat-1"
    first, second = checkpoint.load(run, kind="finetune").facts["split"]["test"]
    data = write_msd_dataset(tmp_path / "data", 8)
    label = nibabel.load(data / f"labelsTr/{first}.nii.gz")
    values = np.asarray(label.dataobj).astype(np.uint8)
    values[0, 0, 0] = 77
    nibabel.save(nibabel.Nifti1Image(values, label.affine), data / f"labelsTr/{first}.nii.gz")
    result = evaluate(run, data=data, device="cpu", report=ignore)
    assert [(one.case, one.code) for one in result.refused] == [(first, "E_LABEL_VALUES")]
    assert "77" in result.refused[0].message
    assert [case.case for case in result.cases] == [second]
    (data / f"imagesTr/{second}.nii.gz").write_bytes(b"not NIfTI")
    with pytest.raises(RefusedError, match="no test case could be scored"):
        evaluate(run, data=data, device="cpu", report=ignore)


def test_voxels_that_nobody_labelled_do_not_count(tmp_path):
    data = trees.write_nnunet(tmp_path / "data")
    task = load_task("msd", data)
    assert task.ignored == {3}
    everything = predictor(Constant(0.0, 9.0, 0.0), cube_size=16, classes=dict(task.classes))
    case = task.cases[0]
    facts = {"ignored_values": [3], "background_values": []}
    scores = score_segmentation(case, everything, facts, tolerance_mm=2.0)
    label = np.asarray(nibabel.load(case.label.path).dataobj)
    known, front = (label != 3).sum(), (label == 1).sum()
    assert (label == 3).any()
    assert front > 0
    assert scores.dice[1] == pytest.approx(2 * front / (known + front))
    counted = score_segmentation(case, everything, {"background_values": [3]}, tolerance_mm=2.0)
    assert counted.dice[1] == pytest.approx(2 * front / (label.size + front))
    assert scores.cube[1].dice > counted.cube[1].dice


def test_classification_has_calibration_confusion_and_intervals(classes):
    result = evaluate(classes / "runs/repeats", device="cpu", report=ignore)
    kept = json.loads((classes / "runs/repeats/evaluation.json").read_text())
    assert kept["classes"] == {"0": "a", "1": "b", "2": "c"}
    alone = [json.loads((classes / f"runs/repeats/repeat-{n}/evaluation.json").read_text()) for n in (0, 1)]
    for number, case in enumerate(kept["cases"]):
        expected = np.mean([one["cases"][number]["probabilities"] for one in alone], axis=0)
        np.testing.assert_allclose(case["probabilities"], expected)
        assert sum(case["probabilities"]) == pytest.approx(1)
    targets = [case["target"] for case in kept["cases"]]
    hits = [[int(np.argmax(c["probabilities"]) == c["target"]) for c in one["cases"]] for one in alone]
    mean, low, high = kept["mean"]["accuracy"]
    assert mean == pytest.approx(np.mean(hits))
    assert low <= mean <= high
    assert kept["seeds"]["accuracy"]["means"] == pytest.approx([np.mean(one) for one in hits])
    confusion = np.array(kept["scores"]["confusion"])
    assert confusion.sum(axis=1).tolist() == [2 * targets.count(value) for value in range(3)], "of both seeds"
    assert sum(one["num_cases"] for one in kept["scores"]["bins"]) == 2 * len(targets)
    assert result.leaks.startswith("no subject or scan shared")


def test_runs_are_compared_case_by_case(heads, classes):
    first, second = (evaluate(heads / f"runs/repeats/repeat-{n}", device="cpu", report=ignore) for n in (0, 1))
    found = compare(first, second)
    assert found.num_cases == 2
    for grid in ("scanner", "cube"):
        expected = np.mean(
            [
                getattr(one, grid)[1].assd_mm - getattr(other, grid)[1].assd_mm
                for one, other in zip(first.cases, second.cases, strict=True)
            ]
        )
        assert found.differences[f"{grid}/front"]["assd_mm"].mean == pytest.approx(expected)
    same = compare(first, first)
    assert same.differences["scanner/all"]["dice"].mean == 0
    assert same.differences["scanner/all"]["dice"].p_value == 1

    one, other = (evaluate(classes / f"runs/repeats/repeat-{n}", device="cpu", report=ignore) for n in (0, 1))
    both = compare(one, other)
    brier = [
        np.mean([((np.eye(3)[case.target] - case.probabilities) ** 2).sum() for case in result.cases])
        for result in (one, other)
    ]
    assert both.differences["all"]["brier"].mean == pytest.approx(brier[0] - brier[1])
    assert both.of_a_set["auc"].mean == pytest.approx(one.summary.mean["auc"].mean - other.summary.mean["auc"].mean)
    with pytest.raises(RefusedError, match="different tasks"):
        compare(first, one)


def test_the_best_weights_are_used_and_told(heads, tmp_path):
    run = train("msd", heads / "data", tmp_path / "run", "finetune.keep=last", "finetune.ema_decay=0")
    last = load_predictor(checkpoint.load(run, kind="finetune"), device="cpu")
    assert (last.weights[0].part, last.weights[0].samples_seen) == ("network", 4)
    best = load_predictor(checkpoint.load(heads / "runs/repeats/repeat-0", kind="finetune"), device="cpu")
    assert best.weights[0].part == "best"
    assert "best in validation" in str(best.weights[0])
    assert best.edges_mm == pytest.approx({"smallest": 36.0, "median": 36.0, "largest": 36.0})


def test_checkpoints_of_before_are_evaluated_all_the_same(heads):
    """Runs of the first version say nothing of weights, fields, people or the kind of task."""
    run = heads / "runs/repeats/repeat-0"
    found = checkpoint.load(run, kind="finetune")
    new = {"people", "validated_on", "edges_mm", "pretrained_people", "pretraining_store", "pretraining_known",
           "ignored_values", "background_values", "metrics", "task_kind", "class_column"}  # fmt: skip
    assert new <= found.facts.keys()
    early = replace(found, facts={name: value for name, value in found.facts.items() if name not in new})
    assert load_predictor(early, device="cpu").edges_mm == {}
    task = load_task("msd", heads / "data")
    tested = [case for case in task.cases if case.id in found.facts["split"]["test"]]
    report = look_for_leaks(early, tested, task.cases)
    assert report.line.startswith("no subject or scan shared among 2 test, 4 training, 0 pretraining scans")


def test_a_runs_test_scans_are_compared_with_all_that_it_learnt_from(tmp_path):
    cases = discover(write_msd_dataset(tmp_path / "data", 4))
    digests = {case.id: content_digest(case.image) for case in cases}
    first, second, third, fourth = (case.id for case in cases)
    cases[3] = replace(cases[3], subject=cases[1].subject)
    facts = {
        "trained_on": {second: digests[second], third: digests[third]},
        "pretrained_on": {"another-name": digests[first], second: digests[second]},
    }
    report = look_for_leaks(checkpoint.Checkpoint(tmp_path, facts), [cases[0], cases[3]], cases)
    assert [(leak.test, leak.seen, leak.group, leak.kind) for leak in report.leaks] == [
        (first, "another-name", "pretraining", "duplicate"),
        (fourth, second, "training", "subject"),
    ]
    assert "subject of 2 pretraining scans" in report.line
    clean = look_for_leaks(checkpoint.Checkpoint(tmp_path, {**facts, "pretrained_on": {}}), [cases[0]], cases)
    assert clean.leaks == ()
    assert clean.line.startswith(
        "no subject or scan shared among 1 test, 2 training, 0 pretraining scans; not known:"
    )


def test_people_that_checkpoints_name_are_compared(tmp_path):
    cases = discover(write_msd_dataset(tmp_path / "data", 2))
    one, other = cases
    facts = {
        "trained_on": {"x": "1" * 64},
        "people": {"x": [one.dataset, one.subject]},
        "validated_on": {"y": content_digest(other.image)},
        "pretrained_on": {"z": "2" * 64},
        "pretrained_people": {"z": [other.dataset, other.subject]},
        "pretraining_store": str(tmp_path / "gone"),
    }
    report = look_for_leaks(checkpoint.Checkpoint(tmp_path, facts), cases, cases)
    assert sorted((leak.test, leak.group, leak.kind) for leak in report.leaks) == [
        (one.id, "training", "subject"),
        (other.id, "pretraining", "subject"),
        (other.id, "validation", "duplicate"),
    ]


def test_near_duplicates_are_found_by_the_rows_of_the_pretraining_store(tmp_path):
    """A test scan that pretraining held out is in its store; another file there looks the same."""
    cases = discover(write_msd_dataset(tmp_path / "data", 2))
    digests = [content_digest(cases[0].image), "3" * 64, content_digest(cases[1].image)]
    with Store.create_or_open(tmp_path / "store", stores.RECIPE) as store:
        for name, digest, seed in zip(("v0", "v1", "v2"), digests, (1, 1, 2), strict=True):
            one = stores.record(name, source_digest=digest)
            one = store.commit_volume(one, stores.chunks(seed, layout=store.volumes.layout))
            captions = stores.captions_of(one)
            store.commit_captions(stores.CAPTIONER, name, captions)
            rows = stores.rows_of(one, seed)
            store.commit_rows(stores.TEACHER, one, rows, captions_digest=captions.digest)
        store.commit_current(teacher=stores.TEACHER, captioner=stores.CAPTIONER)
    facts = {"trained_on": {}, "pretrained_on": {"v1": "3" * 64}, "pretraining_store": str(tmp_path / "store")}
    report = look_for_leaks(checkpoint.Checkpoint(tmp_path, facts), cases, cases)
    assert [(leak.test, leak.seen, leak.kind) for leak in report.leaks] == [(cases[0].id, "v1", "near-duplicate")]
    assert report.leaks[0].cosine == pytest.approx(1)
    gone = look_for_leaks(checkpoint.Checkpoint(tmp_path, {**facts, "pretraining_store": "gone"}), cases, cases)
    assert "near-duplicate of 2 test, 1 pretraining scans" in gone.line
    (tmp_path / "empty").mkdir()
    none = look_for_leaks(
        checkpoint.Checkpoint(tmp_path, {**facts, "pretraining_store": str(tmp_path / "empty")}), cases, cases
    )
    assert none.leaks == ()


def test_weights_of_unknown_origin_are_told_in_the_line(tmp_path):
    cases = discover(write_msd_dataset(tmp_path / "data", 2))
    facts = {
        "trained_on": {}, "pretrained_on": {}, "pretraining_known": False,
        "init": {"kind": "file", "path": "encoder.safetensors"},
    }  # fmt: skip
    report = look_for_leaks(checkpoint.Checkpoint(tmp_path, facts), cases[:1], cases)
    assert "not known: what encoder.safetensors was pretrained on" in report.line


def test_a_config_of_predictions_is_validated():
    config = load_config(settings=["predict.format=dicom-seg", "predict.uncertainty=flips"])
    assert (config.predict.format, config.predict.uncertainty) == ("dicom-seg", "flips")
    with pytest.raises(RefusedError, match=r"predict\.overlap"):
        load_config(settings=["predict.overlap=1"])
