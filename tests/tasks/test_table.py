import numpy as np
import pytest

from m3di.tasks.registry import load_task
from m3di.volumes.layouts import discover
from stores.errors import RefusedError
from tests.tasks import trees


def write(root, *lines):
    root.mkdir(parents=True, exist_ok=True)
    (root / "scans.csv").write_text("\n".join(lines) + "\n")
    return root


def classes_of(task):
    return {case.id: task.classes[task.targets[case.id]] for case in task.cases}


def test_the_class_column_is_found_by_its_name(tmp_path):
    root = write(tmp_path, "image,age,diagnosis,note", "a.nii.gz,7,DCM,x", "b.nii.gz,9,NOR,", "c.nii.gz,9,,z")
    task = load_task("table", root)
    assert classes_of(task) == {"a": "DCM", "b": "NOR"}, "a line without a class has no part"
    assert task.classes == {0: "DCM", 1: "NOR"}


def test_the_only_column_that_is_left_is_the_class(tmp_path):
    root = write(tmp_path, "file,subject,Grade", "a.nii.gz,p1,10", "b.nii.gz,p1,2", "c.nii.gz,p2,10")
    task = load_task("table", root / "scans.csv")
    assert task.classes == {0: "2", 1: "10"}, "numbers by size"
    assert [case.subject for case in task.cases] == ["p1", "p1", "p2"]


def test_a_column_can_be_named(tmp_path):
    root = write(tmp_path, "image,diagnosis,Sex", "a.nii.gz,X,F", "b.nii.gz,Y,M", "c.nii.gz,Y,M")
    assert load_task("table", root, class_column="Sex").classes == {0: "F", 1: "M"}
    with pytest.raises(RefusedError, match="E_CONFIG no column 'side' has a value") as refused:
        load_task("table", root, class_column="side")
    assert "diagnosis" in refused.value.hint


def test_several_columns_that_might_be_meant_are_told(tmp_path):
    root = write(tmp_path, "image,left,right", "a.nii.gz,1,2", "b.nii.gz,1,2")
    with pytest.raises(RefusedError, match=r"E_CONFIG which column holds the class.*left, right"):
        load_task("table", root)


def test_numbers_that_are_no_classes_are_refused(tmp_path):
    root = write(tmp_path, "image,age", *(f"s{n}.nii.gz,{n + 0.5}" for n in range(4)))
    with pytest.raises(RefusedError, match="E_LABEL_VALUES column 'age' has 4 different values in 4 lines"):
        load_task("table", root)


def test_one_class_is_no_task(tmp_path):
    root = write(tmp_path, "image,class", "a.nii.gz,X", "b.nii.gz,X")
    with pytest.raises(RefusedError, match=r"E_LABEL_VALUES all 2 scans in .* are of class 'X'"):
        load_task("table", root)


def test_two_tables_of_scans_are_refused_and_others_left_alone(tmp_path):
    root = write(tmp_path, "image,class", "a.nii.gz,X", "b.nii.gz,Y")
    (root / "clinical.csv").write_text("person,age\np,7\n")
    assert len(load_task("table", root).cases) == 2
    (root / "more.tsv").write_text("image\tclass\na.nii.gz\tX\n")
    with pytest.raises(RefusedError, match=r"E_MANIFEST .* several tables of scans: more\.tsv, scans\.csv"):
        load_task("table", root)


def test_the_tables_own_split_is_read(tmp_path):
    lines = ["a.nii.gz,p1,X,train", "b.nii.gz,p2,Y,Valid", "c.nii.gz,p3,X,test", "d.nii.gz,p1,Y,train"]
    task = load_task("table", write(tmp_path, "image,subject,class,split", *lines))
    assert {subject: share for (_, subject), share in task.own_split.items()} == {
        "p1": "train", "p2": "validation", "p3": "test",
    }  # fmt: skip


@pytest.mark.parametrize(
    "last, message",
    [("p1,Y,test", "subject p1 in two shares"), ("p4,Y,", "gives d the share ''"), ("p4,Y,later", "share 'later'")],
)
def test_an_own_split_that_is_none_is_refused(tmp_path, last, message):
    root = write(tmp_path, "image,subject,class,split", "a.nii.gz,p1,X,train", f"d.nii.gz,{last}")
    with pytest.raises(RefusedError, match=f"E_SPLIT .*{message}"):
        load_task("table", root)


def test_medmnist_brings_classes_names_and_split(tmp_path):
    path = trees.write_medmnist(tmp_path)
    for data in (path, path.parent):
        task = load_task("table", data)
        assert task.classes == {0: "normal", 1: "hyperplasia"}
        shares = list(task.own_split.values())
        assert [shares.count(share) for share in ("train", "validation", "test")] == [12, 4, 4]
        with np.load(path) as arrays:
            expected = arrays["train_labels"][:, 0].tolist()
        assert [task.targets[case.id] for case in task.cases if "_train_" in case.id] == expected


def test_participants_of_a_bids_set_have_classes_too(tmp_path):
    for name in ("01", "02"):
        trees.write_scan(
            tmp_path / f"sub-{name}/anat/sub-{name}_T1w.nii.gz", trees.phantom(0, 1)[0], affine=trees.AFFINE
        )
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tcontrol\nsub-02\tpatient\n")
    assert len(discover(tmp_path, layout="bids")) == 2
    assert load_task("table", tmp_path).classes == {0: "control", 1: "patient"}
