import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from m3di.volumes.formats import dicom
from m3di.volumes.readers import content_digest, read_volume
from stores.errors import CaseError
from tests.dicoms import PATIENT, patch, write_enhanced, write_report, write_series
from tests.malformed.dicoms import DICOMS
from tests.phantoms import RAS_TO_LPS, ras_affine

ARRAY = np.random.default_rng(1).integers(-1000, 2000, (7, 5, 6)).astype(np.int16)
SPACING = np.diag([1.5, 1.25, 2.0])


def affine_of(axes, origin=(10.0, -20.0, 30.0)):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.array(axes) @ SPACING, origin
    return affine


AFFINES = {
    "axial": affine_of(np.diag([-1, -1, 1])),
    "feet last": affine_of(np.diag([1, -1, -1])),
    "coronal": affine_of([[-1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal": affine_of([[0, 0, -1], [-1, 0, 0], [0, -1, 0]]),
    "oblique": affine_of(np.array([[0, -0.8, 0.6], [1, 0, 0], [0, 0.6, 0.8]]) @ np.diag([1, -1, -1])),
    "double oblique": affine_of(
        np.array([[2, -2, 1], [1, 2, 2], [2, 1, -2]]) / 3 * [[1], [1], [-1]] @ np.diag([1, 1, -1])
    ),
}


def right_handed(affine):
    """In DICOM's axes slices follow one another along rows x columns, whichever way they were written."""
    if np.linalg.det(affine[:3, :3]) > 0:
        return affine, ARRAY
    flipped = affine.copy()
    flipped[:3, 2] *= -1
    flipped[:3, 3] += affine[:3, 2] * (ARRAY.shape[2] - 1)
    return flipped, ARRAY[:, :, ::-1]


@pytest.mark.parametrize("name", AFFINES)
def test_voxels_and_geometry_are_those_that_were_written_and_those_of_simpleitk(tmp_path, name):
    write_series(tmp_path, ARRAY, affine=AFFINES[name])
    volume = read_volume(tmp_path, modality="unknown")
    affine, array = right_handed(AFFINES[name])
    np.testing.assert_array_equal(volume.data, array)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-9)
    assert volume.modality == "CT"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    np.testing.assert_array_equal(volume.data, sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(volume.geometry.spacing_mm, image.GetSpacing(), atol=1e-6)
    lps = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    np.testing.assert_allclose(volume.geometry.affine[:3, :3], RAS_TO_LPS @ lps, atol=1e-6)
    np.testing.assert_allclose(volume.geometry.affine[:3, 3], RAS_TO_LPS @ image.GetOrigin(), atol=1e-6)


def test_neither_names_nor_numbers_nor_thickness_decide_where_slices_lie(tmp_path):
    numbers = [3, 1, 6, 2, 5, 4]

    def change(one, k):
        one.InstanceNumber, one.SliceThickness, one.SpacingBetweenSlices = numbers[k], 5.0, 0.1

    paths = write_series(tmp_path, ARRAY, affine=AFFINES["axial"], change=change)
    for path, name in zip(paths, ("f", "IM_0001", "b.dcm", "1.2.840.55", "0007.IMA", "q.DCM"), strict=True):
        path.rename(tmp_path / name)
    volume = read_volume(tmp_path, modality="CT")
    np.testing.assert_array_equal(volume.data, ARRAY)
    assert volume.geometry.spacing_mm == pytest.approx((1.5, 1.25, 2.0))


def test_a_little_unevenness_is_rounding_and_the_spacing_its_mean(tmp_path):
    def change(one, k):
        one.ImagePositionPatient = [*one.ImagePositionPatient[:2], [30, 32.01, 33.99, 36, 38.01, 40.005][k]]

    write_series(tmp_path, ARRAY, affine=AFFINES["axial"], change=change)
    assert read_volume(tmp_path, modality="CT").geometry.spacing_mm[2] == pytest.approx(10.005 / 5)


@pytest.mark.parametrize("name", ["axial", "oblique"])
@pytest.mark.parametrize("slopes", [None, [1.0, 2.0, 0.5, 3.0, 1.5, 0.25]])
def test_frames_of_an_enhanced_object_are_ordered_in_space_and_rescaled_each(tmp_path, name, slopes):
    path = write_enhanced(tmp_path / "one", ARRAY, affine=AFFINES[name], order=[4, 0, 5, 2, 1, 3], slopes=slopes)
    volume = read_volume(path, modality="CT")
    affine, array = right_handed(AFFINES[name])
    values = ARRAY * np.array(slopes or [1.0] * 6) + (np.arange(6) if slopes else 0)
    np.testing.assert_array_equal(volume.data, values if array is ARRAY else values[:, :, ::-1])
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-9)


def test_frames_in_a_deflated_or_implicit_object_are_read_alike(tmp_path):
    for syntax in (pydicom.uid.DeflatedExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian):
        path = write_enhanced(tmp_path / syntax, ARRAY, affine=AFFINES["axial"], order=[4, 0, 5, 2, 1, 3])
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = syntax
        one.save_as(path, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=True)
        np.testing.assert_array_equal(read_volume(path, modality="CT").data, ARRAY)


def test_series_of_a_folder_are_told_apart_and_chosen_by_member(tmp_path):
    write_series(tmp_path, ARRAY, affine=AFFINES["axial"], series_number=7, modality="MR", prefix="a")
    write_series(tmp_path, ARRAY // 2, affine=AFFINES["axial"], series_number=3, prefix="b")
    write_report(tmp_path / "report.dcm")
    with pytest.raises(CaseError, match=r"number 3 \(CT, 6 files\), number 7 \(MR, 6 files\)") as refused:
        read_volume(tmp_path, modality="CT")
    series = [one for one in dicom.series_in(dicom.files_in(tmp_path)) if one.has_pixels]
    assert [one.number for one in series] == [3, 7]
    assert all(one.uid not in str(refused.value) + refused.value.hint for one in series)
    for one, array, modality in zip(series, (ARRAY // 2, ARRAY), ("CT", "MR"), strict=True):
        volume = read_volume(tmp_path, modality="unknown", member=one.uid)
        np.testing.assert_array_equal(volume.data, array)
        assert volume.modality == modality
    with pytest.raises(CaseError, match="E_SERIES"):
        read_volume(tmp_path, modality="CT", member="1.2.3")


def test_what_is_no_image_lies_beside_a_series_without_harm(tmp_path):
    paths = write_series(tmp_path, ARRAY, affine=AFFINES["axial"])
    digest = content_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "._s001.dcm").write_bytes(b"resource fork")
    (tmp_path / "README").write_text("no suffix")
    (tmp_path / "below").mkdir()
    for name in ("DICOMDIR", "dicomdir"):
        (tmp_path / name).write_bytes(paths[0].read_bytes())
    assert content_digest(tmp_path) == digest
    write_report(tmp_path / "report")
    own = pydicom.dcmread(tmp_path / "report")  # a report may say that it belongs to the images' series
    own.SeriesInstanceUID = pydicom.dcmread(paths[0]).SeriesInstanceUID
    own.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, ARRAY)


def test_a_modality_that_is_no_code_is_not_repeated(tmp_path):
    for number, prefix in ((1, "a"), (2, "b")):
        write_series(tmp_path, ARRAY, affine=AFFINES["axial"], series_number=number, prefix=prefix)
    for path in tmp_path.glob("*.dcm"):
        patch(path, 0x00080060, PATIENT.encode())
    with pytest.raises(CaseError, match=r"number 1 \(unknown, 6 files\)") as refused:
        read_volume(tmp_path, modality="CT")
    assert PATIENT not in str(refused.value)


def test_what_pydicom_says_of_values_stays_unsaid(tmp_path, caplog):
    def change(one, k):
        one.SpecificCharacterSet = "ISO_IR 100"

    for path in write_series(tmp_path, ARRAY, affine=AFFINES["axial"], change=change):
        patch(path, 0x00080005, PATIENT.encode())
    with pytest.warns(UserWarning, match="Jane"):  # what would be said otherwise
        pydicom.dcmread(path)
    assert PATIENT in caplog.text
    caplog.clear()
    read_volume(tmp_path, modality="CT")
    assert not caplog.records


@pytest.mark.parametrize("name", DICOMS)
def test_a_malformed_scan_is_refused_by_code_and_without_the_patient(tmp_path, name, caplog, recwarn, capfd):
    write, code = DICOMS[name]
    path = write(tmp_path)
    recwarn.clear()  # pydicom warns of what is written wrong on purpose
    caplog.clear()
    with pytest.raises(CaseError) as refused:
        read_volume(path, modality="CT")
    assert refused.value.code == code
    assert refused.value.hint
    assert not recwarn.list
    assert not caplog.records
    assert refused.value.__cause__ is None
    told = f"{refused.value} {refused.value.hint} {' '.join(capfd.readouterr())}"
    assert not [secret for secret in (PATIENT, "SECRET", "19500101", pydicom.uid.PYDICOM_ROOT_UID) if secret in told]


@pytest.mark.parametrize(
    "name, said",
    [
        (
            "a missing slice",
            "1 slice is missing, the widest gap between s004.dcm and s002.dcm: 4.000 mm instead of 2",
        ),
        ("two slices with one position", "s002.dcm and s003.dcm lie 0 mm apart: 1 of 5"),
        ("two echoes in one series", "5 of 10 positions are taken twice"),
        ("uneven slices", "1.300 to 2.700 mm apart"),
        ("a slice beside the others", "s003.dcm lies 3.000 mm beside"),
        ("gantry tilt", "15.00 degrees"),
        ("a localizer in the series", "s001.dcm does not fit its series; a localizer: it is turned by 90.0 degrees"),
        ("one slice", "s001.dcm is one slice alone"),
        ("slices of two sizes", "s004.dcm does not fit its series; it has 8 x 6 pixels, the others 40 x 33"),
        ("slices of two spacings", "its pixels are 1.6 x 1.25 mm, those of the others 1.5 x 1.25"),
        ("2^31 - 1 frames", "2147483647 frames without positions"),
        ("an endless position", "no ImagePositionPatient of 3 numbers"),
        ("JPEG Lossless with a strange segment", "holds no JPEG stream"),
        ("two series", "number 3 (CT, 5 files), number 7 (MR, 4 files)"),
    ],
)
def test_a_refusal_says_which_slices_and_how_large(tmp_path, name, said):
    with pytest.raises(CaseError) as refused:
        read_volume(DICOMS[name][0](tmp_path), modality="CT")
    assert said in refused.value.message


@pytest.mark.parametrize(
    "gone, said", [((1, 2), "2 slices are missing"), ((1, 4), "2 slices are missing"), ((2, 3, 4), "3 slices")]
)
def test_all_missing_slices_are_counted(tmp_path, gone, said):
    for k, path in enumerate(write_series(tmp_path, ARRAY, affine=AFFINES["axial"])):
        if k in gone:
            path.unlink()
    with pytest.raises(CaseError, match=said):
        read_volume(tmp_path, modality="CT")


def test_a_localizer_that_lies_as_the_others_do_is_found(tmp_path):
    def change(one, k):
        if k == 5:
            one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path, ARRAY, affine=AFFINES["axial"], change=change)
    with pytest.raises(CaseError, match=r"s001.dcm does not fit its series; a localizer"):
        read_volume(tmp_path, modality="CT")


BOMBS = ("deflate bomb", "half a million items", "sequences 3000 deep", "10^9 frames, five of them described",
         "2^31 - 1 frames", "65535 rows and columns", "20000 rows and columns", "5000 rows and columns",
         "JPEG 2000 of another size", "JPEG 2000 of 300 components", "JPEG Lossless of another size",
         "RLE of a hundred times its pixels")  # fmt: skip
CHILD = """
import sys
from pathlib import Path
from m3di.volumes.readers import read_volume
from stores.errors import CaseError
for path in sys.argv[1:]:
    try:
        read_volume(Path(path), modality="CT")
    except CaseError:
        pass
(peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(peak.split()[1])  # getrusage would count the process that started this one
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_no_bomb_takes_a_gibibyte_of_memory(tmp_path):
    paths = [str(DICOMS[name][0](tmp_path / str(number))) for number, name in enumerate(BOMBS)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(child.stdout) < 1 << 20  # KiB


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_end_in_voxels_or_in_a_case_error(tmp_path, seed):
    random = np.random.default_rng(seed)
    enhanced = write_enhanced(
        tmp_path / "a.dcm", ARRAY, affine=ras_affine((1, 1, 1)), order=range(6), slopes=[2.0] * 6
    )
    content = enhanced.read_bytes()
    refused = 0
    for _ in range(60):
        changed = bytearray(content)
        for at in random.integers(132, len(content) - ARRAY.nbytes, random.integers(1, 8)):
            changed[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.integers(256)])
        enhanced.write_bytes(bytes(changed[: random.choice([len(changed), random.integers(1, len(changed))])]))
        try:
            read_volume(enhanced, modality="CT")
        except CaseError:
            refused += 1
    assert refused > 20
