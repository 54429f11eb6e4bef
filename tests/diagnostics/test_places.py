import numpy as np
import pytest

from m3di.diagnostics.places import Slices, held_out_rows, score_teacher
from stores import Store
from tests.stores.stores import TEACHER, build


def test_the_nearest_slice_of_other_people_by_hand(tmp_path):
    """Two people, two planes: three slices find the right plane in the other, one of them two positions off."""
    rows = np.zeros((5, 2, 3), np.float32)
    rows[:, 0] = [[1, 0, 0], [0, 1, 0], [0.8, 0.6, 0], [0, 0.6, 0.8], [0.6, 0, 0.8]]
    rows[:, 1] = rows[:, 0]
    slices = Slices(
        rows, volumes=np.array([0, 0, 1, 1, 1]), planes=np.array([0, 1, 0, 1, 0]), positions=np.array([3, 5, 5, 5, 3])
    )
    with Store(build(tmp_path / "store", 2)) as store:
        found = score_teacher(store.embeddings(TEACHER), slices, cube_size=16)
    # 0 finds 2 (0.8; right, 2 off), 1 finds 2 or 3 (0.6 each: the first, wrong), 2 finds 0 (0.8; right, 2 off),
    # 3 finds 1 (0.6; right, 0 off), 4 finds 0 (0.6; right, 0 off).
    assert found.same_place is not None
    assert found.same_place.plane_accuracy == pytest.approx(4 / 5)
    assert found.same_place.position_error == pytest.approx((2 + 2 + 0 + 0) / 4 / 16)
    # Blind draws of the right plane of the other: 0: {2, 0}; 1: {0}; 2: {2}; 3: {0}; 4: {0}.
    assert found.same_place.position_error_chance == pytest.approx((2 + 0 + 0 + 2 + 0 + 0) / 6 / 16)
    assert found.same_place.same_dataset == 1
    assert found.retrieval.recall["image"]["1"] == 1, "every caption is its image"


def test_held_out_rows_are_those_of_the_store(tmp_path):
    with Store(build(tmp_path / "store", 3)) as store:
        embeddings = store.embeddings(TEACHER)
        slices = held_out_rows(embeddings, per_plane=2)
        for row, number, plane, position in zip(
            slices.rows, slices.volumes, slices.planes, slices.positions, strict=True
        ):
            name = embeddings.index.volumes[int(number)]
            valid = store.record(name).valid_slices(int(plane))
            stored = store.plane_rows(TEACHER, name, int(plane))[list(valid).index(position)]
            np.testing.assert_array_equal(row, stored.astype(np.float32))
