import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stores.chunks import LAYOUTS
from stores.errors import DamagedError
from stores.recipe import Recipe
from stores.volumes import MIN_CAPACITY, VolumeStore, encode_parts, layouts

RECIPE = Recipe(cube_size=8, slice_size=4, slice_stride=2, labels=True)


@pytest.fixture(scope="module", params=list(LAYOUTS))
def store(tmp_path_factory, request):
    return VolumeStore.create(tmp_path_factory.mktemp("volumes") / "v.zarr", RECIPE, LAYOUTS[request.param])


@settings(max_examples=30)
@given(
    cube=hnp.arrays(np.float16, (8, 8, 8), elements=st.floats(0, 1, width=16)),
    label=hnp.arrays(np.uint8, (8, 8, 8)),
    slot=st.integers(0, 3 * MIN_CAPACITY),
)
def test_own_reader_and_zarr_python_give_the_same_bytes(store, cube, label, slot):
    store.write(slot, encode_parts({"image": cube, "label": label}, RECIPE, store.layout))
    group = zarr.open_group(store.folder, mode="r")
    for name, part in (("image", cube), ("label", label)):
        np.testing.assert_array_equal(store.read(name, slot), part)
        np.testing.assert_array_equal(group[name][slot], part)


@settings(max_examples=20)
@given(
    cube=hnp.arrays(np.float16, (8, 8, 8), elements=st.floats(0, 1, width=16)),
    label=hnp.arrays(np.uint8, (8, 8, 8)),
)
def test_own_writer_and_zarr_python_make_the_same_chunk_files(store, cube, label):
    store.write(0, encode_parts({"image": cube, "label": label}, RECIPE, store.layout))
    group = zarr.open_group(store.folder, mode="r+")
    for name, part in (("image", cube), ("label", label)):
        group[name].with_config({"write_empty_chunks": True})[1] = part
        assert store.chunk_path(name, 1).read_bytes() == store.chunk_path(name, 0).read_bytes()


def test_reads_into_the_callers_memory(store):
    cube = np.random.default_rng(0).random((8, 8, 8)).astype(np.float16)
    store.write(0, encode_parts({"image": cube}, RECIPE, store.layout))
    batch = np.zeros((2, 8, 8, 8), np.float16)
    store.read("image", 0, out=batch[1])
    np.testing.assert_array_equal(batch[1], cube)
    assert not batch[0].any()


def test_a_missing_volume_reads_as_nan_in_zarr_and_is_an_error_here(store):
    store.remove(MIN_CAPACITY - 1)  # which another test may have written
    assert np.isnan(zarr.open_group(store.folder, mode="r")["image"][MIN_CAPACITY - 1]).all()
    with pytest.raises(DamagedError, match=r"c\.63\.0\.0\.0 is missing"):
        store.read("image", MIN_CAPACITY - 1)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:]])
def test_a_damaged_chunk_is_an_error_that_names_it(store, damage):
    store.write(1, encode_parts({"image": np.ones((8, 8, 8), np.float16)}, RECIPE, store.layout))
    path = store.chunk_path("image", 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedError, match=r"image/c\.1\.0\.0\.0"):
        store.read("image", 1)


def test_wrong_shapes_are_not_written(store):
    with pytest.raises(ValueError, match="the array holds float16"):
        store.write(0, encode_parts({"image": np.zeros((8, 8, 8), np.float32)}, RECIPE, store.layout))


@given(cube=st.integers(1, 200), data=st.data())
def test_an_array_of_slices_has_a_place_for_each_position(cube, data):
    recipe = Recipe(cube_size=cube, slice_stride=data.draw(st.integers(1, cube)), slice_size=4)
    positions = np.array(recipe.positions)
    assert layouts(recipe)["axial"].shape[0] == len(positions)
    np.testing.assert_array_equal(positions // recipe.slice_stride, np.arange(len(positions)))
