import numpy as np
import pytest

from m3di.diagnostics import diagnose, findings
from m3di.diagnostics.coverage import coverage
from m3di.query import Searcher
from stores import Store
from stores.records import Captions
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, build, record


def test_coverage_counts_captions_and_blank_places(tmp_path):
    path = build(tmp_path / "store", 2)
    with Store(path, writable=True) as store:
        kept = store.record("v1")
        texts = tuple(tuple("" if plane == 2 else "same" for _ in kept.valid_slices(plane)) for plane in range(3))
        store.commit_captions(CAPTIONER, "v1", Captions(kept.item_digest, texts))
        found = coverage(store, store.records(), CAPTIONER)
        per_plane = [len(store.record(name).valid_slices(0)) for name in ("v0", "v1")]
    slices, described = 3 * sum(per_plane), 3 * per_plane[0] + 2 * per_plane[1]
    assert found.described == pytest.approx(described / slices)
    assert found.distinct == pytest.approx((3 * per_plane[0] + 1) / described)
    positions = RECIPE.cube_size // RECIPE.slice_stride
    assert found.blank["axial"] == pytest.approx(1 - sum(per_plane) / (2 * positions))


def test_a_diagnosis_is_shown_and_kept_as_plain_values(tmp_path):
    path = build(tmp_path / "store", 12)
    with Store(path, writable=True) as store:
        store.commit_volume(record("v3", source_digest=store.record("v4").source_digest), {
            name: store.volumes.chunk(name, store.record("v3").slot, stored)
            for name, stored in store.record("v3").objects.items()
        })  # fmt: skip
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    with Searcher(path) as searcher:
        found = diagnose(searcher)
    values = found.to_dict()
    assert [(pair["test"], pair["seen"], pair["kind"]) for pair in values["near_duplicates"]] == [
        ("v3", "v4", "duplicate")
    ]
    assert values["held_out_volumes"] > 0 and values["model"] is None
    assert np.isfinite(values["modality_gap"]["distance"])
    titles = [title for title, _ in findings(found)]
    assert titles[0] == "Store" and "1 near-duplicate volumes" in titles
    for _, (columns, rows) in findings(found):
        assert all(len(row) == len(columns) for row in rows)
