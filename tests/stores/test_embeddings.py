"""Rows as readers gather them: those of the slices asked for, or an error that names block and row."""

from dataclasses import replace

import numpy as np
import pytest

from stores import Store, embeddings
from stores.blocks import encode_block
from stores.errors import DamagedError
from stores.keys import block_key
from stores.records import pack_bits
from tests.stores.stores import DIM, RECIPE, TEACHER, build, chunks, record, rows_of


@pytest.fixture
def path(tmp_path):
    return build(tmp_path / "s", 3)


def place(store, volume, plane, rank=0):
    """Arguments of `gather` for one row."""
    slices = store.record(f"v{volume}").valid_slices(plane)
    return np.array([volume]), np.array([[plane]]), np.array([[slices[rank]]])


def replace_block(path, volume, plane, rows):
    """Put a sound block with other rows in the place of one."""
    key = block_key(TEACHER, f"v{volume}", plane)
    with Store(path, writable=True) as store, store._database.writing() as transaction:
        transaction.put("rows", key, encode_block(rows, key))


def test_all_views_of_the_rows_agree(path):
    with Store(path) as store:
        found = store.embeddings(TEACHER)
        names = ["v0", "v1", "v2"]
        planes = [rows for n, name in enumerate(names) for rows in rows_of(store.record(name), n)]
        assert (len(found), found.fingerprint) == (3, TEACHER)
        np.testing.assert_array_equal(found.all_rows(names), np.concatenate(planes))
        for part in range(2):
            with found.reading():
                halves = [bits.copy() for bits in found.halves(part)]
            for bits, rows in zip(halves, planes, strict=True):
                np.testing.assert_array_equal(bits.view(np.float16), rows[:, part])
        reordered = found.select([2, 0])
        assert list(reordered.index.volumes) == ["v2", "v0"]
        gathered = reordered.gather(np.array([0]), *place(store, 2, 1)[1:])
        np.testing.assert_array_equal(gathered[0, 0], rows_of(store.record("v2"), 2)[1][0])


def test_a_plane_without_slices_has_no_rows_in_any_view(tmp_path):
    valid = pack_bits(np.zeros(RECIPE.cube_size, bool))
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        whole = record("v0")
        kept = store.commit_volume(replace(whole, valid=(whole.valid[0], valid, valid)), chunks(0))
        rows = rows_of(kept, 0)
        store.commit_rows(TEACHER, kept, rows)
        found = store.embeddings(TEACHER)
        assert [found.plane("v0", plane).shape for plane in range(3)] == [rows[0].shape, (0, 2, DIM), (0, 2, DIM)]
        assert [bits.shape for bits in found.halves(1)] == [(len(rows[0]), DIM), (0, DIM), (0, DIM)]


def test_nothing_to_gather_is_a_mistake_of_the_caller(path):
    with Store(path) as store, pytest.raises(ValueError, match="nothing to gather"):
        store.embeddings(TEACHER).gather(np.zeros(0, int), np.zeros((0, 1), int), np.zeros((0, 1), int))


def test_more_blocks_than_are_remembered_are_read_anew(path, monkeypatch):
    monkeypatch.setattr(embeddings, "MAX_BLOCKS", 2)
    with Store(path) as store:
        found = store.embeddings(TEACHER)
        for _ in range(2):
            for volume, plane in np.ndindex(3, 3):
                gathered = found.gather(*place(store, volume, plane))
                np.testing.assert_array_equal(gathered[0, 0], rows_of(store.record(f"v{volume}"), volume)[plane][0])
                assert 1 <= len(found._blocks) <= 2


def test_a_block_that_is_missing_is_named(path):
    with Store(path, writable=True) as store, store._database.writing() as transaction:
        transaction.delete("rows", block_key(TEACHER, "v1", 2))
    with Store(path) as store, pytest.raises(DamagedError, match=f"E_MISSING block {TEACHER[:16]}/v1/2 is missing"):
        store.embeddings(TEACHER).gather(*place(store, 1, 2))


def test_a_block_of_fewer_rows_than_the_index_says_is_named(path):
    with Store(path) as store:
        count = len(store.record("v1").valid_slices(2))
        short = rows_of(store.record("v1"), 1)[2][:-1]
    replace_block(path, 1, 2, short)
    message = f"E_CORRUPT block {TEACHER[:16]}/v1/2 has {count - 1} rows, row {count - 1} is wanted"
    with Store(path) as store:
        with pytest.raises(DamagedError, match=message):
            store.embeddings(TEACHER).gather(*place(store, 1, 2, rank=-1))
        store.embeddings(TEACHER).gather(*place(store, 1, 2))


@pytest.mark.parametrize("shape", [(2, DIM + 4), (2, DIM - 1), (1, 2 * DIM)])
def test_blocks_of_unlike_rows_are_not_mixed(path, shape):
    with Store(path) as store:
        count = len(store.record("v1").valid_slices(0))
    replace_block(path, 1, 0, np.zeros((count, *shape), np.float16))
    with Store(path) as store:
        slices = [[store.record(f"v{volume}").valid_slices(0)[0]] for volume in (0, 1)]
        message = f"E_CORRUPT blocks {TEACHER[:16]}/v0/0 and {TEACHER[:16]}/v1/0 hold rows of unlike shapes"
        with pytest.raises(DamagedError, match=message):
            store.embeddings(TEACHER).gather(np.array([0, 1]), np.zeros((2, 1), int), np.array(slices))


def test_the_wrong_row_of_a_batch_is_named(path):
    key = block_key(TEACHER, "v1", 0)
    with Store(path, writable=True) as store:
        slices = [store.record(f"v{volume}").valid_slices(0)[[0, 1]] for volume in (0, 1)]
        with store._database.writing() as transaction:
            payload = bytearray(transaction.get("rows", key))
            stride = 8 + 2 * 2 * DIM  # a checksum and two parts
            payload[16 + 2 * stride - 1] ^= 1  # the last byte of the second row
            transaction.put("rows", key, bytes(payload))
    with Store(path) as store, pytest.raises(DamagedError, match=f"E_CORRUPT row 1 of block {key.decode()} fails"):
        store.embeddings(TEACHER).gather(np.array([0, 1]), np.zeros((2, 2), int), np.array(slices))
