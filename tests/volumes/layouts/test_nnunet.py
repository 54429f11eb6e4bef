import json

import numpy as np
import pytest

from m3di.volumes.layouts import discover, survey
from m3di.volumes.prepare import identify
from m3di.volumes.readers import read_label, read_volume
from stores.errors import CaseError
from stores.recipe import Recipe
from tests.phantoms import head, ras_affine, write_scan
from tests.volumes.layouts import ids, labels, touch


def write_raw(root, *names, channels=("CT",), ending=".nii.gz", **more):
    """A v2 raw dataset; scans without bytes."""
    root.mkdir(parents=True, exist_ok=True)
    manifest = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 2,
        "file_ending": ending,
        **more,
    }
    (root / "dataset.json").write_text(json.dumps(manifest))
    return touch(root, *names)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_one_channel_gives_a_case_called_as_its_label_map(tmp_path, ending):
    names = [f"{place}{ending}" for place in ("imagesTr/liver_1_0000", "labelsTr/liver_1", "imagesTs/liver_9_0000")]
    (case,) = discover(write_raw(tmp_path / "Dataset003_Liver", *names, ending=ending))
    assert (case.id, case.subject, case.dataset) == ("liver_1", "liver_1", "Dataset003_Liver")
    assert (case.modality, case.body_part) == ("CT", "liver")
    assert (case.image.name, case.label.path.name) == (f"liver_1_0000{ending}", f"liver_1{ending}")
    assert case.label.names == {1: "liver"}


def test_several_channels_are_cases_of_one_subject_with_one_label_map(tmp_path):
    names = [f"imagesTr/BRATS_{case}_{channel:04d}.nii.gz" for case in (1, 2) for channel in range(2)]
    root = write_raw(tmp_path, *names, "labelsTr/BRATS_1.nii.gz", "labelsTr/BRATS_2.nii.gz", channels=("FLAIR", "CT"))
    cases = discover(root)
    assert ids(cases) == ["BRATS_1_0000", "BRATS_1_0001", "BRATS_2_0000", "BRATS_2_0001"]
    assert [case.subject for case in cases] == ["BRATS_1", "BRATS_1", "BRATS_2", "BRATS_2"]
    assert [case.modality for case in cases] == ["MR", "CT", "MR", "CT"]
    assert [case.label.path.name for case in cases] == ["BRATS_1.nii.gz"] * 2 + ["BRATS_2.nii.gz"] * 2


def test_a_case_that_lacks_a_channel_keeps_its_id(tmp_path):
    root = write_raw(tmp_path, "imagesTr/a_0000.nii.gz", channels=("T1", "T2"))
    assert ids(discover(root)) == ["a_0000"]
    assert ids(discover(touch(root, "imagesTr/a_0001.nii.gz"))) == ["a_0000", "a_0001"]


def test_only_files_of_the_declared_ending_are_scans(tmp_path):
    names = ["imagesTr/a_0000.nrrd", "imagesTr/a_0000.nii.gz", "imagesTr/._a_0000.nrrd", "imagesTr/a_0000.json"]
    (case,) = discover(write_raw(tmp_path, *names, ending=".nrrd"))
    assert case.image.name == "a_0000.nrrd"


def test_the_first_version_lists_scans_without_their_channel(tmp_path):
    entry = {"image": "./imagesTr/la_003.nii.gz", "label": "./labelsTr/la_003.nii.gz"}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"name": "LeftAtrium", "modality": {"0": "MRI"}, "labels": {"1": "atrium"}, "training": [entry]})
    )
    touch(tmp_path, "imagesTr/la_003_0000.nii.gz", "labelsTr/la_003.nii.gz")
    (found,) = survey([tmp_path])
    assert found.layout == "nnunet"
    assert labels(found.cases) == {"la_003": "labelsTr/la_003.nii.gz"}
    assert (found.cases[0].modality, found.cases[0].body_part) == ("MR", "heart")


def test_four_digits_that_label_maps_share_are_no_channel(tmp_path):
    entry = {"image": "imagesTr/case_0007.nii.gz", "label": "labelsTr/case_0007.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    touch(tmp_path, *entry.values())
    (found,) = survey([tmp_path])
    assert found.layout == "msd"
    assert labels(found.cases) == {"case_0007": "labelsTr/case_0007.nii.gz"}


def test_the_raw_folder_of_several_datasets_is_read_whole(tmp_path):
    write_raw(tmp_path / "Dataset003_Liver", "imagesTr/a_0000.nii.gz")
    write_raw(tmp_path / "Dataset009_Spleen", "imagesTr/b_0000.nii.gz", channels=("MRI",))
    cases = discover(tmp_path)
    assert [(case.dataset, case.modality) for case in cases] == [
        ("Dataset003_Liver", "CT"),
        ("Dataset009_Spleen", "MR"),
    ]


def test_a_missing_label_map_concerns_its_case_alone(tmp_path):
    root = write_raw(tmp_path)
    for name in ("a", "b"):
        write_scan(root / f"imagesTr/{name}_0000.nii.gz", head()[0], affine=np.eye(4))
        write_scan(root / f"labelsTr/{name}.nii.gz", head()[1], affine=np.eye(4))
    (root / "labelsTr/a.nii.gz").unlink()
    first, second = discover(root)
    with pytest.raises(CaseError, match="E_MISSING"):
        identify(first, Recipe(labels=True))
    assert identify(second, Recipe(labels=True))


def test_without_any_label_map_the_cases_have_none(tmp_path):
    assert labels(discover(write_raw(tmp_path, "imagesTr/a_0000.nii.gz"))) == {"a": None}


def test_regions_and_the_ignore_label_keep_their_stored_values(tmp_path):
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    root = write_raw(tmp_path, labels=regions, regions_class_order=[1, 2])
    affine = ras_affine((1.5, 1.25, 2.0))
    image, label = head()
    label[0, 0, 0] = 3
    write_scan(root / "imagesTr/a_0000.nii.gz", image, affine=affine)
    write_scan(root / "labelsTr/a.nii.gz", label, affine=affine)
    (case,) = discover(root)
    assert case.label.names == {1: "whole", 2: "core"}
    np.testing.assert_array_equal(read_label(case.label, like=read_volume(case.image, modality="CT").geometry), label)


def test_each_channel_names_its_sequence(tmp_path):
    names = [f"imagesTr/a_{channel:04d}.nii.gz" for channel in range(3)]
    cases = discover(write_raw(tmp_path, *names, channels=("T2w", "FLAIR", "CT")))
    assert [case.sequence for case in cases] == ["T2w", "FLAIR", ""]
