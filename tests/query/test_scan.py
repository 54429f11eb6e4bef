import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m3di.evaluation.leaks import embedding_of
from m3di.query.answers import IMAGE, TEXT
from m3di.query.ranking import best
from m3di.query.scan import _SCALE, Part, _floats
from stores import Store
from stores.errors import DamagedError
from stores.geometry import PLANES
from stores.index import StoreIndex
from stores.keys import block_key
from tests.references.search import one_per_volume, ranked
from tests.stores.stores import DIM, TEACHER, build, captions_of, chunks, record, rows_of

FORMER = Path(__file__).parents[1] / "formats/v1"


def places(store, teacher=TEACHER, part=IMAGE):
    """Every row of a part by its (volume, plane, slice), from the store's own reader."""
    rows = {}
    for volume in store.volume_names():
        for plane in range(len(PLANES)):
            stored = store.plane_rows(teacher, volume, plane)[:, part].astype(np.float64)
            for index, row in zip(store.record(volume).valid_slices(plane), stored, strict=True):
                rows[volume, plane, int(index)] = row.tolist()
    return rows


def found(part, vector, *, top, grouped=False, allowed=None):
    starts = part.starts[:: len(PLANES)] if grouped else None
    answers = best(
        part.scores(vector, allowed), lambda rows: part.exact(rows, vector), top=top, margin=part.margin,
        volume_starts=starts,
    )  # fmt: skip
    volumes, planes, slices = part.places(np.array([row for row, _ in answers], np.int64))
    names = [part.index.volumes[int(volume)] for volume in volumes]
    return [((name, int(plane), int(index)), score) for name, plane, index, (_, score)
            in zip(names, planes, slices, answers, strict=True)]  # fmt: skip


def unit(seed, dim=DIM):
    vector = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


@given(hnp.arrays("<f2", (3, 5), elements=st.floats(-2, 2, width=16)))
def test_halves_become_floats_exactly_subnormal_ones_too(halves):
    shifted = _floats(halves.view("<i2"), np.empty((4, 5), np.int32))
    np.testing.assert_array_equal(shifted.astype(np.float64) * float(_SCALE), halves.astype(np.float64))


@pytest.mark.parametrize("part", [IMAGE, TEXT])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_exact_search_is_the_literal_one(tmp_path, part, compact, grouped):
    with Store(build(tmp_path / "store", count=7)) as store:
        searched = Part(store.embeddings(TEACHER), part)
        if compact:
            searched.compact()
        for seed in range(20):
            vector = unit(seed)
            expected = ranked(places(store, part=part), vector.astype(float).tolist())
            expected = one_per_volume(expected) if grouped else expected
            answers = found(searched, vector, top=9, grouped=grouped)
            assert [place for place, _ in answers] == [place for place, _ in expected[:9]]
            np.testing.assert_allclose([s for _, s in answers], [s for _, s in expected[:9]], rtol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_equal_rows_come_in_the_order_of_volume_plane_and_slice(tmp_path, grouped):
    path = build(tmp_path / "store", count=5)
    with Store(path, writable=True) as store:
        for name in ("v1", "v3", "v4"):
            known = store.record(name)
            row = rows_of(known, 1)[2][:1]
            store.commit_rows(TEACHER, known, [np.repeat(row, len(known.valid_slices(p)), axis=0) for p in range(3)])
        store.commit_current(teacher=TEACHER, captioner="b2" * 32)
    with Store(path) as store:
        part = Part(store.embeddings(TEACHER), IMAGE)
        vector = np.array(places(store)["v3", 0, int(store.record("v3").valid_slices(0)[0])], np.float32)
        vector /= np.linalg.norm(vector)
        expected = ranked(places(store), vector.astype(float).tolist())
        expected = one_per_volume(expected) if grouped else expected
        top = 3 if grouped else 17
        assert [place for place, _ in found(part, vector, top=top, grouped=grouped)] == [p for p, _ in expected[:top]]


def test_more_is_wanted_than_there_is_and_nothing_may_answer(tmp_path):
    with Store(build(tmp_path / "store", count=2)) as store:
        part = Part(store.embeddings(TEACHER), IMAGE)
        assert len(found(part, unit(0), top=1000)) == len(part)
        assert len(found(part, unit(0), top=1000, grouped=True)) == 2
        nothing = np.zeros((2, 3), bool)
        assert best(part.scores(unit(0), nothing), lambda rows: rows, top=3, margin=0.1) == []


def test_only_allowed_blocks_answer(tmp_path):
    with Store(build(tmp_path / "store", count=3)) as store:
        part = Part(store.embeddings(TEACHER), IMAGE)
        allowed = np.zeros((3, 3), bool)
        allowed[1, 2] = True
        answers = found(part, unit(0), top=100, allowed=allowed)
        assert {place[:2] for place, _ in answers} == {("v1", 2)}
        assert len(answers) == len(store.record("v1").valid_slices(2))


def test_volume_means_are_those_of_the_leak_guard(tmp_path):
    with Store(build(tmp_path / "store", count=4)) as store:
        means = Part(store.embeddings(TEACHER), IMAGE).means()
        for number, volume in enumerate(store.volume_names()):
            np.testing.assert_allclose(means[number], embedding_of(store, TEACHER, volume), atol=1e-6)


def test_rows_of_format_version_1_are_searched(tmp_path):
    shutil.copytree(FORMER, tmp_path / "store")
    with Store(tmp_path / "store") as store:
        teacher = store.current()["teacher"]
        part = Part(store.embeddings(teacher), TEXT)
        expected = ranked(places(store, teacher, TEXT), unit(3, part.dim).astype(float).tolist())
        assert [p for p, _ in found(part, unit(3, part.dim), top=5)] == [p for p, _ in expected[:5]]


def test_a_damaged_row_is_never_an_answer(tmp_path):
    """A row that was changed below the envelope's checksum is found by its own."""
    path = build(tmp_path / "store", count=2)
    with Store(path, writable=True) as store, store._database.writing() as transaction:
        key = block_key(TEACHER, "v1", 0)
        payload = bytearray(transaction.get("rows", key))
        payload[16 + 8 + 1] ^= 0x7C  # the exponent of the first number of the first row
        transaction.put("rows", key, bytes(payload))
    with Store(path) as store:
        part = Part(store.embeddings(TEACHER), IMAGE)
        first = np.eye(DIM, dtype=np.float32)[0]
        with pytest.raises(DamagedError, match="row 0 of block"):
            found(part, first, top=len(part))
        part.compact()
        with pytest.raises(DamagedError, match="row 0 of block"):
            found(part, first, top=len(part))


class Rows:
    """Rows (volumes, planes, slices, e) in memory, of which some slices are missing."""

    def __init__(self, rows, valid):
        records = [record(f"v{number}", valid=("0000",) * 3) for number in range(len(rows))]
        self.index = replace(StoreIndex.of(records), valid=np.packbits(valid, axis=-1))
        self.rows, self.valid = rows, valid

    def halves(self, part):
        valid = self.valid.reshape(-1, self.valid.shape[-1])
        rows = self.rows.reshape(-1, *self.rows.shape[2:])
        return [block[kept].view("<i2") for block, kept in zip(rows, valid, strict=True)]

    def reading(self):
        return nullcontext()

    def gather(self, volumes, planes, slices):
        return self.rows[volumes[:, None], planes, slices][:, :, None]


@st.composite
def row_sets(draw):
    """Few distinct rows, many times, so that there are ties; a part of them hardly differs."""
    width = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 6)), 3, 8
    kinds = random.normal(size=(draw(st.integers(1, 12)), width)) * draw(st.sampled_from([1e-9, 1e-3, 1]))
    kinds += draw(st.sampled_from([0, 0.1])) * random.normal(size=width)
    kinds /= np.maximum(np.linalg.norm(kinds, axis=-1, keepdims=True), draw(st.sampled_from([1e-12, 1])))
    rows = kinds[random.integers(0, len(kinds), shape)].astype("<f2")
    vector = kinds[0] + draw(st.sampled_from([0, 0.3])) * random.normal(size=width)
    vector = (vector / max(np.linalg.norm(vector), 1e-12)).astype(np.float32)
    return Rows(rows, random.random(shape) < draw(st.sampled_from([0.5, 1]))), vector


@given(row_sets(), st.integers(1, 30), st.booleans(), st.booleans())
def test_a_copy_answers_as_the_map_does_ties_included(made, top, grouped, is_narrowed):
    source, vector = made
    mapped, copied = Part(source, IMAGE, compacts=False), Part(source, IMAGE)
    copied.compact()
    allowed = np.arange(3 * len(source.rows)).reshape(-1, 3) % 2 == 0 if is_narrowed else None
    answers = found(copied, vector, top=top, grouped=grouped, allowed=allowed)
    assert answers == found(mapped, vector, top=top, grouped=grouped, allowed=allowed)
    may = source.valid & (True if allowed is None else allowed[:, :, None])
    rows = {(f"v{v}", p, i): source.rows[v, p, i].astype(float).tolist() for v, p, i in np.argwhere(may)}
    expected = ranked(rows, vector.astype(float).tolist())
    expected = (one_per_volume(expected) if grouped else expected)[:top]
    np.testing.assert_allclose([score for _, score in answers], [score for _, score in expected], atol=1e-14)


@given(row_sets())
def test_scores_lie_within_the_margin(made):
    source, vector = made
    exact = source.rows[source.valid].astype(float) @ vector.astype(float)
    for is_copied in (False, True):
        part = Part(source, IMAGE)
        if is_copied:
            part.compact()
        everything = np.arange(len(part))
        for scores in (part.scores(vector), part.some_scores(everything, vector)):
            assert np.abs(scores - exact).max(initial=0) <= part.margin


@pytest.mark.parametrize("free, copies", [(4 * 24 * DIM - 1, False), (4 * 24 * DIM, True)])
def test_a_copy_is_made_once_it_is_worth_it_and_there_is_room(tmp_path, monkeypatch, free, copies):
    monkeypatch.setattr("m3di.query.scan.free_memory", lambda: free)
    with Store(build(tmp_path / "store", count=1)) as store:
        part = Part(store.embeddings(TEACHER), IMAGE)
        assert len(part) == 24
        margins = []
        for _ in range(10):
            part.scores(unit(0))
            margins.append(part.margin)
        assert (margins[-1] > margins[0]) == copies
        assert len(set(margins[:7])) == 1, "the first questions are answered from the map"


def test_volumes_without_rows_are_passed_over(tmp_path):
    path = build(tmp_path / "store", count=3)
    with Store(path, writable=True) as store:
        kept = store.commit_volume(record("v1", valid=("0000", "0000", "0000")), chunks(1))
        captions = captions_of(kept)
        store.commit_captions("b2" * 32, "v1", captions)
        store.commit_rows(TEACHER, kept, [np.zeros((0, 2, DIM), np.float16)] * 3, captions_digest=captions.digest)
        store.commit_current(teacher=TEACHER, captioner="b2" * 32)
    with Store(path) as store:
        part = Part(store.embeddings(TEACHER), IMAGE)
        assert {place[0] for place, _ in found(part, unit(1), top=5, grouped=True)} == {"v0", "v2"}
        assert not part.means()[1].any()
