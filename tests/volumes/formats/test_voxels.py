"""What is read between a header and its voxels: every byte that is declared, and little more."""

import bz2
import gzip
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from m3di.volumes.formats.header import MAX_BYTES, Header, require_file
from m3di.volumes.formats.voxels import SLACK, read_start, read_voxels
from stores.errors import CaseError
from stores.geometry import Geometry

VALUES = np.arange(60, dtype="<i2")
PACK = {
    "raw": bytes,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bzip2": bz2.compress,
}


def written(path, content, *, shape=(3, 4, 5), dtype="<i2", **facts):
    path.write_bytes(content)
    return Header(Geometry(shape, np.eye(4)), np.dtype(dtype), path, **facts)


def refusal(call):
    with pytest.raises(CaseError) as refused:
        call()
    assert refused.value.hint
    return refused.value.code


def zeros(encoding, count):
    """So many MiB of zeros, compressed without being held at once."""
    squeeze = {"gzip": lambda: zlib.compressobj(9, wbits=31), "zlib": lambda: zlib.compressobj(9),
               "bzip2": lambda: bz2.BZ2Compressor(9)}[encoding]()  # fmt: skip
    block = bytes(1 << 20)
    return b"".join(squeeze.compress(block) for _ in range(count)) + squeeze.flush()


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("order", "FC")
def test_voxels_after_an_offset_are_read_in_either_order(tmp_path, encoding, order):
    content = b"before" + PACK[encoding](b"header" + VALUES.tobytes() + b"after")
    at = {"offset": 12, "compressed_from": 0} if encoding == "raw" else {"offset": 6, "compressed_from": 6}
    voxels = read_voxels(written(tmp_path / "a", content, encoding=encoding, order=order, **at))
    np.testing.assert_array_equal(voxels, VALUES.reshape(3, 4, 5, order=order))


@pytest.mark.parametrize("encoding", ["gzip", "zlib", "bzip2"])
def test_members_in_a_row_and_zeros_after_them_are_read(tmp_path, encoding):
    content = VALUES.tobytes()
    parts = b"".join(PACK[encoding](part) for part in (content[:7], b"", content[7:50], content[50:]))
    np.testing.assert_array_equal(
        read_voxels(written(tmp_path / "a", parts + bytes(600_000), encoding=encoding)).ravel(order="F"), VALUES
    )
    assert refusal(lambda: read_voxels(written(tmp_path / "a", parts + b"rubbish", encoding=encoding))) == "E_CORRUPT"


@pytest.mark.parametrize("encoding, where", [("gzip", -8), ("gzip", -2), ("zlib", -1), ("bzip2", -3)])
def test_a_wrong_checksum_or_length_after_the_voxels_counts(tmp_path, encoding, where):
    content = bytearray(PACK[encoding](VALUES.tobytes()))
    content[where] ^= 4
    assert refusal(lambda: read_voxels(written(tmp_path / "a", content, encoding=encoding))) == "E_CORRUPT"


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("missing", [1, 8, 20])
def test_a_file_that_is_cut_is_refused(tmp_path, encoding, missing):
    content = PACK[encoding](VALUES.tobytes())[:-missing]
    assert refusal(lambda: read_voxels(written(tmp_path / "a", content, encoding=encoding))) == "E_TRUNCATED"


@pytest.mark.parametrize("encoding", ["gzip", "zlib", "bzip2"])
def test_a_bomb_is_given_up_after_a_megabyte(tmp_path, encoding):
    header = written(tmp_path / "a", zeros(encoding, 64), encoding=encoding)
    tracemalloc.start()
    assert refusal(lambda: read_voxels(header)) == "E_TOO_LARGE"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    "shape, code", [((1 << 12, 1 << 12, 8), "E_TRUNCATED"), ((1 << 13, 1 << 13, 9), "E_TOO_LARGE")]
)
@pytest.mark.parametrize("encoding", ["raw", "gzip", "zlib"])
def test_more_than_the_file_can_hold_is_refused_before_memory_is_taken(tmp_path, encoding, shape, code):
    header = written(tmp_path / "a", PACK[encoding](VALUES.tobytes()), shape=shape, encoding=encoding)
    assert (header.num_bytes > MAX_BYTES) == (code == "E_TOO_LARGE")
    tracemalloc.start()
    assert refusal(lambda: read_voxels(header)) == code
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_zeros_that_compress_as_well_as_zeros_can_are_read(tmp_path):
    header = written(tmp_path / "a", zeros("gzip", 4), shape=(128, 128, 128), encoding="gzip")
    assert not read_voxels(header).any()


def test_a_raw_file_may_have_a_little_after_its_voxels(tmp_path):
    content = VALUES.tobytes()
    np.testing.assert_array_equal(read_voxels(written(tmp_path / "a", content + bytes(SLACK))).ravel("F"), VALUES)
    assert refusal(lambda: read_voxels(written(tmp_path / "a", content + bytes(SLACK + 1)))) == "E_TOO_LARGE"


@pytest.mark.parametrize("dtype", ["<u1", ">i2", "<i4", ">f4", "<f8", ">u8"])
def test_slope_and_intercept_are_applied_in_double_precision(tmp_path, dtype):
    values = np.arange(60).astype(dtype)
    header = written(tmp_path / "a", values.tobytes(), dtype=dtype, slope=0.1, intercept=-1000.5)
    voxels = read_voxels(header)
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels.ravel(order="F"), np.float32(np.arange(60) * 0.1 - 1000.5))


def test_values_that_a_slope_makes_too_large_are_infinite_without_a_warning(tmp_path):
    header = written(tmp_path / "a", np.arange(60, dtype="<f8").tobytes(), dtype="<f8", slope=1e308)
    assert np.isinf(read_voxels(header)).sum() == 59


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_start_of_a_file_is_its_first_bytes_decompressed(tmp_path, pack):
    (tmp_path / "a").write_bytes(pack(VALUES.tobytes()))
    assert read_start(tmp_path / "a", 10) == (VALUES.tobytes()[:10], pack is gzip.compress)
    assert read_start(tmp_path / "a", 1000)[0] == VALUES.tobytes()


def test_a_name_that_no_file_can_have_is_missing(tmp_path):
    for name in ("x" * 300, "a\0b", "loop"):
        if name == "loop":
            (tmp_path / name).symlink_to(name)
        assert refusal(lambda name=name: require_file(tmp_path / name)) == "E_MISSING"


def test_a_gzip_header_that_promises_a_name_and_ends_is_cut(tmp_path):
    content = struct.pack("<2sBBIBB", b"\x1f\x8b", 8, 8, 0, 0, 3) + b"name without an end"
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert refusal(lambda: read_start(tmp_path / "a.nii.gz", 348)) == "E_TRUNCATED"


def test_scaling_numbers_of_four_bytes_takes_no_second_array(tmp_path):
    values = np.arange(128**3, dtype="<i4")
    header = written(tmp_path / "a", values.tobytes(), shape=(128, 128, 128), dtype="<i4", slope=2.0)
    tracemalloc.start()
    voxels = read_voxels(header)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(voxels.ravel(order="F"), values * 2)
    assert peak < 1.5 * values.nbytes
