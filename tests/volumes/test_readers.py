import gzip
import struct

import numpy as np
import pytest
import SimpleITK as sitk

from m3di.volumes.cases import LabelMap
from m3di.volumes.readers import content_digest, read_label, read_volume, write_mask
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


def test_big_endian_files_are_read(tmp_path):
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, 2, 3, 4, 1, 1, 1, 1)
    struct.pack_into(">hh", header, 70, 4, 16)
    struct.pack_into(">8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into(">f", header, 108, 352)
    struct.pack_into(">hh", header, 252, 0, 1)
    struct.pack_into(">12f", header, 280, 1, 0, 0, 5, 0, 1, 0, 6, 0, 0, 1, 7)
    header[344:348] = b"n+1\0"
    data = np.arange(24, dtype=">i2")
    (tmp_path / "big.nii").write_bytes(bytes(header) + data.tobytes())
    volume = read_volume(tmp_path / "big.nii", modality="MR")
    np.testing.assert_array_equal(volume.data.ravel(order="F"), data)


def test_voxels_that_are_not_finite_are_counted_and_take_the_smallest_value(tmp_path):
    image, _ = head()
    image[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_volume(write_scan(tmp_path / "a.nii.gz", image, affine=np.eye(4)), modality="MR")
    assert volume.num_non_finite == 3
    assert volume.data[0, 0, 1] == np.nanmin(image[np.isfinite(image)])


def nifti(tmp_path, name="a.nii"):
    return write_scan(tmp_path / name, head()[0], affine=ras_affine((1.5, 1.25, 2.0)))


def patched(position, code, *values):
    def change(content):
        content = bytearray(content)
        struct.pack_into(code, content, position, *values)
        return bytes(content)

    return change


def flipped(content):
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]


@pytest.mark.parametrize(
    "name, change, code",
    [
        ("a.nii", lambda b: b"", "E_EMPTY"),
        ("a.nii", lambda b: b"hello, I am text " * 50, "E_NOT_NIFTI"),
        ("a.nii", lambda b: b[:100], "E_TRUNCATED"),
        ("a.nii", lambda b: b[:346], "E_TRUNCATED"),
        ("a.nii", lambda b: b[:-1], "E_TRUNCATED"),
        ("a.nii", lambda b: b[: len(b) // 2], "E_TRUNCATED"),
        ("a.nii.gz", lambda b: b[:-1], "E_TRUNCATED"),
        ("a.nii.gz", lambda b: b[: len(b) // 2], "E_TRUNCATED"),
        ("a.nii.gz", flipped, "E_CORRUPT"),
        ("a.nii.gz", lambda b: gzip.compress(gzip.decompress(b)[:-500]), "E_TRUNCATED"),
        ("a.nii.gz", lambda b: gzip.compress(gzip.decompress(b) + bytes(1 << 22)), "E_TOO_LARGE"),
        ("a.nii", patched(344, "4s", b"xxx\0"), "E_NOT_NIFTI"),
        ("a.nii", patched(40, "<8h", 4, 20, 24, 9, 2, 1, 1, 1), "E_NDIM"),
        ("a.nii", patched(40, "<8h", 2, 20, 24, 1, 1, 1, 1, 1), "E_NDIM"),
        ("a.nii", patched(40, "<8h", 3, 20, -24, 18, 1, 1, 1, 1), "E_HEADER"),
        ("a.nii", patched(40, "<8h", 9, 20, 24, 18, 1, 1, 1, 1), "E_HEADER"),
        ("a.nii", patched(40, "<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1), "E_TOO_LARGE"),
        ("a.nii", patched(70, "<h", 128), "E_DTYPE"),
        ("a.nii", patched(70, "<h", 32), "E_DTYPE"),
        ("a.nii", patched(80, "<f", 0.0), "E_SPACING"),
        ("a.nii", patched(80, "<f", float("nan")), "E_SPACING"),
        ("a.nii", patched(84, "<f", 500.0), "E_SPACING"),
        ("a.nii", patched(108, "<f", -4.0), "E_HEADER"),
        ("a.nii", lambda b: b[:352] + bytes(len(b) - 352), "E_NO_SIGNAL"),
    ],
)
def test_malformed_files_are_refused_by_code(tmp_path, name, change, code):
    path = nifti(tmp_path, name)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CaseError) as refused:
        read_volume(path, modality="MR")
    assert refused.value.code == code
    assert refused.value.hint


def test_a_sheared_affine_is_refused(tmp_path):
    path = nifti(tmp_path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)
    struct.pack_into("<12f", content, 280, 1.5, 0.9, 0, 0, 0, 1.25, 0, 0, 0, 0, 2, 0)
    path.write_bytes(bytes(content))
    with pytest.raises(CaseError) as refused:
        read_volume(path, modality="MR")
    assert refused.value.code == "E_AFFINE"


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
