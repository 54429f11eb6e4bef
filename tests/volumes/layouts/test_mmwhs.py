import numpy as np
import pytest

from m3di.volumes.layouts import discover
from m3di.volumes.readers import read_label, read_volume
from stores.errors import CaseError
from tests.phantoms import ras_affine, write_scan
from tests.volumes.layouts import labels, touch

NAMES = (
    "ct_train/ct_train_1001_image.nii.gz",
    "ct_train/ct_train_1001_label.nii.gz",
    "ct_train/._ct_train_1001_image.nii.gz",
    "ct_test/ct_test_2001_image.nii.gz",
    "mr_train/mr_train_1001_image.nii.gz",
    "mr_train/mr_train_1001_label.nii.gz",
)
# value -> class, in the order of the challenge's list: LV, RV, LA, RA, myocardium, aorta, pulmonary artery
VALUES = {0: 0, 500: 1, 600: 2, 420: 3, 550: 4, 205: 5, 820: 6, 850: 7, 421: 3}


def test_images_pair_with_their_label_maps(tmp_path):
    cases = discover(touch(tmp_path, *NAMES))
    assert labels(cases) == {"ct_test_2001": None, "ct_train_1001": NAMES[1], "mr_train_1001": NAMES[5]}
    assert [case.modality for case in cases] == ["CT", "CT", "MR"]
    assert [case.subject for case in cases] == [case.id for case in cases]  # CT and MR are of different people
    assert {(case.dataset, case.body_part) for case in cases} == {("MM-WHS", "heart")}


def write_pair(root, stored):
    image = np.random.default_rng(0).normal(size=stored.shape).astype(np.float32)
    for name, array in (("image", image), ("label", stored)):
        write_scan(root / f"mr_train_1001_{name}.nii.gz", array, affine=ras_affine((0.9, 0.9, 1.4)))
    return root


def test_stored_values_become_classes(tmp_path):
    stored = np.random.default_rng(1).choice(list(VALUES), (6, 7, 8)).astype(np.int16)
    assert {*VALUES} == {*np.unique(stored)}
    (case,) = discover(write_pair(tmp_path, stored))
    label = read_label(case.label, like=read_volume(case.image, modality="MR").geometry)
    np.testing.assert_array_equal(label, np.vectorize(VALUES.get)(stored))
    assert case.label.names[5] == "myocardium of the left ventricle"
    assert sorted(case.label.names) == [1, 2, 3, 4, 5, 6, 7]


def test_another_value_is_refused(tmp_path):
    stored = np.full((6, 7, 8), 500, np.int16)
    stored[0, 0, :2] = 501
    (case,) = discover(write_pair(tmp_path, stored))
    with pytest.raises(CaseError, match="501 in 2 voxels") as refused:
        read_label(case.label, like=read_volume(case.image, modality="MR").geometry)
    assert refused.value.code == "E_LABEL_VALUES"
