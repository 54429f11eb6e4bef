import numpy as np
import pytest

from m3di.training.loader import BatchReader, prefetch
from m3di.training.sampler import PlaneSliceSampler
from stores import Store
from stores.errors import DamagedError, RefusedError
from tests.stores.stores import DIM, TEACHER, build, captions_of, parts


@pytest.fixture
def store(tmp_path):
    with Store(build(tmp_path / "s", 5)) as opened:
        yield opened


def batches(store, *, start=0, stop=12):
    embeddings = store.embeddings(TEACHER)
    sampler = PlaneSliceSampler(embeddings.index, slices_per_volume=3, seed=0)
    return prefetch(BatchReader(store.volumes, embeddings), sampler, start=start, stop=stop, batch_size=4)


def test_batches_hold_the_cubes_and_rows_of_their_draw(store):
    seen = 0
    for batch in batches(store):
        embeddings = store.embeddings(TEACHER)
        for row, volume in enumerate(batch.draw.volumes):
            np.testing.assert_array_equal(batch.volumes[row, 0].numpy(), parts(int(volume))["image"])
        expected = embeddings.gather(batch.draw.volumes, batch.draw.planes, batch.draw.slices)
        np.testing.assert_array_equal(batch.targets.numpy(), expected)
        seen += 1
    assert seen == 3


def test_a_damaged_volume_stops_the_run_and_is_named(store):
    path = store.volumes.chunk_path("image", 2)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DamagedError, match=r"image/c\.2\.0\.0\.0"):
        list(batches(store))


def test_leaving_early_leaves_no_thread_waiting(store):
    stream = batches(store, stop=4000)
    next(stream)
    stream.close()


def test_a_batch_is_asked_for_before_the_one_ahead_of_it_is_read(store, monkeypatch):
    happened = []
    read, will_need = BatchReader.read, BatchReader.will_need

    def spied_read(self, draw, buffer):
        happened.append(("read", tuple(draw.volumes)))
        return read(self, draw, buffer)

    def spied_will_need(self, draw):
        happened.append(("ask", tuple(draw.volumes)))
        will_need(self, draw)

    monkeypatch.setattr(BatchReader, "read", spied_read)
    monkeypatch.setattr(BatchReader, "will_need", spied_will_need)
    first, second, third = (tuple(batch.draw.volumes) for batch in batches(store))
    assert happened == [("ask", second), ("read", first), ("ask", third), ("read", second), ("read", third)]


def test_asking_for_a_chunk_that_is_gone_is_silent_and_reading_it_is_not(store):
    store.volumes.chunk_path("image", 2).unlink()
    store.volumes.will_need("image", [2, 3])
    with pytest.raises(DamagedError, match=r"image/c\.2\.0\.0\.0"):
        store.volumes.read("image", 2)


DENSE = "d3" * 32


def commit_dense(path, volumes):
    """Dense rows, four patches of five features, of some volumes."""
    with Store(path, writable=True) as store:
        for record in store.records():
            if record.volume in volumes:
                random = np.random.default_rng(int(record.volume[1:]))
                shapes = [(len(record.valid_slices(plane)), 4, 5) for plane in range(3)]
                rows = [random.normal(size=shape).astype(np.float16) for shape in shapes]
                store.commit_rows(DENSE, record, rows, parts=[f"patch {n}" for n in range(4)])


def test_batches_without_dense_rows_have_no_patches(store):
    assert next(batches(store)).patches is None


def test_patches_are_those_of_the_same_volumes_and_slices_whatever_their_own_numbers(tmp_path):
    commit_dense(build(tmp_path / "s", 5), [f"v{n}" for n in range(5)])
    with Store(tmp_path / "s") as store:
        dense = store.embeddings(DENSE)
        some = store.embeddings(TEACHER).select([4, 1, 2])
        sampler = PlaneSliceSampler(some.index, slices_per_volume=3, seed=0)
        reader = BatchReader(store.volumes, some, dense=dense)
        batch = next(prefetch(reader, sampler, start=0, stop=4, batch_size=4))
        assert batch.patches.shape == (4, 3, 4, 5)
        for row, volume in enumerate(batch.draw.volumes):
            name = some.index.volumes[int(volume)]
            for k in range(3):
                plane, index = int(batch.planes[row, k]), int(batch.slices[row, k])
                rank = store.record(name).valid_slices(plane).tolist().index(index)
                np.testing.assert_array_equal(batch.patches[row, k].numpy(), dense.plane(name, plane)[rank])


def test_volumes_without_dense_rows_are_refused_by_name(tmp_path):
    commit_dense(build(tmp_path / "s", 3), ["v0", "v2"])
    with Store(tmp_path / "s") as store, pytest.raises(RefusedError, match="1 of 3 volumes have no dense rows: v1"):
        BatchReader(store.volumes, store.embeddings(TEACHER), dense=store.embeddings(DENSE))


def test_rows_of_further_teachers_lie_beside_those_of_the_same_slices(tmp_path):
    path = build(tmp_path / "s", 4)
    other = "c3" * 32
    with Store(path, writable=True) as store:
        for name in ["v3", "v2", "v1"]:
            rows = [2 * store.plane_rows(TEACHER, name, plane)[..., :4] for plane in range(3)]
            store.commit_rows(other, store.record(name), rows, captions_digest=captions_of(store.record(name)).digest)
    with Store(path) as store:
        some = store.embeddings(TEACHER).select([3, 1])
        sampler = PlaneSliceSampler(some.index, slices_per_volume=3, seed=0)
        reader = BatchReader(store.volumes, some, further=[store.embeddings(other)])
        batch = next(prefetch(reader, sampler, start=0, stop=2, batch_size=2))
        assert batch.targets.shape == (2, 3, 2, DIM + 4)
        np.testing.assert_array_equal(batch.targets[..., DIM:], 2 * batch.targets[..., :4])
        with pytest.raises(RefusedError, match="1 of 4 volumes have no rows of teacher c3c3c3c3c3c3c3c3: v0"):
            BatchReader(store.volumes, store.embeddings(TEACHER), further=[store.embeddings(other)])
