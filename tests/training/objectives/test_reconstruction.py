import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.objectives.reconstruction import Reconstruction, scan_box

edges = st.integers(1, 3)


def numbers(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), st.tuples(edges, edges, edges), edges)
@settings(max_examples=20)
def test_every_voxel_is_predicted_by_the_token_of_its_block(seed, grid, stride):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        objective = Reconstruction(4, token_stride=stride).double()
    tokens = numbers(seed, 2, 4, *grid)
    rebuilt = objective.rebuild(tokens)
    assert rebuilt.shape == (2, 1, *(n * stride for n in grid))
    for b, x, y, z in np.ndindex(2, *rebuilt.shape[2:]):
        token = tokens[b, :, x // stride, y // stride, z // stride]
        output = (x % stride * stride + y % stride) * stride + z % stride
        expected = objective.head.weight[output] @ token + objective.head.bias[output]
        assert rebuilt[b, 0, x, y, z].item() == pytest.approx(expected.item())


def test_padding_does_not_count_and_air_within_the_scan_does():
    cube = torch.zeros(1, 1, 4, 4, 4)
    cube[0, 0, 1:3, 0:4, 2] = 0.5
    cube[0, 0, 1, 1, 2] = 0.0
    box = scan_box(cube)
    assert box[0, 0, 1:3, :, 2].all()
    assert box.sum() == 8


def test_the_loss_is_the_mean_over_volumes_of_the_mean_square_within_the_scan():
    objective = Reconstruction(3, token_stride=2).double()
    tokens = numbers(0, 2, 3, 2, 2, 2)
    volumes = numbers(1, 2, 1, 4, 4, 4).abs() + 0.1
    volumes[0, :, :1] = 0
    volumes[1] = 0
    errors = (objective.rebuild(tokens) - volumes)[0, 0, 1:].square()
    assert objective(tokens, volumes).item() == pytest.approx(errors.mean().item() / 2)


def test_gradients():
    objective = Reconstruction(3, token_stride=2).double()
    volumes = numbers(1, 1, 1, 4, 4, 4).abs()
    assert torch.autograd.gradcheck(
        lambda tokens: objective(tokens, volumes), numbers(0, 1, 3, 2, 2, 2).requires_grad_()
    )


def test_of_long_blocks_the_means_of_eighths_are_rebuilt_on_any_grid():
    objective = Reconstruction(3, token_stride=16).double()
    tokens = numbers(0, 1, 3, 2, 1, 3)
    cells = numbers(1, 1, 1, 16, 8, 24).abs() + 0.1
    volumes = cells.repeat_interleave(2, 2).repeat_interleave(3, 3).repeat_interleave(1, 4)
    expected = (objective.rebuild(tokens) - cells).square().mean().item()
    assert objective(tokens, volumes).item() == pytest.approx(expected)
