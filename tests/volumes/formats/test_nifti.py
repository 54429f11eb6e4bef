import gzip
import shutil
import struct

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from m3di.volumes.formats import nifti
from m3di.volumes.readers import content_digest, read_volume
from stores.errors import CaseError

SHAPE = (5, 6, 7)
VALUES = np.random.default_rng(0).integers(0, 100, SHAPE)
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (0.3, -0.5, 1.1)).as_matrix() @ np.diag([1.5, -1.25, 2.0])
OBLIQUE[:3, 3] = (10, -20, 30)


def as_nibabel_reads(path):
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", sorted(nifti.DTYPES.values()))
@pytest.mark.parametrize("order", "<>")
def test_every_type_in_either_byte_order_is_as_nibabel_reads_it(tmp_path, kind, dtype, order):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    path = tmp_path / "a.nii.gz"
    nibabel.save(kind(VALUES.astype(dtype), OBLIQUE, header), path)
    volume = read_volume(path, modality="MR")
    expected, affine = as_nibabel_reads(path)
    np.testing.assert_array_equal(volume.data, expected)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-5)
    assert volume.data.dtype.isnative


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_slope_and_intercept_count(tmp_path, kind):
    image = kind(VALUES.astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(0.25, -7)
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii", modality="MR")
    assert volume.data.dtype == np.float32
    np.testing.assert_allclose(volume.data, as_nibabel_reads(tmp_path / "a.nii")[0], atol=1e-5)


def test_values_that_scaling_makes_too_large_are_counted_as_not_finite(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES.astype(np.int16), OBLIQUE), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2f", content, 112, 1e37, 0)
    (tmp_path / "a.nii").write_bytes(content)
    volume = read_volume(tmp_path / "a.nii", modality="MR")
    assert volume.num_non_finite == (VALUES >= 35).sum(), "float32 ends at 3.4e38"


@pytest.mark.parametrize("ends", [(".hdr", ".img"), (".hdr.gz", ".img.gz"), (".hdr", ".img.gz")])
def test_of_a_pair_either_file_may_be_given_and_both_count(tmp_path, ends):
    nibabel.save(nibabel.Nifti1Pair(VALUES.astype(np.int16), OBLIQUE), tmp_path / "a.hdr")
    for plain, end in zip((".hdr", ".img"), ends, strict=True):
        if end.endswith(".gz"):
            (tmp_path / f"a{end}").write_bytes(gzip.compress((tmp_path / f"a{plain}").read_bytes()))
            (tmp_path / f"a{plain}").unlink()
    first, second = (read_volume(tmp_path / f"a{end}", modality="MR") for end in ends)
    np.testing.assert_array_equal(first.data, VALUES)
    np.testing.assert_array_equal(second.data, VALUES)
    assert first.geometry == second.geometry
    before = content_digest(tmp_path / f"a{ends[0]}")
    assert before == content_digest(tmp_path / f"a{ends[1]}")
    nibabel.save(nibabel.Nifti1Pair(VALUES.astype(np.int16) + 1, OBLIQUE), tmp_path / "b.hdr")
    content = (tmp_path / "b.img").read_bytes()
    (tmp_path / f"a{ends[1]}").write_bytes(gzip.compress(content) if ends[1].endswith(".gz") else content)
    assert content_digest(tmp_path / f"a{ends[0]}") != before


@pytest.mark.parametrize("code, factor", [("mm", 1), ("meter", 1e3), ("micron", 1e-3), ("unknown", 1)])
def test_units_are_honoured(tmp_path, code, factor):
    affine = OBLIQUE.copy()
    affine[:3] /= factor
    image = nibabel.Nifti1Image(VALUES.astype(np.int16), affine)
    image.header.set_xyzt_units(code)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii", modality="MR").geometry.affine, OBLIQUE, rtol=1e-5)


def test_a_sform_that_scales_into_a_template_gives_way_to_the_scanners_qform(tmp_path):
    image = nibabel.Nifti1Image(VALUES.astype(np.int16), OBLIQUE)
    image.set_qform(OBLIQUE, 1)
    image.set_sform(np.diag([2, 2, 2, 1.0]) @ OBLIQUE, 4)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii", modality="MR").geometry.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("handed", [1, -1])
def test_a_qform_alone_is_read_in_either_handedness(tmp_path, handed):
    affine = OBLIQUE @ np.diag([1, 1, handed, 1])
    image = nibabel.Nifti1Image(VALUES.astype(np.int16), None)
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii", modality="MR").geometry.affine, affine, atol=1e-5)


def test_a_fourth_axis_of_one_is_dropped_and_extensions_are_skipped(tmp_path):
    image = nibabel.Nifti1Image(VALUES.astype(np.int16)[..., None], OBLIQUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane" * 50))
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", modality="MR").data, VALUES)


def test_a_gzip_of_several_members_and_with_zeros_after_it_is_read(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES.astype(np.int16), OBLIQUE), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(
        b"".join(gzip.compress(content[at : at + 300]) for at in range(0, len(content), 300)) + bytes(64)
    )
    np.testing.assert_array_equal(read_volume(path, modality="MR").data, VALUES)
    shutil.copy(tmp_path / "a.nii", path)
    np.testing.assert_array_equal(read_volume(path, modality="MR").data, VALUES, "gzip in name only")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_one_hot_map_is_refused_with_the_remedy(tmp_path, kind):
    nibabel.save(kind(np.zeros((*SHAPE, 13), np.uint8), OBLIQUE), tmp_path / "a.nii.gz")
    with pytest.raises(CaseError, match="E_NDIM") as refused:
        read_volume(tmp_path / "a.nii.gz", modality="MR")
    assert "one-hot" in refused.value.hint and "argmax" in refused.value.hint


@pytest.mark.parametrize("row", [(1e200, 0, 0, 0), (1.5, 0, 0, np.inf), (np.inf,) * 4, (-np.inf, 0, 0, np.nan)])
@pytest.mark.parametrize("qform_code", [0, 1])
def test_an_endless_affine_is_refused_without_a_warning(tmp_path, row, qform_code):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti2Image(VALUES.astype(np.int16), np.diag([1.5, 1.25, 2, 1])), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<ii", content, 344, qform_code, 1)
    struct.pack_into("<4d", content, 400, *row)
    struct.pack_into("<d", content, 376, np.inf)  # qoffset_x
    path.write_bytes(content)
    with pytest.raises(CaseError) as refused:
        read_volume(path, modality="MR")
    assert refused.value.code in ("E_AFFINE", "E_SPACING")


@pytest.mark.parametrize("slope, intercept, refused", [(np.nan, 3, False), (0, np.nan, False), (2, np.nan, True)])
def test_a_slope_counts_only_with_an_intercept(tmp_path, slope, intercept, refused):
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(VALUES.astype(np.int16), OBLIQUE), path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, slope, intercept)
    path.write_bytes(content)
    if refused:
        with pytest.raises(CaseError, match="E_HEADER"):
            read_volume(path, modality="MR")
    else:
        np.testing.assert_array_equal(read_volume(path, modality="MR").data, VALUES)


def test_the_other_file_of_a_pair_may_leave_the_folder_only_with_the_first(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "set"
    elsewhere.mkdir()
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Pair(VALUES.astype(np.int16), OBLIQUE), folder / "a.hdr")
    (folder / "a.img").rename(elsewhere / "a.img")
    (folder / "a.img").symlink_to(elsewhere / "a.img")
    with pytest.raises(CaseError, match="E_NOT_FILE"):
        read_volume(folder / "a.hdr", modality="MR")
    (folder / "a.hdr").rename(elsewhere / "a.hdr")
    (folder / "a.hdr").symlink_to(elsewhere / "a.hdr")
    np.testing.assert_array_equal(read_volume(folder / "a.hdr", modality="MR").data, VALUES)
