"""The index: many names in little memory, in pieces that hold no objects, and ranks that are those of the blocks."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import index
from stores.index import Names, Repeated, StoreIndex
from tests.stores.stores import record

NAMES = st.lists(st.text("abc-._09", max_size=5), max_size=6)


def equal(one, other):
    """Whether two indices say the same."""
    names = all(
        list(getattr(one, field)) == list(getattr(other, field)) for field in ("volumes", "subjects", "datasets")
    )
    arrays = all(
        np.array_equal(getattr(one, field), getattr(other, field)) for field in ("slots", "checksums", "valid")
    )
    return names and arrays


def records(count):
    return [
        record(f"v{n}", blank=n % 5, slot=7 * n, subject=f"person {n // 2}", dataset=f"set {n % 3}")
        for n in range(count)
    ]


@given(NAMES, st.data())
def test_packed_names_are_the_names(names, data):
    chosen = data.draw(st.lists(st.sampled_from(range(len(names))), max_size=8)) if names else []
    for packed in (Names.of(names), Repeated.of(names)):
        assert list(packed) == names
        assert len(packed) == len(names)
        assert list(packed.select(chosen)) == [names[n] for n in chosen]
        for beyond in (-1, len(names)):
            with pytest.raises(IndexError):
                Names.of(names)[beyond]
    assert Names.of(names) == names
    assert hash(Names.of(names)) == hash(tuple(names))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 300])
def test_as_many_distinct_names_as_there_may_be_are_told_apart(count):
    names = [f"n{number:05d}" for number in range(count)]
    assert list(Repeated.of(names)) == names
    assert Repeated.of(names).codes.itemsize == (1 if count <= 256 else 2)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_an_index_in_pieces_is_the_whole_one(monkeypatch, count):
    monkeypatch.setattr(index, "SEGMENT", 3)
    whole = StoreIndex.of(records(count)[::-1])
    assert list(whole.volumes) == [f"v{n}" for n in range(count)]
    segments = list(whole.segments())
    assert len(segments) == -(-count // 3)
    assert equal(StoreIndex.join(segments), whole)


def test_a_piece_that_holds_objects_is_not_unpickled():
    (segment,) = StoreIndex.of(records(2)).segments()
    fields = dict(np.load(io.BytesIO(segment)))
    fields["slots"] = np.array([{}, {}], object)
    file = io.BytesIO()
    np.savez(file, **fields)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        StoreIndex.join([file.getvalue()])


def test_ranks_are_places_in_the_blocks_and_what_has_none_is_named():
    made = records(4)
    found = StoreIndex.of(made)
    np.testing.assert_array_equal(found.num_rows(), [[len(r.valid_slices(p)) for p in range(3)] for r in made])
    for number, one in enumerate(made):
        planes, slices = found.slices_of(number)
        expected = [(plane, position) for plane in range(3) for position in one.valid_slices(plane)]
        assert list(zip(planes.tolist(), slices.tolist(), strict=True)) == expected
        for plane in range(3):
            positions = one.valid_slices(plane)
            ranks = found.ranks(np.array([number]), np.full((1, len(positions)), plane), positions[None])
            np.testing.assert_array_equal(ranks[0], np.arange(len(positions)))
    valid = made[1].valid_slices(2)[0]
    with pytest.raises(ValueError, match="slice 0 of plane 2 of v3 has no row"):
        found.ranks(np.array([1, 3]), np.array([[2, 2], [2, 2]]), np.array([[valid, valid], [valid + 4, 0]]))
