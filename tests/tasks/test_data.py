import numpy as np
import pytest

from m3di.config import SplitConfig
from m3di.events import ignore
from m3di.tasks.data import open_task, prepare_task, split_task
from m3di.tasks.registry import load_task
from stores import Store
from stores.errors import RefusedError
from stores.recipe import Recipe
from tests.tasks import trees

RECIPE = Recipe(cube_size=16)
HALVES = SplitConfig(ratios=(0.5, 0.0, 0.5))


def opened(name, data, folder, **options):
    task = load_task(name, data, **options)
    path, refused = prepare_task(task, RECIPE, folder, workers=0, report=ignore)
    return task, open_task(task, Store(path)), refused


def test_other_structures_are_background_and_unlabelled_voxels_unknown(tmp_path):
    _, cubes, _ = opened("mmwhs-mr", trees.write_mmwhs(tmp_path / "heart", ct=0, mr=1), tmp_path)
    assert cubes.class_values == (0, 1, 2, 3, 4, 6)
    volumes, labels = cubes.read([0])
    assert volumes.shape == (1, 1, 16, 16, 16)
    assert labels.shape == (1, 16, 16, 16)
    stored = cubes.store.volumes.read("label", cubes.records[0].slot)
    expected = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 0, 6: 5, 7: 0}
    np.testing.assert_array_equal(labels[0], np.vectorize(expected.get)(stored))
    assert {5, 7} <= set(np.unique(stored))
    _, cubes, _ = opened("msd", trees.write_nnunet(tmp_path / "nnunet", 1), tmp_path)
    _, labels = cubes.read([0])
    stored = cubes.store.volumes.read("label", cubes.records[0].slot)
    np.testing.assert_array_equal(labels[0] == -1, stored == 3)
    assert (stored == 3).any()


def test_classes_without_names_are_the_values_that_there_are(tmp_path):
    _, cubes, _ = opened("labelled", trees.write_labelled(tmp_path / "some", 2), tmp_path)
    assert cubes.classes == {0: "background", 3: "label 3", 6: "label 6"}
    assert set(np.unique(cubes.read([0])[1])) == {0, 1, 2}


def test_a_value_that_the_task_does_not_name_is_refused(tmp_path):
    root = trees.write_nnunet(tmp_path / "nnunet", 1)
    manifest = root / "dataset.json"
    manifest.write_text(manifest.read_text().replace(', "ignore": 3', ""))
    _, cubes, _ = opened("msd", root, tmp_path)
    with pytest.raises(RefusedError, match="E_LABEL_VALUES the label map of head_000 has the value 3"):
        cubes.read([0])


def test_tasks_on_one_set_share_cubes_which_are_built_once(tmp_path):
    data = trees.write_mmwhs(tmp_path / "heart", ct=2, mr=0)
    events = []
    for name in ("mmwhs", "mmwhs-both", "mmwhs"):
        task = load_task(name, data)
        prepare_task(task, RECIPE, tmp_path / "cubes", workers=0, report=lambda event, **_: events.append(event))
    assert events.count("committed") == 2
    assert events.count("up to date") == 4
    assert len(list((tmp_path / "cubes").iterdir())) == 1


def test_targets_are_the_classes_of_the_volumes(tmp_path):
    task, cubes, _ = opened("table", trees.write_table(tmp_path / "some", count=5), tmp_path)
    volumes, targets = cubes.read([0, 4, 2])
    assert volumes.shape[0] == 3
    assert targets.tolist() == [0, 1, 2]
    assert task.classes == {0: "a", 1: "b", 2: "c"}


def test_a_scan_that_cannot_be_read_is_left_out_and_counted(tmp_path):
    data = trees.write_table(tmp_path / "some", count=5)
    (data / "scan1.nii.gz").write_bytes(b"")
    _, cubes, refused = opened("table", data, tmp_path)
    assert refused == 1
    assert [record.volume for record in cubes.records] == ["scan0", "scan2", "scan3", "scan4"]
    assert cubes.targets == (0, 2, 0, 1)


def test_scans_of_a_subject_stay_together(tmp_path):
    _, cubes, _ = opened("oasis-ad", trees.write_oasis2(tmp_path / "oasis"), tmp_path)
    task = load_task("oasis-ad", tmp_path / "oasis")
    for seed in range(8):
        for split in (SplitConfig((0.5, 0.0, 0.5), seed=seed), SplitConfig((0.5, 0.0, 0.5), seed, folds=3, fold=1)):
            try:
                found = split_task(cubes, task, split)
            except RefusedError as error:
                assert error.code == "E_SPLIT"  # a share without one of the classes
                continue
            subjects = [{cubes.records[i].subject for i in share} for share in (found.train, found.test)]
            assert not subjects[0] & subjects[1]
            assert len(found.train) + len(found.test) == len(cubes.records)


def test_label_fractions_are_nested_and_leave_the_other_shares_alone(tmp_path):
    task, cubes, _ = opened("table", trees.write_table(tmp_path / "some", count=24, classes=("a", "b")), tmp_path)
    whole, half, less = (split_task(cubes, task, HALVES, label_fraction=share) for share in (1.0, 0.5, 0.25))
    assert [len(one.train) for one in (whole, half, less)] == [12, 6, 3]
    assert set(less.train) < set(half.train) < set(whole.train)
    assert less.test == half.test == whole.test


def test_the_sets_own_split_counts_unless_it_is_set_aside(tmp_path):
    task, cubes, _ = opened("table", trees.write_medmnist(tmp_path / "some"), tmp_path)
    own = split_task(cubes, task, SplitConfig())
    names = [
        {cubes.records[i].volume.split("_")[1] for i in share} for share in (own.train, own.validation, own.test)
    ]
    assert names == [{"train"}, {"val"}, {"test"}]
    other = split_task(cubes, task, SplitConfig(own=False))
    assert (len(other.train), len(other.validation), len(other.test)) == (14, 2, 4)


def test_training_that_lacks_a_class_is_refused(tmp_path):
    def line(number):
        share = "train" if number < 4 else "test"
        return f"scan{number}.nii.gz", f"p{number}", "ab"[number > 2], share

    data = trees.write_table(tmp_path / "some", "image,subject,class,split", classes=("a", "b"), count=6, line=line)
    task, cubes, _ = opened("table", data, tmp_path)
    assert len(split_task(cubes, task, HALVES).train) == 4
    text = (data / "classes.csv").read_text().replace("p3,b,train", "p3,b,test")
    (data / "classes.csv").write_text(text)
    task = load_task("table", data)
    with pytest.raises(RefusedError, match="E_SPLIT class 'b' is in the test share, and no training subject has it"):
        split_task(cubes, task, HALVES)
    (data / "classes.csv").write_text(text.replace("b,test", "b,train").replace("a,train", "a,test"))
    with pytest.raises(RefusedError, match="E_SPLIT class 'a' is in the test share"):
        split_task(cubes, load_task("table", data), HALVES)
