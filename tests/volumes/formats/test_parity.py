"""NRRD, MetaImage, MGH and npy against the libraries that write them."""

import bz2
import gzip
import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from m3di.volumes.formats.npy import medmnist_arrays
from m3di.volumes.readers import content_digest, read_volume
from stores.errors import CaseError
from tests.malformed.files import MHA, NRRD

SHAPE, SPACING = (5, 6, 7), (1.5, 1.25, 2.0)
VALUES = np.random.default_rng(0).integers(0, 100, SHAPE)
ROTATION = Rotation.from_euler("xyz", (0.3, -0.5, 1.1)).as_matrix()
ORIGIN = (10.0, -20.0, 30.0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = ROTATION * SPACING, ORIGIN  # in LPS, ITK's world
READ = {"modality": "MR"}


def itk_file(path, dtype=np.int16, *, compressed=False):
    image = sitk.GetImageFromArray(np.ascontiguousarray(VALUES.T.astype(dtype)))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(ROTATION.ravel().tolist())
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("end", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_what_itk_writes_is_read_with_its_place_in_space(tmp_path, end, compressed, dtype):
    volume = read_volume(itk_file(tmp_path / f"a{end}", dtype, compressed=compressed), **READ)
    np.testing.assert_array_equal(volume.data, VALUES)
    np.testing.assert_allclose(volume.geometry.affine, LPS @ AFFINE, atol=1e-6)


@pytest.mark.parametrize("end", [".nhdr", ".mhd"])
def test_the_digest_of_a_header_covers_its_voxels(tmp_path, end):
    path = itk_file(tmp_path / f"a{end}")
    before = content_digest(path)
    (voxels,) = (file for file in tmp_path.iterdir() if file != path)
    voxels.write_bytes(bytes([voxels.read_bytes()[0] ^ 1]) + voxels.read_bytes()[1:])
    assert content_digest(path) != before


@pytest.mark.parametrize(
    "space, signs", [("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("lps", (-1, -1, 1))]
)
def test_nrrd_spaces_and_units(tmp_path, space, signs):
    content = NRRD.replace(b"left-posterior-superior", space.encode())
    content = content.replace(b"(1,0,0) (0,1,0)", b"(1,0,0) (0,2,0)").replace(b"(0,0,0)", b"(3,4,5)")
    content = content.replace(b"encoding", b'space units: "cm" "cm" "cm"\nencoding')
    (tmp_path / "a.nrrd").write_bytes(content)
    affine = read_volume(tmp_path / "a.nrrd", **READ).geometry.affine
    np.testing.assert_allclose(affine[:3, 3], np.multiply(signs, (30, 40, 50)))
    np.testing.assert_allclose(affine[:3, :3], np.diag(np.multiply(signs, (10, 20, 10))))


@pytest.mark.parametrize("name, content", [("a.nrrd", NRRD), ("a.mha", MHA)])
def test_big_endian_voxels(tmp_path, name, content):
    values = np.arange(64, dtype=">i2")
    flag = (
        (b"endian: little", b"endian: big")
        if name == "a.nrrd"
        else (b"Image\n", b"Image\nElementByteOrderMSB = True\n")
    )
    (tmp_path / name).write_bytes(content[:-128].replace(*flag) + values.tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / name, **READ).data.ravel(order="F"), values)


def test_an_encoding_by_gzip_or_bzip2_of_an_attached_nrrd(tmp_path):
    for encoding, squeeze in (("gzip", gzip.compress), ("bzip2", bz2.compress)):
        (tmp_path / "a.nrrd").write_bytes(NRRD[:-128].replace(b"raw", encoding.encode()) + squeeze(NRRD[-128:]))
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nrrd", **READ).data.ravel(order="F"), np.arange(64))


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("end", [".mgh", ".mgz"])
def test_mgh_is_as_nibabel_writes_it(tmp_path, end, dtype):
    nibabel.save(nibabel.MGHImage(VALUES.astype(dtype), AFFINE), tmp_path / f"a{end}")
    volume = read_volume(tmp_path / f"a{end}", **READ)
    np.testing.assert_array_equal(volume.data, VALUES)
    np.testing.assert_allclose(volume.geometry.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f4", ">f8"])
def test_npy_lies_where_its_sidecar_says(tmp_path, dtype, order):
    np.save(tmp_path / "a.npy", np.asarray(VALUES, dtype, order=order))
    (tmp_path / "a.json").write_text(json.dumps({"affine": AFFINE.tolist()}))
    volume = read_volume(tmp_path / "a.npy", **READ)
    np.testing.assert_array_equal(volume.data, VALUES)
    np.testing.assert_array_equal(volume.geometry.affine, AFFINE)
    before = content_digest(tmp_path / "a.npy")
    (tmp_path / "a.json").write_text(json.dumps({"affine": np.eye(4).tolist()}))
    assert content_digest(tmp_path / "a.npy") != before, "the sidecar counts"


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_objects_in_arrays_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Bomb()] * 8, object).reshape(2, 2, 2), allow_pickle=True)
    (tmp_path / "a.json").write_text(json.dumps({"affine": AFFINE.tolist()}))
    np.savez(tmp_path / "b.npz", train_images=np.array([Bomb()] * 8, object).reshape(1, 2, 2, 2))
    for call in (lambda: read_volume(tmp_path / "a.npy", **READ), lambda: medmnist_arrays(tmp_path / "b.npz")):
        with pytest.raises(CaseError) as refused:
            call()
        assert refused.value.code == "E_DTYPE"


def test_a_volume_of_a_medmnist_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 4, 5, 6), dtype=np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "b.npz", train_images=images, train_labels=np.zeros((3, 1)))
        volume = read_volume(tmp_path / "b.npz", modality="CT", member="train_images:2")
        np.testing.assert_array_equal(volume.data, images[2])
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[200] ^= 1
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(CaseError, match="E_CORRUPT"):
        read_volume(tmp_path / "c.npz", modality="CT", member="train_images:2")
