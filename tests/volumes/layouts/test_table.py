import numpy as np
import pytest

from m3di.volumes.layouts import discover
from m3di.volumes.readers import content_digest, read_volume
from stores.errors import CaseError, RefusedError
from tests.dicoms import write_series
from tests.phantoms import ras_affine
from tests.volumes.layouts import ids, touch


def write_table(root, text, name="scans.csv"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name


def test_every_column_counts_and_others_do_not(tmp_path):
    text = (
        "image,id,label,subject,modality,body_part,dataset,group,cdr,diagnosis,name\n"
        "a/b.nii.gz,first,a/c.nii.gz,p1,mri,knee,mine,control,0.5,AD,Jane\n"
    )
    (case,) = discover(write_table(tmp_path, text))
    assert (case.id, case.subject, case.modality, case.body_part, case.dataset) == (
        "first",
        "p1",
        "MR",
        "knee",
        "mine",
    )
    assert (case.image, case.label.path) == (tmp_path / "a/b.nii.gz", tmp_path / "a/c.nii.gz")
    assert case.attributes == {"group": "control", "cdr": "0.5", "diagnosis": "AD"}


@pytest.mark.parametrize(
    "name, mark", [("s.csv", ","), ("s.csv", ";"), ("s.csv", "\t"), ("s.tsv", "\t"), ("S.CSV", ",")]
)
def test_what_the_table_leaves_out_comes_from_names(tmp_path, name, mark):
    lines = [("Image", "Modality"), ("liver/sub-01_ct.nii.gz", ""), ("brain/patient7_x.mha", "T1w")]
    cases = discover(write_table(tmp_path / "set", "\n".join(mark.join(line) for line in lines), name))
    assert [(case.id, case.subject, case.modality, case.label) for case in cases] == [
        ("sub-01_ct", "sub-01", "CT", None),
        ("patient7_x", "patient7", "MR", None),
    ]


def test_ids_do_not_depend_on_whether_the_scan_is_there(tmp_path):
    table = write_table(tmp_path, "image\na.nii.gz\nb.nrrd\n")
    assert ids(discover(table)) == ["a", "b"]
    touch(tmp_path, "a.nii.gz")
    assert ids(discover(table)) == ["a", "b"]


def test_a_missing_scan_concerns_its_case_alone(tmp_path):
    first, second = discover(write_table(tmp_path, "image\na.nii.gz\nb.nii.gz\n"))
    touch(tmp_path, "b.nii.gz")
    with pytest.raises(CaseError, match="E_MISSING"):
        content_digest(first.image)
    assert second.image.exists()


def test_a_folder_of_dicom_slices_is_an_image(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (5, 6, 4)).astype(np.int16)
    write_series(tmp_path / "p1/series.2", array, affine=ras_affine((1, 1, 2)), modality="MR")
    (case,) = discover(write_table(tmp_path, "image,subject\np1/series.2,p1\n"))
    assert (case.id, case.subject) == ("series.2", "p1")
    np.testing.assert_array_equal(read_volume(case.image, modality="unknown").data, array)


def test_an_unknown_modality_is_refused_by_name(tmp_path):
    with pytest.raises(RefusedError, match="'PET'") as refused:
        discover(write_table(tmp_path, "image,modality\na.nii.gz,PET\n"))
    assert refused.value.code == "E_MANIFEST"


def test_links_out_of_the_tables_folder_need_the_setting(tmp_path):
    table = write_table(tmp_path / "set", "image\nscan.nii.gz\n")
    touch(tmp_path, "outside.nii.gz")
    (tmp_path / "set/scan.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    with pytest.raises(RefusedError, match="E_PATH"):
        discover(table)
    assert ids(discover(table, follow_links=True)) == ["scan"]


def test_the_sequence_is_the_columns_else_the_modalitys_else_the_names(tmp_path):
    lines = ["image,modality,sequence", "a.nii.gz,MR,SWI", "b.nii.gz,T1w,", "c_flair.nii.gz,,", "d.nii.gz,CT,"]
    cases = discover(write_table(tmp_path, "\n".join(lines)))
    assert [case.sequence for case in cases] == ["SWI", "T1w", "FLAIR", ""]


@pytest.mark.parametrize("sequence", ["T1 of Ms Doe", "20240131", "x" * 13, "../t1"])
def test_a_sequence_that_is_no_short_word_is_refused(tmp_path, sequence):
    with pytest.raises(RefusedError) as error:
        discover(write_table(tmp_path, f"image,sequence\na.nii.gz,{sequence}\n"))
    assert error.value.code == "E_MANIFEST"
