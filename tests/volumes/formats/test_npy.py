"""Arrays of numpy whose header, sidecar or archive is not as numpy writes it."""

import io
import json
import zipfile

import numpy as np
import pytest

from m3di.volumes.formats.npy import medmnist_arrays
from m3di.volumes.readers import read_volume
from stores.errors import CaseError
from tests.malformed.files import npy_bytes

HEADER = "{'descr': '<i2', 'fortran_order': False, 'shape': (4, 4, 4)}"
VOXELS = np.arange(64, dtype="<i2").tobytes()
ROWS = [[2.0, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]]


def read(folder, *, header=HEADER, affine=None, voxels=VOXELS):
    (folder / "a.npy").write_bytes(npy_bytes(header, voxels))
    (folder / "a.json").write_text(json.dumps({"affine": ROWS if affine is None else affine}))
    return read_volume(folder / "a.npy", modality="MR")


def refusal(call):
    with pytest.raises(CaseError) as refused:
        call()
    assert refused.value.hint
    return refused.value.code


@pytest.mark.parametrize("shape", ["(1e999, 4, 4)", "(4.0, 4, 4)", "'444'", "('4', '4', '4')", "4", "None"])
def test_a_shape_of_anything_but_whole_numbers_is_refused(tmp_path, shape):
    assert refusal(lambda: read(tmp_path, header=HEADER.replace("(4, 4, 4)", shape))) == "E_HEADER"


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("version", [1, 2])
def test_a_header_of_no_bytes_does_not_read_the_file_to_its_end(tmp_path, length, version):
    content = b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(2 if version == 1 else 4, "little")
    (tmp_path / "a.npy").write_bytes(content + bytes(500))
    assert refusal(lambda: read_volume(tmp_path / "a.npy", modality="MR")) == "E_HEADER"
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", content + bytes(1 << 20))
    assert refusal(lambda: medmnist_arrays(tmp_path / "a.npz")) == "E_HEADER"


def test_truth_values_are_read_as_numbers(tmp_path):
    volume = read(tmp_path, header=HEADER.replace("<i2", "|b1"), voxels=bytes([0, 1] * 32))
    assert volume.data.dtype == np.uint8
    np.testing.assert_array_equal(volume.data.ravel(), [0, 1] * 32)


@pytest.mark.parametrize(
    "affine",
    [
        ROWS[:3],
        np.reshape(ROWS, (2, 8)).tolist(),
        np.transpose(ROWS).tolist(),
        [*ROWS[:3], [0, 0, 0, 2]],
        [[10**400, 0, 0, 0], *ROWS[1:]],
        [["x", 0, 0, 0], *ROWS[1:]],
        [[2.0], [0, 2]],
        {"a": 1},
    ],
    ids=lambda affine: str(affine)[:30],
)
def test_a_sidecar_without_an_affine_is_refused(tmp_path, affine):
    assert refusal(lambda: read(tmp_path, affine=affine)) == "E_AFFINE"


def test_an_affine_that_overflows_is_refused_without_a_warning(tmp_path):
    assert refusal(lambda: read(tmp_path, affine=[[1e200, 0, 0, 0], *ROWS[1:]])) == "E_SPACING"


def archive_of(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_a_volume_with_nan_is_cleaned_and_leaves_the_others_as_they_are(tmp_path, dtype):
    images = np.random.default_rng(0).random((3, 4, 4, 4)).astype(dtype)
    images[1, 0, 0, 0] = np.nan
    path = archive_of(tmp_path / "a.npz", train_images=images)
    volume = read_volume(path, modality="MR", member="train_images:1")
    assert volume.num_non_finite == 1
    assert volume.data.dtype.isnative
    np.testing.assert_array_equal(read_volume(path, modality="MR", member="train_images:2").data, images[2])
    assert read_volume(path, modality="MR", member="train_images:1").num_non_finite == 1


@pytest.mark.parametrize(
    "member, code", [("", "E_FORMAT"), ("train_images", "E_NDIM"), ("train_images:3", "E_NDIM"),
                     ("train_images:-1", "E_NDIM"), ("train_images:x", "E_NDIM"), ("other:0", "E_FORMAT")]
)  # fmt: skip
def test_a_member_that_is_not_there_is_refused(tmp_path, member, code):
    path = archive_of(tmp_path / "a.npz", train_images=np.random.default_rng(0).random((3, 4, 4, 4)))
    assert refusal(lambda: read_volume(path, modality="MR", member=member)) == code


def test_an_archive_that_is_missing_or_a_folder_is_refused(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    for name, code in (("nowhere.npz", "E_MISSING"), ("folder.npz", "E_NOT_FILE")):
        assert refusal(lambda name=name: read_volume(tmp_path / name, modality="MR", member="train_images:0")) == code


def entry_patched(offset, value):
    """An archive with one byte of its entry's two headers changed; the local one lies two bytes before."""
    stream = io.BytesIO()
    np.savez(stream, train_images=np.random.default_rng(0).random((2, 4, 4, 4)))
    content = bytearray(stream.getvalue())
    content[content.index(b"PK\1\2") + offset] = value
    content[content.index(b"PK\3\4") + offset - 2] = value
    return bytes(content)


@pytest.mark.parametrize("offset, value", [(8, 1), (10, 12), (10, 14), (10, 99)], ids=["locked", "bz2", "lzma", "99"])
def test_an_archive_that_numpy_would_not_write_is_refused(tmp_path, offset, value):
    (tmp_path / "a.npz").write_bytes(entry_patched(offset, value))
    assert refusal(lambda: medmnist_arrays(tmp_path / "a.npz")) == "E_FORMAT"
    read = lambda: read_volume(tmp_path / "a.npz", modality="MR", member="train_images:0")  # noqa: E731
    assert refusal(read) == "E_CORRUPT"


def test_a_bomb_in_bzip2_is_not_expanded(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("train_images.npy", npy_bytes(HEADER) + bytes(1 << 24))
    assert refusal(lambda: medmnist_arrays(tmp_path / "a.npz")) == "E_FORMAT"


def test_bytes_after_an_array_are_refused_as_they_escape_the_checksum(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", npy_bytes(HEADER.replace("(4, 4, 4)", "(1, 4, 4, 4)"), VOXELS + b"more"))
    read = lambda: read_volume(tmp_path / "a.npz", modality="MR", member="train_images:0")  # noqa: E731
    assert refusal(read) == "E_CORRUPT"
