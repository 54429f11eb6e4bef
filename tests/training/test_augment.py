import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from m3di.training.augment import affine_maps, flip, jitter_intensity, warp

SIZE = 12
KEYS = {"seed": 3, "epochs": np.array([0, 0, 1]), "names": np.array([5, 6, 5])}


def blocks(seed=0, batch=3):
    """Cubes of blocks of four values, and the classes of these values."""
    random = np.random.default_rng(seed)
    labels = np.kron(random.integers(0, 4, (batch, 3, 3, 3)), np.ones((1, 4, 4, 4), np.int64))
    return torch.from_numpy(labels)[:, None].float() / 4, torch.from_numpy(labels)


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(0, 99), st.sets(st.sampled_from("xyz")))
def test_flips_move_image_and_label_map_alike(seed, epoch, axes):
    volumes, labels = blocks(seed)
    keys = {"seed": seed, "epochs": np.full(3, epoch), "names": np.arange(3)}
    moved, mask = flip(volumes, labels, sorted(axes), **keys)
    torch.testing.assert_close(moved[:, 0] * 4, mask.float())
    for one, before in zip(mask, labels, strict=True):
        candidates = [before.flip(list(some)) for some in subsets(["xyz".index(axis) for axis in axes])]
        assert any(torch.equal(one, candidate) for candidate in candidates)


def subsets(values):
    return [()] if not values else [some for rest in subsets(values[1:]) for some in (rest, (values[0], *rest))]


def test_each_axis_is_mirrored_half_of_the_time():
    volumes = torch.zeros(400, 1, 2, 2, 2)
    volumes[:, :, 0, 0, 0] = 1
    moved, _ = flip(volumes, None, "xyz", seed=0, epochs=np.zeros(400, int), names=np.arange(400))
    places = moved.flatten(1).argmax(dim=1)
    counts = torch.bincount(places, minlength=8)
    assert counts.min() > 25, "all eight corners"
    only_x, _ = flip(volumes, None, ["x"], seed=0, epochs=np.zeros(400, int), names=np.arange(400))
    assert set(only_x.flatten(1).argmax(dim=1).tolist()) == {0, 4}, "x is the first axis"


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(0, 99))
def test_warps_move_image_and_label_map_alike(seed, epoch):
    random = np.random.default_rng(seed)
    smooth = ndimage.zoom(random.random((4, 4, 4)), SIZE / 4, order=1)
    volumes = torch.from_numpy(smooth).float()[None, None]
    labels = (volumes[:, 0] > 0.5).long()
    moved, mask = warp(volumes, labels, seed=seed, epochs=np.array([epoch]), names=np.array([0]))
    sure = ((moved[:, 0] - 0.5).abs() > 0.15) & inside(seed, epoch)
    assert sure.any()
    assert torch.equal(mask[sure], (moved[:, 0] > 0.5).long()[sure])


def inside(seed, epoch):
    """Where a warped cube shows what lay well inside the cube."""
    ones, _ = warp(torch.ones(1, 1, *(SIZE,) * 3), None, seed=seed, epochs=np.array([epoch]), names=np.array([0]))
    return ones[:, 0] > 0.999


def test_a_warp_is_scipys_affine_transform():
    volumes = torch.from_numpy(np.random.default_rng(1).random((1, 1, SIZE, SIZE, SIZE))).float()
    uniform = np.array([[0.5, -0.7, 0.2, 0.9, 0.4, -0.3, 0.8]])
    degrees = np.deg2rad(10 * uniform[0, :3])
    matrix = np.eye(3)
    for axis, angle in enumerate(degrees):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix *= 1.1 ** uniform[0, 3]
    centre = np.full(3, (SIZE - 1) / 2)
    offset = centre - matrix @ centre + 0.05 * SIZE * uniform[0, 4:]
    expected = ndimage.affine_transform(volumes[0, 0].numpy(), matrix, offset, order=1, mode="grid-constant")
    theta = torch.from_numpy(affine_maps(uniform)).float()
    grid = torch.nn.functional.affine_grid(theta, list(volumes.shape), align_corners=False)
    found = torch.nn.functional.grid_sample(volumes, grid, align_corners=False)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-5)


def test_what_comes_from_outside_is_background_and_the_unknown_stays_unknown():
    volumes, labels = torch.ones(1, 1, *(SIZE,) * 3), torch.full((1, *(SIZE,) * 3), -1)
    moved, mask = warp(volumes, labels, seed=0, epochs=np.array([0]), names=np.array([0]))
    assert set(mask.unique().tolist()) == {-1, 0}
    assert not mask[moved[:, 0] == 0].any()


@pytest.mark.parametrize("change", [warp, lambda v, m, **keys: flip(v, m, "xyz", **keys)])
def test_the_key_is_seed_epoch_and_volume(change):
    volumes, labels = blocks()
    volumes, labels = volumes[:1].expand(3, -1, -1, -1, -1), labels[:1].expand(3, -1, -1, -1)
    state = torch.random.get_rng_state()
    first, _ = change(volumes, labels, **KEYS)
    again, _ = change(volumes, labels, **KEYS)
    assert torch.equal(first, again)
    alone, _ = change(volumes[:1], labels[:1], seed=3, epochs=np.array([1]), names=np.array([5]))
    torch.testing.assert_close(first[2:], alone)
    later, _ = change(volumes, labels, **{**KEYS, "epochs": np.array([7, 8, 9])})
    assert not torch.equal(first, later)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"


def test_intensities_change_and_zero_stays_zero():
    volumes, _ = blocks()
    changed = jitter_intensity(volumes, **KEYS)
    assert torch.equal(changed == 0, volumes == 0)
    assert not torch.allclose(changed, volumes)
    assert 0 <= changed.min() <= changed.max() <= 1
