import nibabel
import numpy as np
import pytest

from m3di.volumes.layouts import discover
from m3di.volumes.readers import content_digest, read_label, read_volume
from stores.errors import CaseError, RefusedError
from tests.phantoms import head, ras_affine, write_scan
from tests.volumes.layouts import ids, labels, touch

ALIGNED = "aligned_norm aligned_orig aligned_seg4 aligned_seg35 norm orig seg4 seg35 slice_norm slice_orig slice_seg4"
LONGITUDINAL = """\
Subject ID,MRI ID,Group,Visit,MR Delay,M/F,Hand,Age,EDUC,SES,MMSE,CDR,eTIV,nWBV,ASF
OAS2_0001,OAS2_0001_MR1,Nondemented,1,0,M,R,87,14,2,27,0,1987,0.696,0.883
OAS2_0001,OAS2_0001_MR2,Converted,2,457,M,R,88,14,2,30,0.5,2004,0.681,0.876
"""
CROSS_SECTIONAL = """\
ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF
OAS1_0001_MR1,F,R,60,5,1,30,,1402,823,1252
OAS1_0002_MR1,F,R,60,2,4,30,0.5,1366,807,1285
"""


def write_aligned(root, *sessions):
    for session in sessions:
        touch(root / f"OASIS_{session}", *(f"{name}.nii.gz" for name in ALIGNED.split()), "seg4_labels.txt")
    return root


def write_raw(root, *names):
    return touch(root, *(f"{name}.nifti.{end}" for name in names for end in ("hdr", "img")))


def test_the_set_for_registration_gives_one_scan_a_session(tmp_path):
    cases = discover(write_aligned(tmp_path, "OAS1_0001_MR1", "OAS1_0002_MR1"))
    assert labels(cases) == {
        f"OAS1_{number}_MR1": f"OASIS_OAS1_{number}_MR1/aligned_seg4.nii.gz" for number in ("0001", "0002")
    }
    assert {case.image.name for case in cases} == {"aligned_norm.nii.gz"}
    assert [case.subject for case in cases] == ["OAS1_0001", "OAS1_0002"]
    assert {(case.dataset, case.modality, case.body_part) for case in cases} == {("OASIS-1", "MR", "brain")}
    assert cases[0].label.names.keys() == {1, 2, 3, 4}


def test_scan_and_label_map_of_the_set_for_registration_are_read(tmp_path):
    image, label = head()
    folder = tmp_path / "OASIS_OAS1_0001_MR1"
    for name, array in (("aligned_norm", image), ("aligned_seg4", label), ("aligned_seg35", label * 9)):
        write_scan(folder / f"{name}.nii.gz", array, affine=ras_affine((1, 1, 1)))
    (case,) = discover(folder)
    assert case.id == "OAS1_0001_MR1"
    volume = read_volume(case.image, modality="MR")
    np.testing.assert_array_equal(read_label(case.label, like=volume.geometry), label)


def test_a_missing_aligned_scan_concerns_its_case_alone(tmp_path):
    root = write_aligned(tmp_path, "OAS1_0001_MR1", "OAS1_0002_MR1")
    (root / "OASIS_OAS1_0001_MR1/aligned_norm.nii.gz").unlink()
    first, second = discover(root)
    with pytest.raises(CaseError, match="E_MISSING"):
        content_digest(first.image)
    assert second.image.exists()


def test_longitudinal_sessions_are_grouped_by_subject_with_group_and_cdr(tmp_path):
    root = write_raw(
        tmp_path,
        "OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1",
        "OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-2",
        "OAS2_RAW_PART2/OAS2_0001_MR2/RAW/mpr-1",
    )
    (root / "oasis_longitudinal.csv").write_text(LONGITUDINAL)
    cases = discover(root)
    assert ids(cases) == ["OAS2_0001_MR1_mpr-1", "OAS2_0001_MR1_mpr-2", "OAS2_0001_MR2_mpr-1"]
    assert {(case.subject, case.dataset) for case in cases} == {("OAS2_0001", "OASIS-2")}
    first, last = {"group": "Nondemented", "cdr": "0"}, {"group": "Converted", "cdr": "0.5"}
    assert [dict(case.attributes) for case in cases] == [first, first, last]


def test_one_part_and_one_session_give_the_same_ids(tmp_path):
    root = write_raw(tmp_path, "OAS2_RAW_PART1/OAS2_0001_MR1/RAW/mpr-1")
    part = root / "OAS2_RAW_PART1"
    assert (
        ids(discover(root)) == ids(discover(part)) == ids(discover(part / "OAS2_0001_MR1")) == ["OAS2_0001_MR1_mpr-1"]
    )


def test_a_raw_pair_is_read_with_its_own_affine(tmp_path):
    image, _ = head()
    affine = ras_affine((1.0, 1.0, 1.25), (3, 4, 5))
    folder = tmp_path / "OAS2_0001_MR1/RAW"
    folder.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Pair(image, affine), folder / "mpr-1.nifti.img")
    assert sorted(path.name for path in folder.iterdir()) == ["mpr-1.nifti.hdr", "mpr-1.nifti.img"]
    (case,) = discover(tmp_path)
    volume = read_volume(case.image, modality="MR")
    np.testing.assert_array_equal(volume.data, image)
    np.testing.assert_allclose(volume.geometry.affine, affine)


def test_processed_copies_beside_the_raw_scans_are_left_out(tmp_path):
    session = "OAS1_0001_MR1"
    touch(
        tmp_path / session,
        f"RAW/{session}_mpr-1_anon.hdr",
        f"PROCESSED/MPRAGE/SUBJ_111/{session}_mpr_n4_anon_sbj_111.hdr",
        f"FSL_SEG/{session}_mpr_n4_anon_111_t88_masked_gfc_fseg.hdr",
    )
    assert ids(discover(tmp_path)) == [f"{session}_mpr-1_anon"]


def test_files_named_by_session_are_scans(tmp_path):
    touch(tmp_path, "OAS1_0001_MR1.nii.gz", "OAS1_0001_MR2.nii.gz", "OAS1_0001_MR2_seg.nii.gz", "readme.txt")
    (tmp_path / "oasis_cross-sectional.csv").write_text(CROSS_SECTIONAL)
    cases = discover(tmp_path)
    assert [(case.id, case.subject, dict(case.attributes)) for case in cases] == [
        ("OAS1_0001_MR1", "OAS1_0001", {}),
        ("OAS1_0001_MR2", "OAS1_0001", {}),
    ]


def test_the_cross_sectional_table_has_no_group_and_gaps_in_cdr(tmp_path):
    write_aligned(tmp_path, "OAS1_0001_MR1", "OAS1_0002_MR1", "OAS1_0003_MR1")
    (tmp_path / "oasis_cross-sectional.csv").write_text(CROSS_SECTIONAL)
    assert [dict(case.attributes) for case in discover(tmp_path)] == [{}, {"cdr": "0.5"}, {}]


def test_tables_that_contradict_each_other_are_refused(tmp_path):
    write_raw(tmp_path, "OAS2_0001_MR1/RAW/mpr-1")
    (tmp_path / "a.csv").write_text(LONGITUDINAL)
    (tmp_path / "b.csv").write_text(LONGITUDINAL)
    assert discover(tmp_path)
    (tmp_path / "b.csv").write_text(LONGITUDINAL.replace("Nondemented", "Demented"))
    with pytest.raises(RefusedError, match="another row for OAS2_0001_MR1"):
        discover(tmp_path)
