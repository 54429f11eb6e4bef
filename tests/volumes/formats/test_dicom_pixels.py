from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from m3di.volumes.formats.dicom_pixels import MAX_BYTES, MAX_FRAME_BYTES
from m3di.volumes.formats.header import MAX_VOXELS
from m3di.volumes.readers import read_volume
from stores.errors import CaseError
from tests.dicoms import compress, patch, put_encoded, store_values, write_enhanced, write_series
from tests.phantoms import ras_affine

SHAPE = (37, 34, 4)
AFFINE = ras_affine((1.5, 1.25, 2.0))
ZEROS = np.zeros(SHAPE, np.int16)
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
TYPES = [(8, 8, False), (8, 8, True), (12, 16, False), (12, 16, True), (16, 16, False), (16, 16, True)]


def values_of(stored, *, signed, seed=0):
    """Every kind of number that fits, the ends among them."""
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    values = np.random.default_rng(seed).integers(low, high, SHAPE, endpoint=True)
    values[0, 0], values[1, 0] = low, high
    return values


def write(folder, values, *, stored=16, allocated=16, signed=True, change=lambda one, k: None, modality="MR"):
    def put(one, k):
        store_values(one, values[:, :, k].T, stored=stored, signed=signed, allocated=allocated)
        change(one, k)

    return write_series(folder, ZEROS, affine=AFFINE, change=put, modality=modality)


def padded(value, limit=None, vr="SS"):
    def change(one, k):
        one.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            one.add_new("PixelPaddingRangeLimit", vr, limit)

    return change


@pytest.mark.parametrize("stored, allocated, signed", TYPES)
@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS], ids=lambda syntax: syntax.keyword)
def test_every_lossless_syntax_gives_the_voxels_that_were_stored(tmp_path, syntax, stored, allocated, signed):
    values = values_of(stored, signed=signed)
    for path in write(tmp_path, values, stored=stored, allocated=allocated, signed=signed):
        if syntax in LOSSLESS:
            compress(path, syntax)
            continue
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:  # pydicom leaves the pixels as they are; 8-bit ones under OB need no swap
            one.PixelData = np.frombuffer(one.PixelData, f"u{allocated // 8}").byteswap().tobytes()
        pydicom.dcmwrite(
            path,
            one,
            overwrite=True,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax != ExplicitVRBigEndian,
        )
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, values)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("stored, allocated", [(12, 16), (13, 16), (7, 8)])
def test_signed_values_in_streams_that_know_no_sign_or_more_bits(tmp_path, syntax, stored, allocated):
    """Streams of all allocated bits where fewer are declared, and unsigned ones where signed values are."""
    values = values_of(stored, signed=True)
    sign_bit = 1 << stored - 1
    for path in write(tmp_path, values & (2 * sign_bit - 1), stored=allocated, allocated=allocated, signed=False):
        compress(path, syntax)
        one = pydicom.dcmread(path)
        one.BitsStored, one.HighBit, one.PixelRepresentation = stored, stored - 1, 1
        one.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, values)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLosslessSV1], ids=["native", "RLE", "JPEG Lossless"])
@pytest.mark.parametrize("signed", [False, True])
def test_what_lies_above_the_stored_bits_does_not_count(tmp_path, syntax, signed):
    values = values_of(12, signed=signed)
    garbage = (values & 0xFFF) | np.random.default_rng(5).integers(0, 16, SHAPE) << 12
    for path in write(tmp_path, garbage.astype(np.uint16), stored=16, signed=False):
        if syntax is not None:
            compress(path, syntax)
        one = pydicom.dcmread(path)
        one.BitsStored, one.HighBit, one.PixelRepresentation = 12, 11, int(signed)
        one.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, values)


def test_jpeg_with_loss_is_read_within_its_loss(tmp_path):
    i, j, k = np.indices(SHAPE)
    values = 60 + 2 * i + 3 * j + k
    for path in write(tmp_path, values, stored=8, allocated=8, signed=False):
        compress(path, JPEGBaseline8Bit)
    assert np.abs(read_volume(tmp_path, modality="CT").data - values).max() <= 4


def test_extended_jpeg_of_twelve_bits_gives_the_values_that_pydicoms_own_tests_expect(tmp_path):
    sample = pydicom.dcmread(Path(pydicom.__file__).parent / "data/test_files/JPGExtended.dcm")
    stream = next(generate_frames(sample.PixelData, number_of_frames=1))
    for k in range(2):
        sample.ImagePositionPatient, sample.ImageOrientationPatient = [0, 0, k], [1, 0, 0, 0, 1, 0]
        sample.PixelSpacing, sample.RescaleSlope, sample.RescaleIntercept = [1, 1], 1, 0
        put_encoded(sample, encapsulate([stream]), JPEGExtended12Bit, tmp_path / f"{k}.dcm")
    data = read_volume(tmp_path, modality="CT").data
    assert data.shape == (256, 1024, 2)
    assert (data[140, 420] == 244).all()
    assert (data[120, 230] == 95).all()


def streams_of(folder, values, syntax):
    """The compressed stream of each slice."""
    slices = [pydicom.dcmread(compress(path, syntax)) for path in write(folder / "single", values)]
    return [next(generate_frames(one.PixelData, number_of_frames=1)) for one in slices]


@pytest.mark.parametrize("has_offsets", [True, False])
@pytest.mark.parametrize(  # RLE has one fragment a frame (PS3.5 A.4.2)
    "syntax, pieces",
    [(JPEGLSLossless, 1), (JPEGLSLossless, 3), (JPEGLosslessSV1, 3), (JPEG2000Lossless, 3), (RLELossless, 1)],
)
def test_frames_are_found_in_fragments_with_and_without_an_offset_table(tmp_path, syntax, pieces, has_offsets):
    values = values_of(16, signed=True).astype(np.int16)
    streams = streams_of(tmp_path, values, syntax)
    order = [2, 0, 3, 1]
    path = write_enhanced(tmp_path / "a.dcm", values, affine=AFFINE, order=order)
    encapsulated = encapsulate([streams[k] for k in order], fragments_per_frame=pieces, has_bot=has_offsets)
    put_encoded(pydicom.dcmread(path), encapsulated, syntax, path)
    np.testing.assert_array_equal(read_volume(path, modality="CT").data, values)


@pytest.mark.parametrize("kept, code", [(3, "E_TRUNCATED"), (5, "E_CORRUPT")])
def test_another_number_of_frames_than_declared_is_refused(tmp_path, kept, code):
    streams = streams_of(tmp_path, values_of(16, signed=True), JPEGLSLossless)
    path = write_enhanced(tmp_path / "a.dcm", ZEROS, affine=AFFINE, order=range(4))
    put_encoded(pydicom.dcmread(path), encapsulate([*streams, streams[0]][:kept]), JPEGLSLossless, path)
    with pytest.raises(CaseError, match=code):
        read_volume(path, modality="CT")


def test_an_extended_offset_table_is_used(tmp_path):
    values = values_of(16, signed=True).astype(np.int16)
    streams = streams_of(tmp_path, values, JPEGLSLossless)
    path = write_enhanced(tmp_path / "a.dcm", values, affine=AFFINE, order=range(4))
    one = pydicom.dcmread(path)
    data, one.ExtendedOffsetTable, one.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    put_encoded(one, data, JPEGLSLossless, path)
    np.testing.assert_array_equal(read_volume(path, modality="CT").data, values)


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    values = values_of(16, signed=False)
    slopes, intercepts = [0.5, 2.0, 1.25, 3.0], [-1024.0, 0.0, 10.0, -7.5]

    def change(one, k):
        one.RescaleSlope, one.RescaleIntercept = slopes[k], intercepts[k]

    write(tmp_path, values, signed=False, change=change)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="PT").data, values * slopes + intercepts)


def test_an_intercept_counts_without_a_slope(tmp_path):
    values = values_of(12, signed=False)
    write(tmp_path, values, signed=False, change=lambda one, k: setattr(one, "RescaleIntercept", -1024))
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, values - 1024)


@pytest.mark.parametrize("stored, allocated, signed, top", [(12, 16, False, 4095), (8, 8, False, 255),
                                                            (12, 16, True, -1), (16, 16, True, -1)])  # fmt: skip
def test_monochrome1_is_inverted_within_its_stored_range_and_then_rescaled(tmp_path, stored, allocated, signed, top):
    """The darkest number of the range becomes the brightest: 0 and 4095, or -2048 and 2047, change places."""
    values = values_of(stored, signed=signed)
    slopes = [1.0, 2.0, 0.5, 4.0]

    def change(one, k):
        one.PhotometricInterpretation = "MONOCHROME1"
        one.RescaleSlope, one.RescaleIntercept = slopes[k], -100

    write(tmp_path, values, stored=stored, allocated=allocated, signed=signed, change=change)
    data = read_volume(tmp_path, modality="MR").data
    np.testing.assert_array_equal(data, (top - values) * slopes - 100)
    np.testing.assert_array_equal(data[0, 0], values[1, 0] * np.array(slopes) - 100)


@pytest.mark.parametrize(
    "change, count",
    [
        (padded(-2000), 4 * 9),
        (padded(63536, vr="US"), 4 * 9),  # as some scanners write -2000 by mistake
        (padded(-2000, -1990), 4 * 9 + 3),
        (padded(-1990, -2000), 4 * 9 + 3),
        (padded(77), 0),
    ],
)
def test_padding_is_counted_and_holds_the_smallest_other_value_of_its_slice(tmp_path, change, count):
    values = np.random.default_rng(3).integers(-900, 900, SHAPE)
    values[values == 77] = 78
    values[:3, :3] = -2000
    values[5, 0, 1], values[6, 0, 1], values[7, 0, 2] = -1990, -1995, -1999
    write(tmp_path, values, change=change)
    volume = read_volume(tmp_path, modality="MR")
    assert volume.num_padding == count
    if count == 0:
        np.testing.assert_array_equal(volume.data, values)
        return
    is_padding = values == -2000 if count == 36 else values <= -1990
    np.testing.assert_array_equal(volume.data[~is_padding], values[~is_padding])
    for k in range(SHAPE[2]):
        smallest = values[:, :, k][~is_padding[:, :, k]].min()
        assert (volume.data[:, :, k][is_padding[:, :, k]] == smallest).all()


def test_padding_without_its_tag_is_left_to_the_modality(tmp_path):
    values = values_of(12, signed=True)
    values[:2] = -2000
    write(tmp_path, values, modality="CT")
    assert read_volume(tmp_path, modality="unknown").num_padding >= 2 * SHAPE[1] * 4


def test_a_slice_that_is_all_padding_holds_the_smallest_value_of_the_others(tmp_path):
    values = np.random.default_rng(3).integers(-900, 900, SHAPE)
    values[:, :, 3] = -2000
    write(tmp_path, values, change=padded(-2000))
    volume = read_volume(tmp_path, modality="CT")
    assert volume.num_padding == SHAPE[0] * SHAPE[1]
    assert (volume.data[:, :, 3] == values[:, :, :3].min()).all()


def test_padding_of_an_inverted_series_is_found_before_it_is_inverted(tmp_path):
    values = np.random.default_rng(3).integers(1, 4000, SHAPE)
    values[0] = 0

    def change(one, k):
        padded(0, vr="US")(one, k)
        one.PhotometricInterpretation = "MONOCHROME1"

    write(tmp_path, values, stored=12, signed=False, change=change)
    volume = read_volume(tmp_path, modality="MR")
    assert volume.num_padding == SHAPE[1] * 4
    assert volume.data.max() == 4095 - values[1:].min()
    np.testing.assert_array_equal(volume.data[0, 0], 4095 - values[1:].max(axis=(0, 1)))


@pytest.mark.parametrize("keyword, code, bits", [("FloatPixelData", "f4", 32), ("DoubleFloatPixelData", "f8", 64)])
def test_real_numbers_are_read(tmp_path, keyword, code, bits):
    values = np.random.default_rng(2).normal(0, 1, SHAPE).astype(np.float32)

    def change(one, k):
        del one.PixelData, one.PixelRepresentation, one.BitsStored, one.HighBit
        one.BitsAllocated = bits
        setattr(one, keyword, values[:, :, k].T.astype(f"<{code}").tobytes())

    write_series(tmp_path, ZEROS, affine=AFFINE, change=change)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="MR").data, values)


def test_whole_numbers_of_32_bits_are_read(tmp_path):
    values = np.random.default_rng(2).integers(-(2**23), 2**23, SHAPE)
    write(tmp_path, values, stored=32, allocated=32)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="MR").data, values)


def test_a_slope_in_words_is_refused_without_being_repeated(tmp_path):
    paths = write(tmp_path, values_of(12, signed=True), change=lambda one, k: setattr(one, "RescaleSlope", 1))
    patch(paths[1], 0x00281053, b"Doe^Jane")
    with pytest.raises(CaseError, match="E_HEADER") as refused:
        read_volume(tmp_path, modality="CT")
    assert "Doe" not in str(refused.value)


def test_bytes_after_the_pixels_do_no_harm(tmp_path):
    values = values_of(16, signed=True)

    def change(one, k):
        one.PixelData += bytes(64)
        one.DataSetTrailingPadding = bytes(128)

    write(tmp_path, values, change=change)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, values)


def test_limits_leave_room_for_the_largest_scan_and_no_more_than_the_budget():
    """A whole file, its pixels as float32 and four copies of a frame, beside half a gibibyte of code."""
    assert MAX_BYTES >= 2 * MAX_VOXELS
    assert 1.125 * MAX_BYTES + 4 * MAX_VOXELS + 4 * MAX_FRAME_BYTES + (1 << 29) < 2.5e9


def test_a_table_of_values_in_another_group_is_no_reason_to_refuse(tmp_path):
    def change(one, k):
        one.VOILUTSequence = [Dataset()]

    values = values_of(16, signed=True)
    write(tmp_path, values, change=change)
    np.testing.assert_array_equal(read_volume(tmp_path, modality="CT").data, values)
