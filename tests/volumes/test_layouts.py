import json

import pytest

from m3di.volumes.layouts import discover, label_names
from stores.errors import RefusedError
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan


def test_msd_lists_its_cases(tmp_path):
    root = write_msd_dataset(tmp_path / "Task", 2)
    first, second = discover(root)
    assert (first.id, second.subject) == ("head_000", "head_001")
    assert (first.modality, first.body_part, first.dataset) == ("MR", "head", "Phantom heads")
    assert first.image.is_file()
    assert first.label is not None
    assert first.label.is_file()
    assert discover(root / "dataset.json") == [first, second]
    assert label_names(root) == {0: "background", 1: "front", 2: "back"}


def test_nnunet_label_names(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    assert label_names(tmp_path) == {0: "background", 1: "liver"}


def test_a_folder_pairs_scans_with_label_maps(tmp_path):
    image, label = head()
    for name in ("sub-01_T1w", "sub-02_ses-1_ct", "patient003_frame01"):
        write_scan(tmp_path / "deep" / f"{name}.nii.gz", image, affine=ras_affine((1, 1, 1)))
    write_scan(tmp_path / "deep" / "patient003_frame01_gt.nii.gz", label, affine=ras_affine((1, 1, 1)))
    cases = {case.id: case for case in discover(tmp_path)}
    assert set(cases) == {"sub-01_T1w", "sub-02_ses-1_ct", "patient003_frame01"}
    assert cases["sub-02_ses-1_ct"].subject == "sub-02"
    assert cases["sub-02_ses-1_ct"].modality == "CT"
    assert cases["patient003_frame01"].subject == "patient003"
    assert cases["patient003_frame01"].label is not None
    assert cases["sub-01_T1w"].label is None


def test_one_scan_is_a_set_of_one(tmp_path):
    path = write_scan(tmp_path / "scan.nii.gz", head()[0], affine=ras_affine((1, 1, 1)))
    assert [case.id for case in discover(path)] == ["scan"]


@pytest.mark.parametrize(
    "manifest, code",
    [
        ('{"training": [{"image": "../other/a.nii.gz"}]}', "E_PATH"),
        ('{"training": [{"image": "/etc/passwd"}]}', "E_PATH"),
        ('{"training": [], "training": []}', "E_MANIFEST"),
        ('{"training": [{"label": "a.nii.gz"}]}', "E_MANIFEST"),
        ('{"modality": ["MRI"], "training": []}', "E_MANIFEST"),
        ("[1, 2]", "E_MANIFEST"),
        ("{", "E_MANIFEST"),
        ("[" * 100_000, "E_MANIFEST"),
        ('{"training": []}', "E_FORMAT"),
        ('{"training": ["./a.nii.gz", "b/a.nii.gz"]}', "E_DUPLICATE_ID"),
    ],
)
def test_bad_manifests_are_refused_by_code(tmp_path, manifest, code):
    (tmp_path / "dataset.json").write_text(manifest)
    with pytest.raises(RefusedError) as refused:
        discover(tmp_path)
    assert refused.value.code == code
    assert refused.value.hint


def test_missing_places_and_unknown_layouts_are_refused(tmp_path):
    with pytest.raises(RefusedError, match="E_MISSING"):
        discover(tmp_path / "nothing")
    with pytest.raises(RefusedError, match="E_FORMAT"):
        discover(tmp_path)
    with pytest.raises(RefusedError, match="E_CONFIG"):
        discover(tmp_path, layout="nonsense")
