import hashlib
import json

import numpy as np
import pytest

from m3di.training.slice_weights import read_slice_weights
from stores.errors import RefusedError
from stores.index import StoreIndex
from tests.stores.stores import record

KNOWN = StoreIndex.of([record(f"v{i}", blank=0) for i in range(12)])  # sorted: v0, v1, v10, v11, v2, ...
DRAWN = KNOWN.select([0, 3, 4, 9])  # v0, v11, v2, v7


def row(volume="v2", plane="axial", slice=1, weight=0.5, **more):
    return {"volume": volume, "plane": plane, "slice": slice, "weight": weight, **more}


def written(path, *rows):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows))
    return path


def test_weights_go_to_their_slices_in_any_order_and_those_of_others_are_left_out(tmp_path):
    path = written(
        tmp_path / "w.jsonl",
        row("v7", "sagittal", 15, 0.25, reasons=["x"]), row("v0", weight=0), row("v5", weight=3.0),
        row("v7", "axial", 3, 1), row("v11", "coronal", 5, 2), row("v7", "sagittal", 1, 0.75),
    )  # fmt: skip
    weights = read_slice_weights(path, KNOWN, DRAWN)
    expected = np.ones((4, 3, 16))
    expected[0, 0, 1], expected[1, 1, 5], expected[3, 2, 15], expected[3, 2, 1] = 0, 2, 0.25, 0.75
    np.testing.assert_array_equal(weights.of(np.arange(4)), expected)
    assert len(weights.places) == 4, "only what differs from 1"
    assert weights.num_barred(4, np.array([True, True, True])).tolist() == [1, 0, 0, 0]
    assert weights.num_barred(4, np.array([False, True, True])).tolist() == [0, 0, 0, 0]
    assert weights.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_nothing_changes_nothing(tmp_path):
    weights = read_slice_weights(written(tmp_path / "w.jsonl"), KNOWN, DRAWN)
    assert (weights.of(np.array([1, 3])) == 1).all()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"volume": "v2"', "is not JSON"),
        ("3", "is not a JSON object"),
        ({"volume": "v2", "plane": "axial", "slice": 1}, "has no weight"),
        (row(volume=7), "volume 7 is no name"),
        (row(volume="v12"), "volume 'v12' has no rows"),
        (row(volume="v"), "volume 'v' has no rows"),
        (row(volume="zz"), "volume 'zz' has no rows"),
        (row(plane="oblique"), "plane 'oblique' is none of axial, coronal, sagittal"),
        (row(plane=0), "plane 0 is none of"),
        (row(plane=["axial"]), "is none of"),
        (row(slice="1"), "slice '1' is no whole number"),
        (row(slice=True), "slice True is no whole number"),
        (row(slice=1.0), "slice 1.0 is no whole number"),
        (row(slice=-1), "slice -1 of plane axial of 'v2' has no row"),
        (row(slice=2), "slice 2 of plane axial of 'v2' has no row"),
        (row(slice=16), "slice 16 of plane axial of 'v2' has no row"),
        (row("v5", slice=2), "slice 2 of plane axial of 'v5' has no row"),
        (row(weight=-0.5), "weight -0.5 is neither 0 nor a number from 1e-09 to 1e"),
        (row(weight=float("nan")), "weight nan is neither"),
        (row(weight=float("inf")), "weight inf is neither"),
        (row(weight=10**400), "weight 1000000"),
        (row(weight=1e-300), "weight 1e-300 is neither"),
        (row(weight=True), "weight True is neither"),
        (row(weight="0.5"), "weight '0.5' is neither"),
        (row(weight=None), "weight None is neither"),
        (row("v0", "axial", 3, 1), "says the same slice as line 1"),
        (row("v0", "axial", 3, 0.5), "says the same slice as line 1"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line, words, tmp_path):
    path = written(tmp_path / "w.jsonl", row("v0", slice=3, weight=1), row("v0"), line, row("v0", slice=5))
    with pytest.raises(RefusedError, match="line 3: ") as told:
        read_slice_weights(path, KNOWN, DRAWN)
    assert told.value.code == "E_CAPTION"
    assert words in told.value.message
    assert str(path) in told.value.message
    assert "captions audit" in told.value.hint


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "w.jsonl").write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(RefusedError, match="line 1: is not JSON"):
        read_slice_weights(tmp_path / "w.jsonl", KNOWN, DRAWN)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RefusedError, match=f"E_CONFIG pretrain.slice_weights={path} cannot be read"):
            read_slice_weights(path, KNOWN, DRAWN)
