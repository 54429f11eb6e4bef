import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.sampler import PlaneSliceSampler, keyed_uniform
from stores.errors import RefusedError
from stores.index import StoreIndex
from tests.references.sampling import splitmix64_uniform
from tests.stores.stores import record

INDEX = StoreIndex.of([record(f"v{i}", blank=i % 6) for i in range(7)])


def draws(sampler, start, sizes):
    parts, clock = [], start
    for size in sizes:
        draw = sampler.draw(clock, size)
        parts.append(np.concatenate([draw.volumes[:, None], draw.epochs[:, None], draw.planes, draw.slices], axis=1))
        clock += size
    return np.concatenate(parts)


@settings(max_examples=30, deadline=None)
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


def test_a_volume_with_too_few_slices_is_named():
    fewest = int(INDEX.num_rows().sum(axis=1).min())
    with pytest.raises(RefusedError, match=f"volume v[45] has {fewest} slices, {fewest + 1} are asked"):
        PlaneSliceSampler(INDEX, slices_per_volume=fewest + 1, seed=0)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_keyed_numbers_agree_with_the_literal_form(key):
    assert float(keyed_uniform(*key)) == splitmix64_uniform(key)


@settings(max_examples=30, deadline=None)
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
    rows = INDEX.num_rows()
    draw = PlaneSliceSampler(INDEX, slices_per_volume=3, seed=0, plane_weights=(1.0, 0.0, 0.0)).draw(0, 70)
    assert (draw.planes == 0).all()
    assert INDEX.bits(draw.volumes)[np.arange(70)[:, None], draw.planes, draw.slices].all()
    with pytest.raises(RefusedError, match="are asked"):
        PlaneSliceSampler(INDEX, slices_per_volume=int(rows[:, 0].min()) + 1, seed=0, plane_weights=(1.0, 0.0, 0.0))
