import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from m3di.volumes.cases import LabelMap
from m3di.volumes.formats.png import read_masks
from m3di.volumes.readers import read_label, read_volume
from stores.errors import CaseError
from tests.dicoms import write_enhanced, write_series
from tests.phantoms import ras_affine

SHAPE = (7, 5, 12)
SCAN = np.arange(7 * 5 * 12).reshape(SHAPE).astype(np.int16)
MASK = np.random.default_rng(0).choice(np.array([0, 63, 126, 189, 252], np.uint8), SHAPE)
AFFINE = ras_affine((1.5, 1.25, 2.0))


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def drawn(k):
    """Rows run down a picture and a DICOM slice alike."""
    return Image.fromarray(np.ascontiguousarray(MASK[:, :, k].T))


def series_and_masks(folder, name=lambda number: f"s{number:03d}"):
    """`name` gives a mask's name from its slice's number; slice numbers run against space."""
    write_series(folder / "series", SCAN, affine=AFFINE)
    for k in range(SHAPE[2]):
        save(folder / "masks" / f"{name(SHAPE[2] - k)}.png", drawn(k))
    return folder / "masks", folder / "series"


@pytest.mark.parametrize(
    "name", [lambda number: f"s{number:03d}", lambda number: f"liver_GT_{number:03d}", lambda number: f"m{number}"],
    ids=["names of the slices", "names of their own", "numbers without zeros"],
)  # fmt: skip
def test_masks_lie_on_the_slices_they_were_drawn_on(tmp_path, name):
    masks, series = series_and_masks(tmp_path, name)
    (masks / "._s001.png").write_bytes(b"resource fork")
    np.testing.assert_array_equal(read_masks(masks, series, SHAPE), MASK)


def test_a_mask_belongs_to_the_slice_of_its_name(tmp_path):
    paths = write_series(tmp_path / "series", SCAN, affine=AFFINE)
    names = np.random.default_rng(1).permutation([f"IM{zero}{number}" for number in range(5, 11) for zero in ("", 0)])
    for k, (path, name) in enumerate(zip(paths, names, strict=True)):
        path.rename(path.with_name(f"{name}.dcm"))
        save(tmp_path / "masks" / f"{name}.png", drawn(k))
    np.testing.assert_array_equal(read_masks(tmp_path / "masks", tmp_path / "series", SHAPE), MASK)


def test_masks_of_an_enhanced_object_follow_its_frames(tmp_path):
    order = np.random.default_rng(2).permutation(12)
    write_enhanced(tmp_path / "series" / "a.dcm", SCAN, affine=AFFINE, order=order)
    for frame, k in enumerate(order):
        save(tmp_path / "masks" / f"{frame + 1}.png", drawn(k))
    np.testing.assert_array_equal(read_masks(tmp_path / "masks", tmp_path / "series", SHAPE), MASK)


def test_masks_become_a_label_map_on_the_grid_of_their_scan(tmp_path):
    masks, series = series_and_masks(tmp_path)
    label = LabelMap(masks, {1: "a", 2: "b"}, ((55, 70, 1), (110, 135, 2), (175, 255, 2)), drawn_on=series)
    classes = read_label(label, like=read_volume(series, modality="CT").geometry)
    np.testing.assert_array_equal(classes, np.choose(MASK // 63, [0, 1, 2, 2, 2]))


@pytest.mark.parametrize(
    "picture, value",
    [
        (Image.new("1", (7, 5), 1), 255),
        (Image.new("I;16", (7, 5), 63), 63),
        (Image.new("L", (7, 5), 126).convert("P"), 126),
    ],
    ids=["bits", "16 bits", "grey palette"],
)
def test_other_grey_pictures_keep_their_values(tmp_path, picture, value):
    masks, series = series_and_masks(tmp_path)
    save(masks / "s012.png", picture)
    assert (read_masks(masks, series, SHAPE)[:, :, 0] == value).all()


def declared(width, height):
    """A PNG file whose header alone is sound."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def overwrite(change):
    def spoil(path):
        path.write_bytes(change(path.read_bytes()))

    return spoil


@pytest.mark.parametrize(
    "spoil, code, said",
    [
        (lambda path: path.unlink(), "E_LABEL_GEOMETRY", "11 masks for 12 slices"),
        (lambda path: save(path.with_name("more.png"), drawn(0)), "E_LABEL_GEOMETRY", "13 masks for 12 slices"),
        (lambda path: save(path, Image.new("L", (5, 7))), "E_LABEL_GEOMETRY", "5 x 7 pixels, its slice 7 x 5"),
        (lambda path: save(path, Image.new("RGB", (7, 5))), "E_DECODE", "no grey picture"),
        (lambda path: save(path, Image.new("LA", (7, 5))), "E_DECODE", "no grey picture"),
        (lambda path: save(path, Image.new("I;16", (7, 5), 300)), "E_LABEL_VALUES", "300"),
        (overwrite(lambda content: b""), "E_EMPTY", "s004.png"),
        (overwrite(lambda content: b"hello, I am text"), "E_DECODE", "s004.png"),
        (overwrite(lambda content: content[: len(content) // 2]), "E_DECODE", "s004.png"),
        (overwrite(lambda content: content[:45] + b"\xff" * 20 + content[65:]), "E_DECODE", "s004.png"),
        (overwrite(lambda content: declared(12000, 12000)), "E_DECODE", "s004.png"),
        (overwrite(lambda content: declared(60000, 60000)), "E_DECODE", "s004.png"),
        (overwrite(lambda content: content[:8] + b"\0\0\0\x02IHDR\0\0" + bytes(4)), "E_DECODE", "s004.png"),
    ],
)
def test_masks_that_do_not_fit_or_cannot_be_read_are_refused(tmp_path, spoil, code, said):
    masks, series = series_and_masks(tmp_path)
    spoil(masks / "s004.png")
    with pytest.raises(CaseError) as refused:
        read_masks(masks, series, SHAPE)
    assert refused.value.code == code
    assert said in refused.value.message
    assert refused.value.hint
