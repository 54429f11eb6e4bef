import numpy as np
import pytest

from m3di.volumes.layouts import discover, survey
from m3di.volumes.readers import read_volume
from tests.phantoms import head, write_scan


def write_npz(path, **more):
    """Two training volumes and one for validation, with classes."""
    random = np.random.default_rng(0)
    arrays = {
        "train_images": random.integers(0, 255, (2, 4, 4, 4), np.uint8),
        "train_labels": np.array([[1], [0]], np.uint8),
        "val_images": random.integers(0, 255, (1, 4, 4, 4), np.uint8),
        "val_labels": np.array([[1]], np.uint8),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def test_each_volume_is_a_case_with_its_class_and_split(tmp_path):
    cases = discover(write_npz(tmp_path / "adrenalmnist3d_64.npz"))
    assert [(case.id, dict(case.attributes)) for case in cases] == [
        ("adrenalmnist3d_64_train_0000", {"split": "train", "diagnosis": "1"}),
        ("adrenalmnist3d_64_train_0001", {"split": "train", "diagnosis": "0"}),
        ("adrenalmnist3d_64_val_0000", {"split": "val", "diagnosis": "1"}),
    ]
    assert len({case.subject for case in cases}) == 3
    assert {(case.dataset, case.body_part) for case in cases} == {("adrenalmnist3d_64", "adrenal")}


def test_a_member_is_read_from_its_array(tmp_path):
    path = write_npz(tmp_path / "organmnist3d.npz")
    case = discover(path)[1]
    with np.load(path) as arrays:
        np.testing.assert_array_equal(
            read_volume(case.image, modality="unknown", member=case.member).data, arrays["train_images"][1]
        )
    assert case.body_part == "abdomen"


def test_a_folder_may_hold_several_files_and_notes(tmp_path):
    write_npz(tmp_path / "organmnist3d.npz")
    write_npz(tmp_path / "vesselmnist3d.npz")
    (tmp_path / "README.md").write_text("from medmnist.com")
    assert len(discover(tmp_path)) == 6
    write_scan(tmp_path / "scan.nii.gz", head()[0], affine=np.eye(4))
    assert survey([tmp_path])[0].layout == "folder"


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 28, 28, 3)])
def test_pictures_are_no_volumes(tmp_path, shape):
    cases = discover(write_npz(tmp_path / "pathmnist.npz", train_images=np.ones(shape, np.uint8)))
    assert {case.attributes["split"] for case in cases} == {"val"}


@pytest.mark.parametrize("classes", [np.zeros((3, 1), np.uint8), np.zeros((2, 14), np.uint8)])
def test_classes_that_are_not_one_a_volume_are_left_out(tmp_path, classes):
    cases = discover(write_npz(tmp_path / "a.npz", train_labels=classes))
    assert [dict(case.attributes) for case in cases[:2]] == [{"split": "train"}] * 2
