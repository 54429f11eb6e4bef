import numpy as np
import pytest

from m3di.volumes.layouts import discover
from m3di.volumes.readers import content_digest, read_label, read_volume
from stores.errors import CaseError, RefusedError
from tests.dicoms import write_series
from tests.phantoms import head, ras_affine, write_scan
from tests.volumes.layouts import ids, labels, touch

AFFINE = ras_affine((1, 1, 2))


def slices(seed=0):
    return np.random.default_rng(seed).integers(0, 99, (5, 6, 4)).astype(np.int16)


def test_scans_lie_however_deep(tmp_path):
    touch(
        tmp_path,
        "a/b/c.NII.GZ",
        "d.mha",
        "e.nrrd",
        "f.mgz",
        "g.hdr",
        "g.img",
        "h.npy",
        "h.json",
        "notes.txt",
        "i.png",
    )
    assert ids(discover(tmp_path)) == ["a_b_c", "d", "e", "f", "g", "h"]


def test_one_scan_is_a_set_of_one(tmp_path):
    path = touch(tmp_path, "scan.nii.gz", "other.nii.gz") / "scan.nii.gz"
    assert ids(discover(path)) == ["scan"]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", ".git/annex/b.nii.gz", "__MACOSX/c.nii.gz", ".cache/d.dcm")
    assert ids(discover(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    "scan, label",
    [
        ("x", "x_seg"),
        ("x", "x-label"),
        ("x", "x_seg-manual"),
        ("x", "x_seg4_mni"),
        ("x", "x.gt"),
        ("x_image", "x_label"),
        ("3DCT_lung", "3DCT_lung_mask"),
        ("volume-10", "segmentation-10"),
        ("img0001", "label0001"),
        ("imaging", "segmentation"),
        ("ct", "seg"),
        ("ct", "mask_liver"),
        ("images/x", "labels/x"),
        ("imagesTr/x_0000", "labelsTr/x_0000"),
        ("train/img/x", "train/masks/x_mask"),
        ("x", "segmentations/x"),
    ],
)
@pytest.mark.parametrize("place", ["", "deep/er/"])
def test_label_maps_are_paired_by_name_and_are_no_scans(tmp_path, scan, label, place):
    touch(tmp_path, f"{place}{scan}.nii.gz", f"{place}{label}.nrrd", "other/y.nii.gz")
    found = labels(discover(tmp_path))
    assert found.pop("other_y") is None
    assert list(found.values()) == [f"{place}{label}.nrrd"]


@pytest.mark.parametrize(
    "scan, label",
    [
        ("x", "y_seg"),
        ("x", "other/x_seg"),
        ("volume-1", "segmentation-10"),
        ("imagesTs/x", "labelsTr/x"),
        ("a/images/x", "b/labels/x"),
        ("ct", "segmentations/liver"),
        ("subseg", "aseg"),
    ],
)
def test_label_maps_of_other_scans_are_neither_paired_nor_scans(tmp_path, scan, label):
    touch(tmp_path, f"{scan}.nii.gz", f"{scan.rpartition('/')[0] or '.'}/z.nii.gz", f"{label}.nii.gz")
    assert list(labels(discover(tmp_path)).values()) == [None, None]


def test_a_label_map_alone_is_no_scan(tmp_path):
    with pytest.raises(RefusedError, match="E_FORMAT"):
        discover(touch(tmp_path, "x_seg.nii.gz"))


def test_the_one_that_is_a_label_map_among_rivals_is_read(tmp_path):
    image, label = head()
    write_scan(tmp_path / "x.nii.gz", image, affine=AFFINE)
    write_scan(tmp_path / "x_seg4.nii.gz", label, affine=AFFINE)
    (tmp_path / "x_seg_onehot.nii.gz").write_bytes(b"no scan")
    (case,) = discover(tmp_path)
    assert [path.name for path in (case.label.path, *case.label.rivals)] == ["x_seg4.nii.gz", "x_seg_onehot.nii.gz"]
    geometry = read_volume(case.image, modality="MR").geometry
    np.testing.assert_array_equal(read_label(case.label, like=geometry), label)
    write_scan(tmp_path / "x_seg_onehot.nii.gz", label, affine=AFFINE)
    with pytest.raises(CaseError, match=r"several files .*x_seg4\.nii\.gz, x_seg_onehot\.nii\.gz"):
        read_label(case.label, like=geometry)


@pytest.mark.parametrize(
    "path, subject, modality, part",
    [
        ("sub-01_ses-1_T1w", "sub-01", "MR", ""),
        ("site/sub-02/sub-02_ct", "sub-02", "CT", ""),
        ("patient003_frame01", "patient003", "unknown", ""),
        ("Patient_4/x", "Patient_4", "unknown", ""),
        ("OAS1_0001_MR1_brain", "OAS1_0001", "unknown", "brain"),
        ("BraTS20_001/BraTS20_001_t1ce", "BraTS20_001_BraTS20_001", "MR", "brain"),
        ("BraTS20_001/BraTS20_001_flair", "BraTS20_001_BraTS20_001", "MR", "brain"),
        ("case7/ct", "case7", "CT", ""),
        ("mr/x_ct", "mr_x", "CT", ""),
        ("ct_mr_registered", "ct_mr_registered", "unknown", ""),
        ("x_hepatic", "x_hepatic", "unknown", "liver"),
    ],
)
def test_names_tell_subject_modality_and_body_part(tmp_path, path, subject, modality, part):
    (case,) = discover(touch(tmp_path / "set", f"{path}.nii.gz"), layout="folder")
    assert (case.subject, case.modality, case.body_part) == (subject, modality, part)


def test_the_folders_own_name_tells_what_the_scans_do_not(tmp_path):
    first, second = discover(touch(tmp_path / "Knee-CT", "a.nii.gz", "b_t1_brain.nii.gz"))
    assert (first.dataset, first.modality, first.body_part) == ("Knee-CT", "CT", "knee")
    assert (second.modality, second.body_part) == ("MR", "brain")


def test_names_of_any_script_and_length_stay_apart(tmp_path):
    long = "/".join(["a" * 60] * 3)
    touch(tmp_path, "患者甲.nii.gz", "患者乙.nii.gz", f"{long}/1.nii.gz", f"{long}/2.nii.gz", "a b.nii.gz")
    found = ids(discover(tmp_path))
    assert len(set(found)) == 5
    assert max(len(one) for one in found) == 128
    assert "a-b" in found


def test_each_folder_of_dicom_slices_is_a_case(tmp_path):
    for name, seed in (("p1/a", 0), ("p1/b", 1), ("p2", 2)):
        write_series(tmp_path / name, slices(seed), affine=AFFINE)
    touch(tmp_path, "p1/a/.hidden.dcm", "p1/a/report.pdf")
    assert ids(discover(tmp_path)) == ["p1_a", "p1_b", "p2"]
    assert ids(discover(tmp_path / "p2")) == ["p2"]


def test_each_series_of_a_folder_is_a_case_of_one_subject(tmp_path):
    for number in (3, 12):
        write_series(tmp_path / "p", slices(number), affine=AFFINE, series_number=number, prefix=f"n{number}")
    first, second = discover(tmp_path)
    assert (first.id, second.id, first.subject, second.subject) == ("p-series3", "p-series12", "p", "p")
    for case, seed in ((first, 3), (second, 12)):
        np.testing.assert_array_equal(read_volume(case.image, modality="CT", member=case.member).data, slices(seed))


def test_series_of_one_number_are_told_apart(tmp_path):
    for prefix in ("a", "b"):
        write_series(tmp_path / "p", slices(), affine=AFFINE, prefix=prefix)
    assert ids(discover(tmp_path)) == ["p-series1-1", "p-series1-2"]


def test_a_segmentation_object_is_no_scan(tmp_path):
    write_series(tmp_path / "p", slices(), affine=AFFINE, series_number=4)
    make_segmentation = lambda one, k: setattr(one, "Modality", "SEG")  # noqa: E731
    write_series(tmp_path / "p", slices(), affine=AFFINE, series_number=5, prefix="seg", change=make_segmentation)
    write_series(tmp_path / "q", slices(), affine=AFFINE, change=make_segmentation)
    (case,) = discover(tmp_path)
    assert case.id == "p-series4"
    assert read_volume(case.image, modality="CT", member=case.member).data.shape == (5, 6, 4)


def test_an_unreadable_slice_concerns_its_case_alone(tmp_path):
    write_series(tmp_path / "p", slices(), affine=AFFINE)
    write_series(tmp_path / "q", slices(), affine=AFFINE)
    (tmp_path / "p/z.dcm").write_bytes(b"no DICOM")
    first, second = discover(tmp_path)
    with pytest.raises(CaseError, match=r"z\.dcm") as refused:
        read_volume(first.image, modality="CT")
    assert refused.value.code == "E_NOT_DICOM"
    assert read_volume(second.image, modality="CT").data.shape == (5, 6, 4)


def test_the_index_of_a_dicom_disc_is_no_scan(tmp_path):
    paths = write_series(tmp_path / "IMAGES/S1", slices(), affine=AFFINE)
    (tmp_path / "DICOMDIR").write_bytes(paths[0].read_bytes())
    paths[0].rename(paths[0].with_suffix(""))  # discs leave suffixes out
    (case,) = discover(tmp_path)
    assert (case.id, case.modality) == ("IMAGES_S1", "unknown")
    assert read_volume(case.image, modality="unknown").modality == "CT"


def test_one_dicom_file_is_a_set_of_one(tmp_path):
    path = write_series(tmp_path / "p", slices(), affine=AFFINE)[0]
    assert ids(discover(path)) == [path.stem]


def test_a_link_to_nothing_is_a_case_whose_scan_is_missing(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to("gone.nii.gz")
    (tmp_path / "slice").symlink_to("gone")
    (case,) = discover(tmp_path)
    assert case.id == "a"
    with pytest.raises(CaseError, match="E_MISSING"):
        content_digest(case.image)


def test_links_within_the_folder_are_followed_for_files(tmp_path):
    touch(tmp_path, "store/a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("store/a.nii.gz")
    (tmp_path / "again").symlink_to("store", target_is_directory=True)
    assert ids(discover(tmp_path)) == ["b", "store_a"]


@pytest.mark.parametrize(
    ("path", "sequence"), [("a_T1w", "T1w"), ("x/b_t1ce", "T1ce"), ("t1_t2", ""), ("flair/x", ""), ("ct", "")]
)
def test_the_files_own_name_tells_the_sequence(tmp_path, path, sequence):
    (case,) = discover(touch(tmp_path / "set", f"{path}.nii.gz"), layout="folder")
    assert case.sequence == sequence
