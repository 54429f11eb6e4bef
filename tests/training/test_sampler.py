import hashlib
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.sampler import PlaneSliceSampler, keyed_uniform
from m3di.training.slice_weights import SliceWeights
from stores.errors import RefusedError
from stores.index import StoreIndex
from stores.records import pack_bits
from tests.references.sampling import splitmix64_uniform, weighted_slices
from tests.stores.stores import record

INDEX = StoreIndex.of([record(f"v{i}", blank=i % 6) for i in range(7)])


def draws(sampler, start, sizes):
    parts, clock = [], start
    for size in sizes:
        draw = sampler.draw(clock, size)
        parts.append(np.concatenate([draw.volumes[:, None], draw.epochs[:, None], draw.planes, draw.slices], axis=1))
        clock += size
    return np.concatenate(parts)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 60), st.integers(0, 3))
def test_the_sequence_does_not_depend_on_where_it_is_cut(sizes, start, seed):
    whole = draws(PlaneSliceSampler(INDEX, slices_per_volume=4, seed=seed), 0, [start + sum(sizes)])
    cut = draws(PlaneSliceSampler(INDEX, slices_per_volume=4, seed=seed), start, sizes)
    np.testing.assert_array_equal(cut, whole[start:])


def test_every_epoch_holds_every_volume_once():
    sampler = PlaneSliceSampler(INDEX, slices_per_volume=1, seed=0)
    volumes = sampler.draw(0, 21).volumes.reshape(3, 7)
    assert (np.sort(volumes, axis=1) == np.arange(7)).all()
    assert len({tuple(order) for order in volumes.tolist()}) == 3


def test_no_slice_is_blank_and_none_comes_twice_in_a_volume():
    draw = PlaneSliceSampler(INDEX, slices_per_volume=9, seed=1).draw(0, 700)
    assert INDEX.bits(draw.volumes)[np.arange(700)[:, None], draw.planes, draw.slices].all()
    pairs = np.sort(draw.planes * 100 + draw.slices, axis=1)
    assert (np.diff(pairs, axis=1) > 0).all()


def test_planes_come_equally_often_or_by_their_weights():
    draw = PlaneSliceSampler(INDEX, slices_per_volume=1, seed=2).draw(0, 6000)
    np.testing.assert_allclose(np.bincount(draw.planes.ravel()) / 6000, [1 / 3] * 3, atol=0.03)
    weighted = PlaneSliceSampler(INDEX, slices_per_volume=1, seed=2, plane_weights=(1.0, 0.0, 3.0))
    counts = np.bincount(weighted.draw(0, 6000).planes.ravel(), minlength=3) / 6000
    np.testing.assert_allclose(counts, [0.25, 0, 0.75], atol=0.03)


def test_a_volume_with_fewer_slices_than_are_asked_gives_all_of_them_again_and_again():
    draw = PlaneSliceSampler(INDEX, slices_per_volume=50, seed=1).draw(0, 7)
    for volume, planes, slices in zip(draw.volumes, draw.planes, draw.slices, strict=True):
        count = int(INDEX.num_rows()[volume].sum())
        drawn = list(zip(planes.tolist(), slices.tolist(), strict=True))
        assert set(drawn[:count]) == {place[1:] for place in valid_slices() if place[0] == volume}
        assert drawn == (3 * drawn[:count])[:50]


def test_a_volume_without_slices_is_named():
    nothing, some = pack_bits(np.zeros(POSITIONS, bool)), record("v0").valid[0]
    index = StoreIndex.of([record("v0"), record("v1", valid=(nothing, some, some))])
    drawable = PlaneSliceSampler(index, slices_per_volume=1, seed=0, plane_weights=(1.0, 1.0, 0.0)).num_drawable
    assert drawable.tolist() == [14, 7]
    with pytest.raises(RefusedError, match="volume v1 has no slice to draw") as told:
        PlaneSliceSampler(index, slices_per_volume=1, seed=0, plane_weights=(1.0, 0.0, 0.0))
    assert "pretrain.plane_weights" in told.value.hint


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_keyed_numbers_agree_with_the_literal_form(key):
    assert float(keyed_uniform(*key)) == splitmix64_uniform(key)


@settings(max_examples=30)
@given(world=st.sampled_from([1, 2, 3, 4, 6]), start=st.integers(0, 40), seed=st.integers(0, 3))
def test_any_number_of_processes_sees_the_same_sequence(world, start, seed):
    sampler = PlaneSliceSampler(INDEX, slices_per_volume=4, seed=seed)
    whole = sampler.draw(start, 12)
    parts = [sampler.draw(start, 12, rank=rank, world_size=world) for rank in range(world)]
    for field in ("volumes", "epochs", "planes", "slices"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, field))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(RefusedError, match="a batch of 8 volumes cannot be shared by 3 processes"):
        PlaneSliceSampler(INDEX, slices_per_volume=1, seed=0).draw(0, 8, rank=0, world_size=3)


def test_a_plane_without_weight_is_never_drawn_and_does_not_count():
    draw = PlaneSliceSampler(INDEX, slices_per_volume=3, seed=0, plane_weights=(1.0, 0.0, 0.0)).draw(0, 70)
    assert (draw.planes == 0).all()
    assert INDEX.bits(draw.volumes)[np.arange(70)[:, None], draw.planes, draw.slices].all()


POSITIONS = 16  # of the index


def weights_of(by_slice):
    """From (volume, plane, slice) to its weight."""
    places = sorted(
        (((volume * 3) + plane) * POSITIONS + index, weight) for (volume, plane, index), weight in by_slice
    )
    numbers, values = zip(*places, strict=True) if places else ((), ())
    return SliceWeights(np.array(numbers, np.int64), np.array(values, np.float64), POSITIONS, "")


def valid_slices():
    bits = INDEX.bits(np.arange(len(INDEX)))
    return [tuple(map(int, place)) for place in np.argwhere(bits)]


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(valid_slices()), st.sampled_from([0.0, 0.01, 0.25, 0.5, 1.0, 3.0]), max_size=60
    ).filter(lambda known: all(sum(v == n and not w for (v, *_), w in known.items()) < 18 for n in range(7))),
    st.integers(0, 3),
    st.integers(0, 50),
    st.sampled_from([(1.0, 1.0, 1.0), (1.0, 2.0, 0.5)]),
    st.sampled_from([1, 4, 20]),
)
def test_weighted_slices_are_those_of_the_literal_race(by_slice, seed, start, plane_weights, k):
    sampler = PlaneSliceSampler(
        INDEX, slices_per_volume=k, seed=seed, plane_weights=plane_weights, slice_weights=weights_of(by_slice.items())
    )
    draw = sampler.draw(start, 5)
    bits = INDEX.bits(np.arange(len(INDEX))).tolist()
    for row in range(5):
        volume = int(draw.volumes[row])
        own = {(plane, index): weight for (owner, plane, index), weight in by_slice.items() if owner == volume}
        expected = weighted_slices(
            seed=seed, epoch=int(draw.epochs[row]), volume=volume, valid=bits[volume], plane_weights=plane_weights,
            slice_weights=own, k=k,
        )  # fmt: skip
        assert list(zip(draw.planes[row].tolist(), draw.slices[row].tolist(), strict=True)) == expected


def test_without_weights_and_with_weights_of_one_the_sequence_is_as_it_always_was():
    options = {"slices_per_volume": 4, "seed": 5, "plane_weights": (1.0, 2.0, 0.5)}
    plain = draws(PlaneSliceSampler(INDEX, **options), 3, [40])
    digest = hashlib.sha256(plain.astype("<i8").tobytes()).hexdigest()
    assert digest == "3a2fa2f3c5e5d2d724b584377e3538825bcac4e8880f9c4065d13788734b67ec", "of the first release"
    np.testing.assert_array_equal(
        draws(PlaneSliceSampler(INDEX, **options, slice_weights=weights_of(())), 3, [40]), plain
    )


def chi_square(counts, chances):
    expected = counts.sum() * chances
    return float(((counts - expected)[chances > 0] ** 2 / expected[chances > 0]).sum())


def test_slices_come_as_often_as_their_weights_say():
    index = INDEX.select([0])
    (_, planes, slices) = np.nonzero(index.bits(np.array([0])))
    random = np.random.default_rng(0)
    values = random.choice([0.0, 0.25, 1.0, 2.0], size=len(planes))
    known = [((0, int(p), int(s)), float(w)) for p, s, w in zip(planes, slices, values, strict=True)]
    sampler = PlaneSliceSampler(index, slices_per_volume=1, seed=3, slice_weights=weights_of(known))
    draw = sampler.draw(0, 20_000)
    counts = np.zeros((3, POSITIONS))
    np.add.at(counts, (draw.planes[:, 0], draw.slices[:, 0]), 1)
    counts = counts[planes, slices]
    assert not counts[values == 0].any()
    freedom = int((values > 0).sum()) - 1
    limit = freedom + 4 * np.sqrt(2 * freedom)  # chi-square has mean f and variance 2f: p below 0.001
    assert chi_square(counts, values / values.sum()) < limit
    assert chi_square(counts, np.where(values > 0, 1 / (values > 0).sum(), 0)) > 100 * limit, "the test can fail"


@pytest.mark.parametrize("plane_weights", [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0)])
def test_slices_that_weights_bar_are_not_drawn_and_a_volume_without_others_is_named(plane_weights):
    own = [place for place in valid_slices() if place[0] == 2 and plane_weights[place[1]]]
    options = {"slices_per_volume": 4, "seed": 0, "plane_weights": plane_weights}
    sampler = PlaneSliceSampler(INDEX, **options, slice_weights=weights_of([(place, 0.0) for place in own[:-3]]))
    assert sampler.num_drawable[2] == 3
    draw = sampler.draw(0, 7)
    (row,) = np.flatnonzero(draw.volumes == 2)
    drawn = zip(draw.planes[row].tolist(), draw.slices[row].tolist(), strict=True)
    assert set(drawn) == {place[1:] for place in own[-3:]}
    with pytest.raises(RefusedError, match="volume v2 has no slice to draw") as told:
        PlaneSliceSampler(INDEX, **options, slice_weights=weights_of([(place, 0.0) for place in own]))
    assert "pretrain.slice_weights" in told.value.hint


def test_weights_of_planes_that_are_not_drawn_bar_nothing():
    others = weights_of([(place, 0.0) for place in valid_slices() if place[1] > 0])
    options = {"slices_per_volume": 3, "seed": 0, "plane_weights": (1.0, 0.0, 0.0)}
    plain, weighted = (PlaneSliceSampler(INDEX, **options, slice_weights=weights) for weights in (None, others))
    np.testing.assert_array_equal(draws(weighted, 0, [14]), draws(plain, 0, [14]))


def test_weights_are_laid_out_by_volume_plane_and_slice():
    places = list(product((0, 4, 6), (0, 2), (0, 15)))
    weights = weights_of([(place, 2.0 + number) for number, place in enumerate(places)])
    found = weights.of(np.array([6, 0, 5, 4, 6]))
    expected = np.ones((5, 3, POSITIONS))
    for row, volume in enumerate([6, 0, 5, 4, 6]):
        for number, (owner, plane, index) in enumerate(places):
            if owner == volume:
                expected[row, plane, index] = 2.0 + number
    np.testing.assert_array_equal(found, expected)
