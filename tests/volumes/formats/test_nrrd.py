import gzip

import numpy as np
import pytest

from m3di.volumes.readers import read_volume
from stores.errors import CaseError
from tests.malformed.files import NRRD

VALUES = np.arange(64)


def read(path, content):
    path.write_bytes(content)
    return read_volume(path, modality="MR")


def changed(*changes):
    content = NRRD
    for old, new in changes:
        assert old in content
        content = content.replace(old, new, 1)
    return content


@pytest.mark.parametrize(
    "line",
    ["# Å, a comment\n", "Segment0_Name:=Å organ\n", "content: a\r\n", "kinds: domain domain domain\n",
     "line skip: 0\nbyte skip: 0\n", "x:=" + "y" * 200_000 + "\n"],
    ids=lambda line: line[:12],
)  # fmt: skip
def test_lines_that_say_nothing_of_the_voxels_are_passed_over(tmp_path, line):
    content = changed((b"type", line.encode() + b"type"))
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd", content).data.ravel(order="F"), VALUES)


@pytest.mark.parametrize(
    "sizes, axes", [("1 4 4 4", "none {}"), ("4 4 4 1", "{} none"), ("4 4 1 4", "{} {} none {}")]
)
def test_an_axis_outside_space_of_one_value_is_dropped_wherever_it_is(tmp_path, sizes, axes):
    directions = [b"(1,0,0)", b"(0,2,0)", b"(0,0,3)"]
    if axes.count("{}") == 1:
        text = axes.encode().replace(b"{}", b" ".join(directions))
    else:
        text = b"%s %s none %s" % tuple(directions)
    content = changed(
        (b"dimension: 3", b"dimension: 4"),
        (b"sizes: 4 4 4", b"sizes: " + sizes.encode()),
        (b"(1,0,0) (0,1,0) (0,0,1)", text),
    )
    volume = read(tmp_path / "a.nrrd", content)
    assert volume.geometry.spacing_mm == (1, 2, 3)
    np.testing.assert_array_equal(volume.data.ravel(order="F"), VALUES)


@pytest.mark.parametrize("sizes", ["4 4 4 1", "2 4 4 2", "1 4 4 4"])
def test_colours_of_one_slice_are_no_volume(tmp_path, sizes):
    """The first axis holds colours, whatever the sizes suggest."""
    content = changed(
        (b"dimension: 3", b"dimension: 4"),
        (b"sizes: 4 4 4", b"sizes: " + sizes.encode()),
        (b"space directions: ", b"space directions: none " if sizes[0] != "1" else b"space directions: "),
    )
    with pytest.raises(CaseError, match="E_NDIM") as refused:
        read(tmp_path / "a.nrrd", content)
    assert "argmax" in refused.value.hint


@pytest.mark.parametrize("name", ["beside.raw", "./beside.raw", "below/it.raw", "ö.raw"])
def test_a_detached_header_finds_its_voxels(tmp_path, name):
    (tmp_path / "below").mkdir()
    (tmp_path / name).write_bytes(NRRD[-128:])
    content = changed((b"encoding: raw", f"encoding: raw\ndata file: {name}".encode()))[:-128]
    np.testing.assert_array_equal(read(tmp_path / "a.nhdr", content).data.ravel(order="F"), VALUES)


def test_voxels_may_be_a_link_out_of_the_folder_only_where_the_header_is_one(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "set"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "a.raw").write_bytes(NRRD[-128:])
    (folder / "a.raw").symlink_to(elsewhere / "a.raw")
    content = changed((b"encoding: raw", b"encoding: raw\ndata file: a.raw"))[:-128]
    with pytest.raises(CaseError, match="E_NOT_FILE"):
        read(folder / "a.nhdr", content)
    (folder / "a.nhdr").rename(elsewhere / "a.nhdr")
    (folder / "a.nhdr").symlink_to(elsewhere / "a.nhdr")
    np.testing.assert_array_equal(read_volume(folder / "a.nhdr", modality="MR").data.ravel(order="F"), VALUES)


def test_what_a_header_says_reaches_messages_short_and_escaped(tmp_path):
    for field, old in ((b"encoding", b"raw"), (b"type", b"short"), (b"space", b"left-posterior-superior"),
                       (b"dimension", b"3")):  # fmt: skip
        with pytest.raises(CaseError) as refused:
            read(tmp_path / "a.nrrd", changed((field + b": " + old, field + b": \x1b[31m\xff" + b"x" * 3000)))
        assert refused.value.message.isprintable()
        assert len(refused.value.message) < len(str(tmp_path)) + 200


def test_a_nrrd_in_a_gzip_is_not_taken_for_voxels(tmp_path):
    noise = np.random.default_rng(0).bytes(128)
    with pytest.raises(CaseError, match="E_FORMAT"):
        read(tmp_path / "a.nrrd", gzip.compress(NRRD[:-128] + noise) + bytes(500))
