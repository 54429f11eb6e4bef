import pytest

from m3di.volumes.layouts import discover
from m3di.volumes.layouts.msd import label_names
from stores.errors import RefusedError
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan


def test_msd_lists_its_cases(tmp_path):
    root = write_msd_dataset(tmp_path / "Task", 2)
    first, second = discover(root)
    assert (first.id, second.subject) == ("head_000", "head_001")
    assert (first.modality, first.body_part, first.dataset) == ("MR", "head", "Phantom heads")
    assert first.image.is_file()
    assert first.label is not None
    assert first.label.path.is_file()
    assert first.label.names == {1: "front", 2: "back"}
    assert discover(root / "dataset.json") == [first, second]


def test_label_names_of_either_form_and_of_regions():
    assert label_names({"labels": {"background": 0, "liver": 1}}) == {1: "liver"}
    regions = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    assert label_names({"labels": regions}) == {1: "whole tumour", 2: "core", 3: "enhancing"}


def test_a_folder_pairs_scans_with_label_maps(tmp_path):
    image, label = head()
    for name in ("sub-01_T1w", "sub-02_ses-1_ct", "patient003_frame01"):
        write_scan(tmp_path / "deep" / f"{name}.nii.gz", image, affine=ras_affine((1, 1, 1)))
    write_scan(tmp_path / "deep" / "patient003_frame01_gt.nii.gz", label, affine=ras_affine((1, 1, 1)))
    cases = {case.id: case for case in discover(tmp_path)}
    assert set(cases) == {"deep_sub-01_T1w", "deep_sub-02_ses-1_ct", "deep_patient003_frame01"}
    assert cases["deep_sub-02_ses-1_ct"].subject == "sub-02"
    assert cases["deep_sub-02_ses-1_ct"].modality == "CT"
    assert cases["deep_patient003_frame01"].subject == "patient003"
    assert cases["deep_patient003_frame01"].label.path.name == "patient003_frame01_gt.nii.gz"
    assert cases["deep_sub-01_T1w"].label is None


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
