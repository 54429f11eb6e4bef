import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stores.blocks import Block, encode_block
from stores.errors import DamagedError
from tests.references.row_sums import row_sum

KEY = b"a1a1a1a1a1a1a1a1/v0/2"
SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 9))
ROWS = SHAPES.flatmap(lambda shape: hnp.arrays(np.float16, shape))


@settings(max_examples=50)
@given(rows=ROWS)
def test_a_block_reads_back_and_its_sums_are_those_of_the_format(rows):
    payload = encode_block(rows, KEY)
    block = Block(memoryview(payload), KEY)
    np.testing.assert_array_equal(block.rows().view(np.uint16), rows.view(np.uint16))
    size = 8 + 8 * -(-rows.shape[1] * rows.shape[2] // 4)
    for rank, row in enumerate(rows):
        stored = payload[16 + rank * size :][:8]
        assert int.from_bytes(stored, "little") == row_sum(row.tobytes(), KEY, rank)


@settings(max_examples=100)
@given(rows=ROWS.filter(lambda rows: rows.size), data=st.data())
def test_any_flipped_bit_of_a_row_is_an_error_that_names_the_row(rows, data):
    payload = bytearray(encode_block(rows, KEY))
    bit = data.draw(st.integers(8 * 16, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    rank = (bit // 8 - 16) // ((len(payload) - 16) // len(rows))
    with pytest.raises(DamagedError, match=f"row {rank} of block {KEY.decode()}"):
        Block(memoryview(bytes(payload)), KEY).rows()


def test_rows_do_not_pass_for_others():
    rows = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float16)
    payload = encode_block(rows, KEY)
    with pytest.raises(DamagedError, match="E_CORRUPT row 0"):
        Block(memoryview(payload), b"a1a1a1a1a1a1a1a1/v1/2").rows()
    size = (len(payload) - 16) // 4
    swapped = payload[:16] + payload[16 + size : 16 + 2 * size] + payload[16 : 16 + size] + payload[16 + 2 * size :]
    with pytest.raises(DamagedError, match="E_CORRUPT row 0"):
        Block(memoryview(swapped), KEY).rows()


def test_what_is_no_block_is_refused_by_name():
    payload = encode_block(np.zeros((2, 1, 4), np.float16), KEY)
    for wrong in (b"", payload[:-1], b"X" + payload[1:]):
        with pytest.raises(DamagedError, match="is not a block of rows"):
            Block(memoryview(wrong), KEY)
    with pytest.raises(DamagedError, match="E_VERSION"):
        Block(memoryview(payload[:4] + b"\x09" + payload[5:]), KEY)
