import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3di.query import Searcher, Wanted
from stores import Store
from stores.errors import RefusedError
from stores.recipe import digest_of
from stores.records import Captions
from tests.query.test_scan import places
from tests.references.search import one_per_volume, ranked
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, build, captions_of, chunks, record, rows_of

ROOT = Path(__file__).parents[2]
OTHER = "c3" * 32
FACTS = (
    ("v0", {"modality": "MR", "subject": "one", "dataset": "north", "body_part": "head", "sequence": "T1w"}),
    ("v1", {"modality": "MR", "subject": "one", "dataset": "north", "body_part": "heart", "sequence": ""}),
    ("v2", {"modality": "CT", "subject": "one", "dataset": "south", "body_part": "chest", "sequence": ""}),
    ("v3", {"modality": "CT", "subject": "two", "dataset": "north", "body_part": "head", "sequence": ""}),
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """Four volumes of three people, with rows of two teachers."""
    with Store.create_or_open(tmp_path / "store", RECIPE) as store:
        for seed, (name, facts) in enumerate(FACTS):
            kept = store.commit_volume(record(name, **facts), chunks(seed))
            captions = captions_of(kept)
            store.commit_captions(CAPTIONER, name, captions)
            for shift, teacher in enumerate((TEACHER, OTHER)):
                rows = [unit_rows(rows) for rows in rows_of(kept, seed + 10 * shift)]
                store.commit_rows(teacher, kept, rows, captions_digest=captions.digest)
        for teacher, spec in ((TEACHER, "embedded"), (OTHER, "other")):
            store.commit_facts("teacher", teacher, {"fingerprint": teacher, "spec": spec})
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    return tmp_path / "store"


def unit_rows(rows):
    wide = rows.astype(np.float32)
    return (wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-6)).astype(np.float16)


def names(hits):
    return [(hit.volume, ("axial", "coronal", "sagittal").index(hit.plane), hit.slice) for hit in hits]


def test_a_slice_finds_itself_then_the_best_slice_of_every_other_volume(path):
    with Searcher(path) as searcher:
        store = searcher.store
        index = int(store.record("v1").valid_slices(2)[1])
        answer = searcher.by_slice("v1", "sagittal", index)
        row = places(store)["v1", 2, index]
        expected = one_per_volume(ranked(places(store), row))
        assert names(answer.results) == [place for place, _ in expected]
        assert names(answer.results)[0] == ("v1", 2, index)
        assert answer.results[0].score == pytest.approx(1, abs=1e-3)
        assert answer.results[0].caption == f"v1 2 {index}"
        every = searcher.by_slice("v1", "sagittal", index, Wanted(top=5, one_per_volume=False))
        assert names(every.results) == [place for place, _ in ranked(places(store), row)[:5]]


def test_the_same_place_is_of_other_people_and_in_the_same_plane(path):
    with Searcher(path) as searcher:
        store = searcher.store
        index = int(store.record("v0").valid_slices(1)[2])
        answer = searcher.by_slice("v0", "coronal", index)
        assert {hit.volume for hit in answer.same_place} == {"v2", "v3"}, (
            "v1 is the same person, v2 only of that name"
        )
        assert {(hit.plane, hit.slice) for hit in answer.same_place} == {("coronal", index)}
        rows = places(store)
        for hit in answer.same_place:
            expected = np.dot(rows["v0", 1, index], rows[hit.volume, 1, hit.slice])
            assert hit.score == pytest.approx(expected, abs=1e-4)


def test_a_volume_finds_others_by_the_mean_of_its_rows(path):
    with Searcher(path) as searcher:
        store = searcher.store
        rows = places(store)

        def mean(volume):
            planes = [
                np.mean([r for (v, p, _), r in rows.items() if (v, p) == (volume, plane)], axis=0)
                for plane in range(3)
            ]
            total = np.sum(planes, axis=0)
            return total / np.linalg.norm(total)

        expected = sorted(((float(mean("v2") @ mean(v)), v) for v in ("v0", "v1", "v3")), reverse=True)
        answer = searcher.by_volume("v2")
        assert [hit.volume for hit in answer.results] == [volume for _, volume in expected]
        assert [hit.score for hit in answer.results] == pytest.approx([score for score, _ in expected], abs=1e-4)
        likest = max(((place, row) for place, row in rows.items() if place[0] == expected[0][1]),
                     key=lambda item: mean("v2") @ item[1])  # fmt: skip
        assert names(answer.results)[0] == likest[0]


@pytest.mark.parametrize(
    "where, volumes",
    [
        (["modality=mr"], {"v0", "v1"}),
        (["modality=MR", "modality=CT"], {"v0", "v1", "v2", "v3"}),
        (["modality=CT", "body_part=head"], {"v3"}),
        (["dataset=north", "subject=one"], {"v0", "v1"}),
        (["sequence=T1w"], {"v0"}),
        (["sequence="], {"v1", "v2", "v3"}),
        (["volume=v2", "plane=axial"], {"v2"}),
    ],
)
def test_conditions(path, where, volumes):
    with Searcher(path) as searcher:
        vector = np.eye(6, dtype=np.float32)[0]
        answer = searcher.by_vector(vector, Wanted(top=100, where=tuple(where)))
        assert {hit.volume for hit in answer.results} == volumes
        if "plane=axial" in where:
            assert {hit.plane for hit in answer.results} == {"axial"}


@pytest.mark.parametrize(
    "where, words",
    [
        ("modality", "not KEY=VALUE"),
        ("colour=red", "not KEY=VALUE with one of modality"),
        ("modality=PET", "no volume has modality='pet'"),
        ("plane=oblique", "no plane is called 'oblique'"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(path, where, words):
    with Searcher(path) as searcher, pytest.raises(RefusedError, match=words):
        searcher.by_vector(np.eye(6, dtype=np.float32)[0], Wanted(where=(where,)))


def test_conditions_that_exclude_each_other_are_refused(path):
    with Searcher(path) as searcher, pytest.raises(RefusedError, match=r"body_part='chest' and modality='mr'|and"):
        searcher.by_vector(np.eye(6, dtype=np.float32)[0], Wanted(where=("modality=MR", "body_part=chest")))


def test_each_teacher_of_a_store_has_its_own_answers(path):
    with Store(path) as store:
        index = int(store.record("v0").valid_slices(0)[0])
        expected = {
            t: one_per_volume(ranked(places(store, t), places(store, t)["v0", 0, index])) for t in (TEACHER, OTHER)
        }
    for name, teacher in (("", TEACHER), ("other", OTHER), (OTHER[:8], OTHER)):
        with Searcher(path, teacher=name) as searcher:
            assert names(searcher.by_slice("v0", "axial", index).results) == [p for p, _ in expected[teacher]]
    with pytest.raises(RefusedError, match="0 teachers"):
        Searcher(path, teacher="nobody")


def test_a_read_only_store_is_searched_and_left_as_it_is(path):
    for folder, _, files in os.walk(path):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)  # noqa: PTH101, PTH118
        os.chmod(folder, 0o555)  # noqa: PTH101
    before = sorted(entry for entry in path.parent.rglob("*") if "lock" not in entry.name)
    try:
        with Searcher(path) as searcher:
            assert searcher.by_volume("v0").results
        assert sorted(entry for entry in path.parent.rglob("*") if "lock" not in entry.name) == before
    finally:
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o755)  # noqa: PTH101


CHANGE = """
import sys
from pathlib import Path
from stores import Store
from tests.query.test_searcher import unit_rows
from tests.stores.stores import TEACHER, rows_of
with Store(Path(sys.argv[1]), writable=True) as store:
    kept = store.record("v3")
    store.commit_rows(TEACHER, kept, [unit_rows(rows) for rows in rows_of(kept, 99)])
"""


def test_an_open_engine_answers_from_the_store_as_it_was_while_another_process_writes(path):
    with Searcher(path) as searcher:
        index = int(searcher.store.record("v0").valid_slices(0)[0])
        before = searcher.by_slice("v0", "axial", index).results
        subprocess.run([sys.executable, "-c", CHANGE, str(path)], check=True, cwd=ROOT)
        assert searcher.by_slice("v0", "axial", index).results == before
    with Searcher(path) as searcher:
        assert searcher.by_slice("v0", "axial", index).results != before


def test_what_is_not_there_is_said(path):
    with Searcher(path) as searcher:
        with pytest.raises(RefusedError, match="no volume 'v9'"):
            searcher.by_volume("v9")
        with pytest.raises(RefusedError, match=r"slice 0 of the axial plane of v0 has no row; the nearest is"):
            searcher.by_slice("v0", "axial", 0)
        with pytest.raises(RefusedError, match="is empty"):
            searcher.by_text("  ")
        with pytest.raises(RefusedError, match="captions or images"):
            searcher.by_text("liver", Wanted(against="both"))


def test_the_note_says_how_good_the_teacher_is(path):
    with Searcher(path) as searcher:
        assert searcher.notes() == ("how often this teacher is right was never measured",)
    card = {"after": {"text_to_image": {"recall@10": 0.4}, "chance": {"recall@10": 0.013}, "items": 77}}
    with Store.create_or_open(path, RECIPE) as store:
        store.commit_facts("teacher", TEACHER, {"fingerprint": TEACHER, "spec": "x", "card": card, "random": True})
    with Searcher(path) as searcher:
        never, measured = searcher.notes()
        assert "never trained" in never
        assert measured == (
            "this teacher has the right slice among its first 10 for 40% of 77 held-out captions (chance 1.3%)"
        )


def test_volumes_without_captions_have_empty_ones(path):
    with Store.create_or_open(path, RECIPE) as store:
        kept = store.record("v0")
        short = Captions(kept.item_digest, (("one",), (), ()))
        store.commit_captions(digest_of("another"), "v0", short)
        store.commit_current(teacher=TEACHER, captioner=digest_of("another"))
    with Searcher(path) as searcher:
        by_name = {hit.volume: hit for hit in searcher.by_vector(np.eye(6, dtype=np.float32)[0]).results}
        assert by_name["v1"].caption == ""


def test_a_store_without_embeddings_is_refused(tmp_path):
    with Store.create_or_open(tmp_path / "store", replace(RECIPE, cube_size=8, slice_stride=1)):
        pass
    with pytest.raises(RefusedError, match="no embeddings yet"):
        Searcher(tmp_path / "store")


def test_stores_of_the_contract_are_searched(tmp_path):
    with Searcher(build(tmp_path / "store"), compact=True) as searcher:
        assert len(searcher.by_vector(np.eye(6, dtype=np.float32)[0]).results) == 3
