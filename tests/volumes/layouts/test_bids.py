import pytest

from m3di.volumes.layouts import discover
from stores.errors import RefusedError
from tests.volumes.layouts import ids, labels, touch


def test_sessions_and_runs_are_cases_of_one_subject(tmp_path):
    cases = discover(
        touch(
            tmp_path / "knee study",
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_run-01_T1w.nii.gz",
            "sub-02/ses-a/anat/sub-02_ses-a_run-02_T1w.nii.gz",
            "sub-02/ses-b/ct/sub-02_ses-b_ct.nii",
        )
    )
    assert [(case.id, case.subject, case.modality) for case in cases] == [
        ("sub-01_T1w", "sub-01", "MR"),
        ("sub-02_ses-a_run-01_T1w", "sub-02", "MR"),
        ("sub-02_ses-a_run-02_T1w", "sub-02", "MR"),
        ("sub-02_ses-b_ct", "sub-02", "CT"),
    ]
    assert {case.body_part for case in cases} == {"knee"}


@pytest.mark.parametrize("suffix, modality", [("T2star", "MR"), ("FLAIR", "MR"), ("UNIT1", "MR"), ("ct", "CT")])
def test_the_suffix_tells_the_modality_and_the_folder_the_rest(tmp_path, suffix, modality):
    (case,) = discover(touch(tmp_path, f"sub-1/anat/sub-1_acq-seg_{suffix}.nii.gz"))
    assert case.modality == modality


def test_only_anatomical_scans_are_taken(tmp_path):
    touch(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_T1w.json",
        "sub-1/anat/._sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_mod-T1w_defacemask.nii.gz",
        "sub-1/func/sub-1_task-rest_bold.nii.gz",
        "sub-1/dwi/sub-1_dwi.nii.gz",
        "sub-1/fmap/sub-1_phasediff.nii.gz",
        "derivatives/prep/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
        "derivatives/prep/sub-1/anat/sub-1_space-MNI152_T1w.nii.gz",
        "sourcedata/sub-1/anat/sub-1_T1w.nii.gz",
    )
    assert labels(discover(tmp_path)) == {"sub-1_T1w": None}


@pytest.mark.parametrize(
    "scan, label, paired",
    [
        ("sub-1_T1w", "sub-1_dseg", True),
        ("sub-1_T1w", "sub-1_desc-aseg_dseg", True),
        ("sub-1_T1w", "sub-1_desc-brain_mask", True),
        ("sub-1_T1w", "sub-1_space-orig_label-L_mask", True),
        ("sub-1_T1w", "sub-1_T1w_seg-manual", True),
        ("sub-1_T1w", "sub-1_T1w_label-SC_seg", True),
        ("sub-1_acq-x_run-2_T2w", "sub-1_acq-x_run-2_dseg", True),
        ("sub-1_run-1_T1w", "sub-1_run-2_dseg", False),
        ("sub-1_acq-x_T1w", "sub-1_dseg", False),
        ("sub-1_T1w", "sub-1_space-MNI152NLin2009cAsym_dseg", False),
        ("sub-1_T1w", "sub-1_label-GM_probseg", False),
        ("sub-1_T1w", "sub-1_desc-preproc_T1w", False),
        ("sub-1_T1w", "sub-1_T1w_defacemask", False),
        ("sub-1_T1w", "sub-11_dseg", False),
    ],
)
def test_label_maps_are_found_in_derivatives_by_their_entities(tmp_path, scan, label, paired):
    path = f"derivatives/tool/sub-1/anat/{label}.nii.gz"
    touch(tmp_path, f"sub-1/anat/{scan}.nii.gz", path)
    assert labels(discover(tmp_path)) == {scan: path if paired else None}


def test_a_segmentation_comes_before_a_mask_and_two_are_rivals(tmp_path):
    touch(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/a/sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        "derivatives/a/sub-1/anat/sub-1_dseg.nii.gz",
    )
    (case,) = discover(tmp_path)
    assert (case.label.path.name, case.label.rivals) == ("sub-1_dseg.nii.gz", ())
    touch(tmp_path, "derivatives/b/sub-1/anat/sub-1_desc-aseg_dseg.nii.gz")
    (case,) = discover(tmp_path)
    assert [path.parts[-4] for path in (case.label.path, *case.label.rivals)] == ["a", "b"]


def test_where_a_subject_has_several_scans_the_label_map_is_the_t1ws(tmp_path):
    touch(tmp_path, *(f"sub-1/anat/sub-1_{suffix}.nii.gz" for suffix in ("FLAIR", "T1w", "T2w")))
    touch(tmp_path, "derivatives/a/sub-1/anat/sub-1_dseg.nii.gz")
    found = labels(discover(tmp_path))
    assert {scan for scan, label in found.items() if label} == {"sub-1_T1w"}


def test_a_derivatives_folder_alone_pairs_scans_with_what_lies_beside(tmp_path):
    native, standard = "sub-1/anat/sub-1", "sub-1/anat/sub-1_space-MNI152"
    touch(tmp_path, *(f"{one}_{end}.nii.gz" for one in (native, standard) for end in ("desc-preproc_T1w", "dseg")))
    assert labels(discover(tmp_path)) == {
        "sub-1_desc-preproc_T1w": f"{native}_dseg.nii.gz",
        "sub-1_space-MNI152_desc-preproc_T1w": f"{standard}_dseg.nii.gz",
    }


def test_the_participants_table_gives_clinical_columns_and_nothing_else(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tname\tGroup\tdiagnosis\nsub-1\tJane\tpatient\tn/a\nsub-2\tJim\tcontrol\tAD\n"
    )
    assert [dict(case.attributes) for case in discover(tmp_path)] == [
        {"group": "patient"},
        {"group": "control", "diagnosis": "AD"},
    ]


def test_a_subject_that_the_table_does_not_list_is_refused(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-2\n")
    with pytest.raises(RefusedError, match=r"sub-1 .*not listed"):
        discover(tmp_path)


def test_links_to_what_was_not_fetched_are_cases(tmp_path):
    touch(tmp_path, "sub-1/anat/other.txt")
    (tmp_path / "sub-1/anat/sub-1_T1w.nii.gz").symlink_to("../../.git/annex/objects/key")
    assert ids(discover(tmp_path)) == ["sub-1_T1w"]


def test_the_suffix_names_the_sequence(tmp_path):
    names = [f"sub-1/anat/sub-1_{suffix}.nii.gz" for suffix in ("FLAIR", "T1w", "UNIT1")]
    found = discover(touch(tmp_path, *names, "sub-1/ct/sub-1_ct.nii.gz"))
    sequences = {"sub-1_FLAIR": "FLAIR", "sub-1_T1w": "T1w", "sub-1_UNIT1": "", "sub-1_ct": ""}
    assert {case.id: case.sequence for case in found} == sequences
