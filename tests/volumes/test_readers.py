import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from m3di.volumes.cases import LabelMap
from m3di.volumes.readers import content_digest, read_label, read_volume, settle_label, write_mask
from stores.errors import CaseError
from stores.geometry import Geometry
from tests.phantoms import head, ras_affine, write_scan

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array([[0, -0.8, 0.6], [1, 0, 0], [0, 0.6, 0.8]]) @ np.diag([1.5, 1.25, 2.0])
OBLIQUE[:3, 3] = (10, -20, 30)


@pytest.mark.parametrize("affine", [ras_affine((1.5, 1.25, 2.0)), np.diag([-1.5, -1.25, 2.0, 1]), OBLIQUE])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_array_and_affine_read_back(tmp_path, affine, suffix):
    image, _ = head()
    volume = read_volume(write_scan(tmp_path / f"a{suffix}", image, affine=affine), modality="MR")
    np.testing.assert_array_equal(volume.data, image)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-5)
    assert volume.geometry.shape == image.shape
    assert volume.modality == "MR"


def test_orientation_is_named_by_where_the_axes_point():
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = -1, -2, 3, 1
    assert Geometry((4, 5, 6), affine).orientation == "LIA"
    assert Geometry((4, 5, 6), affine).spacing_mm == (1, 2, 3)


@pytest.mark.parametrize("affine", [np.diag([-1.5, -1.25, 2.0, 1]), OBLIQUE])
def test_a_mask_lies_on_the_scans_own_grid(tmp_path, affine):
    image, label = head()
    scan = write_scan(tmp_path / "scan.nii.gz", image, affine=affine)
    geometry = read_volume(scan, modality="MR").geometry
    write_mask(tmp_path / "mask.nii.gz", label, like=geometry)
    np.testing.assert_array_equal(read_label(LabelMap(tmp_path / "mask.nii.gz"), like=geometry), label)
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    original = sitk.ReadImage(str(scan))
    for fact in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, fact)(), getattr(original, fact)(), atol=1e-6)


def test_voxels_that_are_not_finite_are_counted_and_take_the_smallest_value(tmp_path):
    image, _ = head()
    image[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_volume(write_scan(tmp_path / "a.nii.gz", image, affine=np.eye(4)), modality="MR")
    assert volume.num_non_finite == 3
    assert volume.data[0, 0, 1] == np.nanmin(image[np.isfinite(image)])


def test_missing_files_and_folders_are_refused(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    for read in (content_digest, lambda path: read_volume(path, modality="MR")):
        for name, code in (("nothing.nii", "E_MISSING"), ("folder.nii", "E_NOT_FILE"), (".", "E_NOT_DICOM")):
            with pytest.raises(CaseError, match=code):
                read(tmp_path / name)


def test_labels_are_checked_against_the_scan(tmp_path):
    image, label = head()
    affine = ras_affine((1.5, 1.25, 2.0))
    geometry = Geometry(image.shape, affine)
    shifted = write_scan(tmp_path / "shifted.nii", label, affine=ras_affine((1.5, 1.25, 2.0), (9, 0, 0)))
    cropped = write_scan(tmp_path / "cropped.nii", label[1:], affine=affine)
    fractions = write_scan(tmp_path / "half.nii", label * 0.5, affine=affine)
    large = write_scan(tmp_path / "large.nii", label.astype(np.int16) * 300, affine=affine)
    for path, code in ((shifted, "GEOMETRY"), (cropped, "GEOMETRY"), (fractions, "VALUES"), (large, "VALUES")):
        with pytest.raises(CaseError, match=f"E_LABEL_{code}"):
            read_label(LabelMap(path), like=geometry)


def test_a_label_map_on_the_scans_grid_along_other_axes_is_turned(tmp_path):
    image, label = head()
    affine = ras_affine((1.5, 1.25, 2.0), (3, 4, 5))
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 1, -1, 1, 1  # k, -i, j
    turned[0, 3] = label.shape[0] - 1
    path = write_scan(tmp_path / "a.nii.gz", label.transpose(2, 0, 1)[:, ::-1], affine=affine @ turned)
    np.testing.assert_array_equal(read_label(LabelMap(path), like=Geometry(image.shape, affine)), label)


def test_of_rival_label_maps_the_one_that_can_be_is_taken_or_none(tmp_path):
    image, label = head()
    affine = ras_affine((1.5, 1.25, 2.0))
    one_hot = nibabel.Nifti1Image(np.stack([label == 1, label == 2], -1).astype(np.uint8), affine)
    nibabel.save(one_hot, tmp_path / "onehot.nii.gz")
    path = write_scan(tmp_path / "seg.nii.gz", label, affine=affine)
    settled, (passed_over,) = settle_label(LabelMap(tmp_path / "onehot.nii.gz", rivals=(path,)))
    assert (settled.path, settled.rivals, passed_over.code) == (path, (), "E_NDIM")
    assert "argmax" in passed_over.hint
    np.testing.assert_array_equal(read_label(settled, like=Geometry(image.shape, affine)), label)
    other = write_scan(tmp_path / "other.nii.gz", label, affine=affine)
    with pytest.raises(CaseError, match=r"E_FORMAT several files .* seg\.nii\.gz, other\.nii\.gz"):
        settle_label(LabelMap(path, rivals=(other,)))


def test_negative_label_values_are_refused(tmp_path):
    image, label = head()
    affine = ras_affine((1.5, 1.25, 2.0))
    path = write_scan(tmp_path / "a.nii", label.astype(np.int16) - 1, affine=affine)
    with pytest.raises(CaseError, match="E_LABEL_VALUES"):
        read_label(LabelMap(path), like=Geometry(image.shape, affine))
