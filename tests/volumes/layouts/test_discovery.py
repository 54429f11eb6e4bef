import pytest

from m3di.volumes.cases import Case, require_unique_ids
from m3di.volumes.layouts import LAYOUTS, discover, survey
from stores.errors import RefusedError
from tests.malformed.datasets import DATASETS
from tests.volumes.layouts import ids, touch
from tests.volumes.layouts.test_medmnist import write_npz
from tests.volumes.layouts.test_mmwhs import NAMES
from tests.volumes.layouts.test_msd import write_decathlon, write_manifest
from tests.volumes.layouts.test_nnunet import write_raw
from tests.volumes.layouts.test_oasis import write_aligned
from tests.volumes.layouts.test_oasis import write_raw as write_oasis2
from tests.volumes.layouts.test_table import write_table

CT, SPIR = "CT/1/DICOM_anon/i0000,0000b.dcm", "MR/1/T2SPIR/DICOM_anon/IMG-0001-00001.dcm"

# set -> (writes it under a folder and returns its root, name of its layout)
SETS = {
    "csv": (lambda folder: write_table(folder, "image\na.nii.gz\n"), "csv"),
    "tsv": (lambda folder: write_table(folder, "image\tid\na.nii.gz\t1\n", "scans.tsv"), "csv"),
    "npz": (lambda folder: write_npz(folder / "organmnist3d.npz"), "medmnist"),
    "folder of npz": (lambda folder: write_npz(folder / "organmnist3d.npz").parent, "medmnist"),
    "nnU-Net": (lambda folder: write_raw(folder / "Dataset001_A", "imagesTr/a_0000.nrrd", ending=".nrrd"), "nnunet"),
    "nnUNet_raw": (lambda folder: write_raw(folder / "Dataset001_A", "imagesTr/a_0000.nii.gz").parent, "nnunet"),
    "MSD": (lambda folder: write_manifest(folder, training=["imagesTr/a.nii.gz"]), "msd"),
    "MSD manifest": (lambda folder: write_manifest(folder, training=["a.nii.gz"]) / "dataset.json", "msd"),
    "3DSeg-8": (write_decathlon, "msd"),
    "CHAOS": (lambda folder: touch(folder, f"Train_Sets/{CT}", f"Train_Sets/{SPIR}"), "chaos"),
    "CHAOS train": (lambda folder: touch(folder, CT, SPIR), "chaos"),
    "CHAOS test": (lambda folder: touch(folder, f"Test_Sets/{SPIR}"), "chaos"),
    "CHAOS CT": (lambda folder: touch(folder, CT) / "CT", "chaos"),
    "MM-WHS": (lambda folder: touch(folder, *NAMES), "mmwhs"),
    "MM-WHS part": (lambda folder: touch(folder, *NAMES) / "mr_train", "mmwhs"),
    "OASIS-1": (lambda folder: write_aligned(folder, "OAS1_0001_MR1"), "oasis"),
    "OASIS-2": (lambda folder: write_oasis2(folder, "OAS2_0001_MR1/RAW/mpr-1"), "oasis"),
    "OASIS-2 parts": (lambda folder: write_oasis2(folder, "OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1"), "oasis"),
    "BIDS": (lambda folder: touch(folder, "sub-1/anat/sub-1_T1w.nii.gz"), "bids"),
    "BIDS with sessions": (lambda folder: touch(folder, "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz"), "bids"),
    "flat sub- files": (lambda folder: touch(folder, "sub-1_T1w.nii.gz"), "folder"),
    "folder": (lambda folder: touch(folder, "CT/a.nii.gz", "MR/a.nii.gz"), "folder"),
    "scan": (lambda folder: touch(folder, "a.nii.gz") / "a.nii.gz", "folder"),
}

# layout -> a set of it, and the files that make it larger
GROWING = {
    "nnunet": (
        lambda folder: write_raw(folder, "imagesTr/a_0000.nii.gz"),
        "imagesTr/b_0000.nii.gz",
    ),
    "chaos": (lambda folder: touch(folder, CT, SPIR), "MR/1/T1DUAL/DICOM_anon/InPhase/1.dcm"),
    "mmwhs": (lambda folder: touch(folder, *NAMES), "ct_train/ct_train_1000_image.nii.gz"),
    "oasis": (lambda folder: write_oasis2(folder, "OAS2_0002_MR1/RAW/mpr-2"), "OAS2_0002_MR1/RAW/mpr-1.nifti.hdr"),
    "bids": (lambda folder: touch(folder, "sub-1/anat/sub-1_T1w.nii.gz"), "sub-1/anat/sub-1_run-1_T1w.nii.gz"),
    "folder": (lambda folder: touch(folder, "b/x.nii.gz", "b/x_seg.nii.gz"), "a/x.nii.gz"),
}


@pytest.mark.parametrize("name", SETS)
def test_auto_finds_the_layout_and_gives_what_its_name_gives(tmp_path, name):
    write, layout = SETS[name]
    root = write(tmp_path)
    (found,) = survey([root])
    assert found.layout == layout
    assert found.cases
    assert discover(root, layout=layout) == [*found.cases]


@pytest.mark.parametrize("layout", sorted({*LAYOUTS} - {"folder"}))
@pytest.mark.parametrize("name", ["folder", "scan"])
def test_a_named_layout_refuses_another_set(tmp_path, layout, name):
    root = SETS[name][0](tmp_path)
    with pytest.raises(RefusedError, match=f"not laid out as {layout}") as refused:
        discover(root, layout=layout)
    assert refused.value.code == "E_FORMAT"


def test_the_folder_layout_takes_every_folder(tmp_path):
    root = SETS["BIDS"][0](tmp_path)
    assert ids(discover(root, layout="folder")) == ["sub-1_anat_sub-1_T1w"]


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="'nonsense'") as refused:
        discover(tmp_path, layout="nonsense")
    assert refused.value.code == "E_CONFIG"


@pytest.mark.parametrize("layout", GROWING)
def test_ids_and_subjects_stay_when_other_scans_come(tmp_path, layout):
    write, more = GROWING[layout]
    before = discover(write(tmp_path), layout=layout)
    after = discover(touch(tmp_path, more), layout=layout)
    known = {(case.id, case.subject, case.image) for case in after}
    assert len(after) == len(before) + 1
    assert {(case.id, case.subject, case.image) for case in before} < known


@pytest.mark.parametrize("name", DATASETS)
def test_a_malformed_dataset_is_refused_by_code(tmp_path, name):
    write, code = DATASETS[name]
    with pytest.raises(RefusedError) as refused:
        discover(write(tmp_path))
    assert refused.value.code == code
    assert refused.value.hint
    assert len(str(refused.value)) < 1000


def test_equal_ids_are_refused_naming_both_scans(tmp_path):
    first, second = (Case("x", "x", "d", "CT", "", tmp_path / name, None, tmp_path) for name in ("a", "b"))
    require_unique_ids([first])
    with pytest.raises(RefusedError, match=f"{tmp_path.name}/a and {tmp_path.name}/b"):
        require_unique_ids([first, second])
