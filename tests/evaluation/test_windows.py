import itertools

import numpy as np
import pytest

from m3di.evaluation.windows import Box, blend, boxes_of, gaussian, part_chain
from m3di.volumes import preprocess
from m3di.volumes.readers import Volume
from stores.geometry import CubeChain, Geometry
from stores.recipe import Recipe
from tests.evaluation.stand_ins import Soft, Threshold, predictor
from tests.phantoms import ras_affine


def scan(data, spacing=(1.0, 1.0, 1.0), modality="MR", affine=None):
    affine = ras_affine(spacing) if affine is None else affine
    return Volume(data, Geometry(data.shape, affine), modality)


def noisy(shape, seed=0):
    """Dark noise with a bright ball in it."""
    random = np.random.default_rng(seed)
    grid = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2
    ball = np.sqrt((grid**2).sum(axis=0)) < 0.3 * min(shape)
    return (100 * ball + random.uniform(0, 5, shape)).astype(np.float32)


def mirrored(spacing):
    """Axes permuted and flipped: (i, j, k) run to posterior, superior, left."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2] = -spacing[0], spacing[1], -spacing[2]
    affine[:, 3] = (10, 20, 30, 1)
    return affine


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_windows_cover_every_voxel_and_have_the_width_asked_for(overlap):
    chain = CubeChain(Geometry((50, 20, 90), ras_affine((2.0, 2.0, 1.0))), 16)
    boxes = boxes_of(chain, 40.0, overlap=overlap)
    covered = np.zeros(chain.canonical_shape, int)
    for box in boxes:
        covered[box.slices] += 1
        assert [stop - start for start, stop in zip(box.start, box.stop, strict=True)] == [20, 20, 40]
    assert covered.min() >= 1
    starts = sorted({box.start[2] for box in boxes})
    assert all(later - sooner <= 40 * (1 - overlap) for sooner, later in itertools.pairwise(starts))
    assert [box.start[2] for box in boxes] == sorted(box.start[2] for box in boxes), "from below to above"


def test_a_part_of_a_scan_lies_where_it_lay_in_the_scan():
    spacing = (1.0, 2.0, 3.0)
    geometry = Geometry((12, 10, 8), mirrored(spacing))
    chain = CubeChain(geometry, 4)
    box = Box((1, 2, 3), (5, 9, 7))
    part = part_chain(chain, box)
    numbers = np.arange(12 * 10 * 8).reshape(12, 10, 8)
    inside = chain.to_canonical(numbers)[box.slices]
    source = part.from_canonical(inside)
    assert source.shape == part.source.shape
    for index in ((0, 0, 0), (2, 1, 3)):
        there = np.unravel_index(source[index], numbers.shape)
        mine = part.source.affine @ [*index, 1]
        np.testing.assert_allclose(mine, geometry.affine @ [*there, 1])


@pytest.mark.parametrize("affine", [ras_affine((1.0, 1.5, 2.0)), mirrored((1.0, 1.5, 2.0))])
def test_one_window_that_suffices_gives_what_the_whole_scan_gives(affine):
    volume = scan(noisy((24, 20, 18)), affine=affine)
    whole = predictor(Soft(), cube_size=16)
    chain = preprocess.chain_of(volume, whole.recipe)
    boxes = boxes_of(chain, chain.edge_mm, overlap=0.5)
    assert len(boxes) == 1
    tiled = np.concatenate([part for _, part in blend(volume, whole.recipe, boxes, whole.scores)], axis=3)
    plain = np.concatenate([part for _, part in whole.slabs(volume)], axis=3)
    np.testing.assert_allclose(tiled, plain, atol=1e-5)


@pytest.mark.parametrize("affine", [ras_affine((2.0, 2.0, 2.0)), mirrored((2.0, 2.0, 2.0))])
def test_a_structure_over_several_windows_comes_out_whole(affine):
    data = noisy((60, 48, 40))
    volume = scan(data, affine=affine)
    edges = {"smallest": 40.0, "median": 40.0, "largest": 48.0}
    tiles = predictor(Threshold(), cube_size=20, edges_mm=edges)
    assert len(tiles.windows(volume)) > 20
    truth = data > 50
    assert dice(tiles.mask(volume), truth) > 0.99, "a window's voxels are the scan's"
    coarse = predictor(Threshold(), cube_size=20)
    assert coarse.windows(volume) == [], "nobody knows the field of an early run: the scan is taken whole"
    assert dice(coarse.mask(volume), truth) < dice(tiles.mask(volume), truth)


def test_scans_a_little_wider_than_those_in_training_are_taken_whole():
    volume = scan(noisy((60, 30, 30)))
    edges = {"smallest": 40.0, "median": 40.0, "largest": 41.0}
    assert predictor(Threshold(), edges_mm=edges, windows_beyond=1.5).windows(volume) == []
    assert predictor(Threshold(), edges_mm=edges, windows_beyond=1.4).windows(volume) != []


def test_intensities_are_scaled_as_in_the_whole_scan_not_as_in_a_part():
    """The upper half holds nothing but faint noise; stretched to its own range it would be full of structures."""
    data = noisy((30, 30, 80))
    data[:, :, 40:] = np.random.default_rng(1).uniform(0, 5, (30, 30, 40))
    data[10:20, 10:20, 10:30] = 100
    volume = scan(data)
    edges = {"smallest": 30.0, "median": 30.0, "largest": 30.0}
    tiles = predictor(Threshold(), cube_size=30, edges_mm=edges)
    mask = tiles.mask(volume)
    assert not mask[:, :, 45:].any()
    assert mask[12:18, 12:18, 12:28].all()
    part = scan(data[:, :, 50:])
    assert predictor(Threshold(), cube_size=30).mask(part).mean() > 0.2, "which its own range does"


def test_windows_are_looked_at_when_their_slices_come_not_all_at_once():
    volume = scan(noisy((20, 20, 200)))
    network = Threshold()
    tiles = predictor(network, cube_size=10, edges_mm={"smallest": 20.0, "median": 20.0, "largest": 20.0})
    boxes = tiles.windows(volume)
    slabs = tiles.slabs(volume)
    first, _ = next(slabs)
    begun = len(network.seen)
    assert begun == sum(box.start[2] < first.stop for box in boxes)
    list(slabs)
    assert len(network.seen) == len(boxes)


def test_weights_are_gaussian_with_an_eighth_of_the_window_as_deviation():
    weights = gaussian(17)
    assert weights.argmax() == 8
    assert weights[8] == 1
    np.testing.assert_allclose(weights[6], np.exp(-0.5 * (2 / (17 / 8)) ** 2), rtol=1e-6)
    assert weights.min() >= 1e-3


def test_a_ct_window_is_the_recipes_in_every_part():
    data = np.full((20, 20, 60), -1000, np.float32)
    data[5:15, 5:15, 5:15] = 400
    volume = scan(data, modality="CT")
    recipe = Recipe(cube_size=20)
    network = Threshold()
    tiles = predictor(network, cube_size=20, edges_mm={"smallest": 20.0, "median": 20.0, "largest": 20.0})
    list(tiles.slabs(volume))
    highest = max(float(seen.max()) for seen in network.seen)
    assert highest == pytest.approx((400 - recipe.ct_window_hu[0]) / 2000, abs=1e-3)
    assert min(float(seen.max()) for seen in network.seen) == 0, "air is air"


def dice(mask, truth):
    found = mask > 0
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())
