"""Hostile bytes: whatever a file holds, reading gives finite voxels or one refusal; never another error or a warning.

`M3DI_FUZZ=20000 pytest tests/volumes/test_fuzz.py` looks longer.
"""

import gzip
import json
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3di.volumes.layouts import discover
from m3di.volumes.readers import content_digest, read_volume
from stores.errors import CaseError, RefusedError
from tests.dicoms import write_series
from tests.malformed.files import AFFINE, MHA, NRRD, mgh_bytes, npy_bytes
from tests.phantoms import head, write_scan

SEEDS = ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mgh", "a.npy", "a.dcm")
EXAMPLES = int(os.environ.get("M3DI_FUZZ", "60"))
fuzzed = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
numbers = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
reals = st.sampled_from([0.0, -1.0, 1e-38, 3e38, float("inf"), float("nan")])
words = st.sampled_from(
    [b"inf", b"nan", b"-1", b"1e999", b"1e308", b"9" * 400, b"none", b"(", b"\n", b":", b"=", b"LIST", b"\0", b"\xff",
     b"../a", b"True", b"gzip", b"double", b"{", b'"', b"\\ud800"]
)  # fmt: skip
edits = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("number"), st.floats(0, 1), numbers),
        st.tuples(st.sampled_from(["<f4", ">f4", "<f8", ">f8"]), st.floats(0, 1), reals),
        st.tuples(st.just("word"), st.floats(0, 1), words),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 40)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=4,
)


@cache
def seed_bytes(name):
    image = head((4, 5, 4))[0]
    if name.startswith("a.nii"):
        folder = Path(os.environ["PYTEST_FUZZ_FOLDER"])
        return write_scan(folder / name, image, affine=AFFINE).read_bytes()
    if name == "a.dcm":
        folder = Path(os.environ["PYTEST_FUZZ_FOLDER"])
        return write_series(folder / "series", image.astype(np.int16), affine=AFFINE)[0].read_bytes()
    voxels = np.arange(64, dtype="<i2").tobytes()
    npy = npy_bytes("{'descr': '<i2', 'fortran_order': False, 'shape': (4, 4, 4)}", voxels)
    mgh = mgh_bytes(dims=(4, 4, 4, 1), number=4, voxels=np.arange(64, dtype=">i2").tobytes())
    return {"a.nrrd": NRRD, "a.mha": MHA, "a.mgh": mgh, "a.npy": npy}[name]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    os.environ["PYTEST_FUZZ_FOLDER"] = str(tmp_path_factory.mktemp("seeds"))
    yield
    del os.environ["PYTEST_FUZZ_FOLDER"]


def edited(content, changes, *, header):
    """Bytes with changes, each at a share of the first `header` bytes, where most of what can go wrong is."""
    changed = bytearray(content)
    for kind, share, value in changes:
        at = int(share * min(len(changed) - 1, header)) if changed else 0
        if not changed:
            break
        if kind == "flip":
            changed[at] ^= 1 << value
        elif kind == "number":
            width = 2 if value <= 0xFFFF else 4
            changed[at : at + width] = value.to_bytes(width, "little")
        elif kind[0] in "<>":
            at -= at % 4
            packed = np.array(value, kind).tobytes()
            changed[at : at + len(packed)] = packed
        elif kind == "word":
            word = re.compile(rb"[\w.+-]+").search(changed, at)
            changed[word.start() if word else at : word.end() if word else at] = value
        elif kind == "cut":
            del changed[at:]
        elif kind == "drop":
            del changed[at : at + value]
        else:
            changed[at:at] = changed[at : at + value]
    return bytes(changed)


def reads_or_refuses(path):
    try:
        content_digest(path)
        volume = read_volume(path, modality="MR")
    except CaseError as error:
        assert error.hint
        return
    assert volume.data.shape == volume.geometry.shape
    assert np.isfinite(volume.data).all()
    assert np.isfinite(volume.geometry.affine).all()


@pytest.mark.parametrize("name", SEEDS)
@fuzzed
@given(changes=edits, header=st.sampled_from([360, 1200, 10**6]))
def test_a_changed_scan_is_read_or_refused(name, tmp_path, changes, header):
    path = tmp_path / name
    path.write_bytes(edited(seed_bytes(name), changes, header=header))
    (tmp_path / "a.json").write_text(json.dumps({"affine": AFFINE.tolist()}))
    reads_or_refuses(path)


@fuzzed
@given(changes=edits)
def test_a_changed_scan_in_a_sound_gzip_is_read_or_refused(tmp_path, changes):
    content = edited(seed_bytes("a.nii"), changes, header=360)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content, 1))
    reads_or_refuses(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", [*SEEDS, "a.npz", "a.mhd", "a.nhdr", "a.hdr"])
@settings(fuzzed, max_examples=max(1, EXAMPLES // 3))
@given(content=st.binary(max_size=700))
def test_any_bytes_are_refused(name, tmp_path, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaseError):
        read_volume(tmp_path / name, modality="MR", member="train_images:0")


MANIFESTS = {
    "dataset.json": json.dumps({
        "name": "Set", "modality": {"0": "MRI"}, "labels": {"background": 0, "liver": [1, 2]},
        "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}, "./imagesTr/b.nii"],
    }),
    "scans.csv": "id,image,label,modality,subject\na,a.nii,b.nii,MR,s1\nb,c/d.nii,,CT,\"s,2\"\n",
}  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def finds_or_refuses(path):
    try:
        cases = discover(path)
    except RefusedError as error:
        assert error.hint
        return
    assert cases
    assert all(case.image.is_relative_to(path.parent) for case in cases)


@pytest.mark.parametrize("name", MANIFESTS)
@fuzzed
@given(changes=edits)
def test_a_changed_manifest_is_read_or_refused(name, tmp_path, changes):
    path = tmp_path / name
    path.write_bytes(edited(MANIFESTS[name].encode(), changes, header=10**6))
    finds_or_refuses(path)


@fuzzed
@given(
    fields=st.dictionaries(
        st.sampled_from(["name", "modality", "channel_names", "labels", "training", "numTraining"]), json_values
    )
)
def test_any_json_object_as_a_manifest_is_read_or_refused(tmp_path, fields):
    (tmp_path / "dataset.json").write_text(json.dumps(fields))
    finds_or_refuses(tmp_path / "dataset.json")
