import numpy as np
import pytest

from m3di.diagnostics.rows import examine_rows
from stores import Store
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, captions_of, chunks, record

DIM = 8


def store_of(path, image, text):
    """A store with given rows: functions of (volume, plane, number of the slice)."""
    with Store.create_or_open(path, RECIPE) as store:
        for seed in range(12):
            kept = store.commit_volume(record(f"v{seed:02d}"), chunks(seed))
            store.commit_captions(CAPTIONER, kept.volume, captions_of(kept))
            counts = [len(kept.valid_slices(plane)) for plane in range(3)]
            rows = [np.array([[image(seed, plane, n), text(seed, plane, n)] for n in range(count)])
                    for plane, count in enumerate(counts)]  # fmt: skip
            store.commit_rows(TEACHER, kept, [part.astype(np.float16) for part in rows])
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    return path


def axis(number):
    return np.eye(DIM)[number]


def near(number, seed, spread=0.05):
    vector = axis(number) + spread * np.random.default_rng(seed).normal(size=DIM)
    return vector / np.linalg.norm(vector)


def test_the_gap_is_that_of_the_two_means(tmp_path):
    path = store_of(tmp_path / "store", lambda *_: axis(0), lambda *_: 0.6 * axis(0) + 0.8 * axis(1))
    with Store(path) as store:
        gap = examine_rows(store.embeddings(TEACHER)).gap
    assert gap.own == pytest.approx(0.6, abs=1e-3)
    assert gap.any == pytest.approx(0.6, abs=1e-3)
    assert gap.distance == pytest.approx(np.sqrt(0.4**2 + 0.8**2), abs=1e-3)


def test_a_pair_that_belongs_together_tells_from_any_pair(tmp_path):
    path = store_of(tmp_path / "store", lambda seed, *_: axis(seed % 2), lambda seed, *_: axis(seed % 2))
    with Store(path) as store:
        gap = examine_rows(store.embeddings(TEACHER)).gap
    assert (gap.own, gap.any, gap.distance) == pytest.approx((1, 0.5, 0), abs=1e-3)


def test_one_odd_slice_and_one_odd_volume_are_found(tmp_path):
    def image(seed, plane, n):
        if (seed, plane, n) == (3, 1, 2):
            return axis(6)
        return near(5 if seed == 7 else plane, 100 * seed + 10 * plane + n)

    path = store_of(tmp_path / "store", image, lambda *_: axis(0))
    with Store(path) as store:
        odd = int(store.record("v03").valid_slices(1)[2])
        found = examine_rows(store.embeddings(TEACHER))
    assert [outlier.volume for outlier in found.volumes] == ["v07"]
    others = [(o.volume, o.plane, o.slice) for o in found.slices if o.volume != "v07"]
    assert others == [("v03", "coronal", odd)]
    assert {outlier.volume for outlier in found.slices} == {"v03", "v07"}
