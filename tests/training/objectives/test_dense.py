import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.objectives import dense
from m3di.training.objectives.dense import DenseObjective, DenseSpec, patch_places, sample_tokens, shown_patches
from m3di.volumes import slices as slice_images
from m3di.volumes.preprocess import cube_grid
from m3di.volumes.resample import resample
from stores.geometry import CubeChain, Geometry
from tests.references import dense as literal
from tests.references import losses as literal_losses

edges = st.integers(1, 4)
J = 6


def numbers(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def objective(token_dim, grid, dim, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DenseObjective(token_dim, DenseSpec(grid, dim), cube_size=J, **options).double()


def sparse_cubes(seed, count):
    """Cubes with corners that are empty, dim or bright here and there."""
    cubes = numbers(seed, count, 1, J, J, J).abs() * 0.04
    bright = numbers(seed + 1, count, 1, J, J, J) > 2.0
    cubes[bright] = 0.6
    cubes[:, :, :2] = 0
    return cubes


@given(st.integers(0, 99), st.tuples(edges, edges, edges), st.tuples(edges, edges))
@settings(max_examples=30)
def test_the_loss_is_the_literal_loop_over_patches(seed, token_grid, patch_grid):
    random = np.random.default_rng(seed)
    planes, slices = torch.from_numpy(random.integers(0, 3, (2, 3))), torch.from_numpy(random.integers(0, J, (2, 3)))
    tokens, patches = numbers(seed, 2, 3, *token_grid), numbers(seed, 2, 3, patch_grid[0] * patch_grid[1], 4)
    cubes = sparse_cubes(seed, 2)
    module = objective(3, patch_grid, 4)
    value = module(tokens, cubes, planes=planes, slices=slices, patches=patches).item()
    weight, bias = (part.detach().numpy() for part in (module.head.weight, module.head.bias))
    expected = literal.losses(
        tokens.numpy(), cubes[:, 0].numpy(), planes, slices, patches.numpy(), grid=patch_grid,
        head=lambda token: weight @ token + bias,
    )  # fmt: skip
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.integers(0, 99), st.tuples(edges, edges, edges))
@settings(max_examples=20)
def test_interpolation_is_that_of_grid_sample(seed, token_grid):
    tokens = numbers(seed, 2, 3, *token_grid)
    places = torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (2, 7, 3)))
    wanted = (2 * places - 1).flip(-1)[:, :, None, None]
    theirs = F.grid_sample(tokens, wanted, padding_mode="border", align_corners=False)[..., 0, 0].transpose(1, 2)
    torch.testing.assert_close(sample_tokens(tokens, places), theirs)


@given(st.integers(0, 99), st.tuples(edges, edges))
@settings(max_examples=20)
def test_patches_that_show_something_are_the_literal_ones(seed, grid):
    random = np.random.default_rng(seed)
    planes, slices = torch.from_numpy(random.integers(0, 3, (1, 4))), torch.from_numpy(random.integers(0, J, (1, 4)))
    cubes = sparse_cubes(seed, 1)
    shown = shown_patches(cubes, planes, slices, grid=grid)[0].unflatten(1, grid)
    for k, row, column in np.ndindex(4, *grid):
        expected = literal.shows_something(
            cubes[0, 0].numpy(), int(planes[0, k]), int(slices[0, k]), row, column, grid=grid
        )
        assert shown[k, row, column] == expected


def test_a_patch_is_blank_by_the_rule_of_blank_slices():
    assert (dense.SIGNAL, dense.MIN_SHARE) == (slice_images.SIGNAL, slice_images.MIN_SHARE)


SIZE, CUBE = 60, 24
GEOMETRIES = {
    "RAS": Geometry((24, 24, 24), np.diag([1.0, 1, 1, 1])),
    "LPS": Geometry((24, 12, 36), np.diag([-1.5, -3, 1, 1])),
    "SLA": Geometry((12, 36, 24), np.array([[0, -1, 0, 0], [0, 0, 1.5, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])),
}


def coordinate_scans(chain):
    """Three scans, each as bright as its place is far along one canonical axis of the cube."""
    shape = chain.canonical_shape
    for axis, (count, start_mm) in enumerate(zip(shape, chain.start_mm, strict=True)):
        centres = ((np.arange(count) + 0.5) * chain.canonical_spacing_mm[axis] - start_mm) / chain.edge_mm
        along = np.expand_dims(centres, [other for other in range(3) if other != axis])
        yield chain.from_canonical(np.broadcast_to(along, shape).astype(np.float32))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("grids", [((4, 4, 4), (7, 7)), ((2, 6, 8), (3, 5))])
@pytest.mark.parametrize("plane", range(3))
def test_tokens_of_the_cube_meet_the_patches_of_the_rendered_slices(name, grids, plane):
    token_grid, (rows, columns) = grids
    chain = CubeChain(GEOMETRIES[name], CUBE)
    positions = np.array([5, 11, 18])
    cubes, images = [], []
    for scan in coordinate_scans(chain):
        grids_of_scan = [cube_grid(chain), *slice_images.plane_grids(chain, positions, SIZE)]
        cube, *stacks = resample(chain.to_canonical(scan), grids_of_scan)
        cubes.append(torch.from_numpy(np.ascontiguousarray(cube)))
        images.append(torch.from_numpy(slice_images.to_images(stacks[plane], plane) / 255.0))
    # An encoder that averages its block, and a teacher that averages its patch: both tell where they look.
    tokens = F.adaptive_avg_pool3d(torch.stack(cubes)[None], token_grid)
    patches = F.adaptive_avg_pool2d(torch.stack(images, dim=1).float(), (rows, columns)).flatten(2).transpose(1, 2)

    planes, slices = torch.full((1, 3), plane), torch.from_numpy(positions)[None]
    places = patch_places(planes, slices, grid=(rows, columns), cube_size=CUBE)
    sampled = sample_tokens(tokens, places.flatten(1, 2)).unflatten(1, (3, rows * columns))[0]
    cells = 1 / torch.tensor(token_grid)
    within = ((places[0] >= cells / 2) & (places[0] <= 1 - cells / 2)).all(dim=-1)
    assert within.sum() >= 3
    torch.testing.assert_close(sampled[within], patches[within], rtol=0, atol=0.01)
    torch.testing.assert_close(places[0], patches, rtol=0, atol=0.02)


def one_volume(**options):
    planes, slices = torch.tensor([[0, 1]]), torch.tensor([[2, 4]])
    cube = torch.full((1, 1, J, J, J), 0.5, dtype=torch.float64)
    cube[:, :, :3] = 0  # what is left of the middle is blank: the right half of axial and coronal images
    module = objective(3, (2, 2), 4, **options)
    return module, numbers(0, 1, 3, 2, 2, 2), cube, {"planes": planes, "slices": slices}


def test_blank_patches_do_not_count():
    module, tokens, cube, places = one_volume()
    patches = numbers(1, 1, 2, 4, 4)
    changed = patches.clone()
    changed[:, :, [1, 3]] = -changed[:, :, [1, 3]]
    assert module(tokens, cube, patches=changed, **places) == module(tokens, cube, patches=patches, **places)
    changed[:, :, 0] = -changed[:, :, 0]
    assert module(tokens, cube, patches=changed, **places) != module(tokens, cube, patches=patches, **places)


@pytest.mark.parametrize("kind", ["cosine", "infonce"])
def test_a_blank_volume_costs_nothing_and_has_a_gradient_of_0(kind):
    module, tokens, cube, places = one_volume(kind=kind)
    loss = module(tokens.requires_grad_(), torch.zeros_like(cube), patches=numbers(1, 1, 2, 4, 4), **places)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(tokens.grad, torch.zeros_like(tokens))


def test_info_nce_tells_the_patches_of_a_volume_from_each_other():
    module, tokens, cube, places = one_volume(kind="infonce")
    patches = numbers(1, 1, 2, 4, 4)
    value = module(tokens, cube, patches=patches, **places).item()
    where = patch_places(**places, grid=(2, 2), cube_size=J).flatten(1, 2)
    predicted = module.head(sample_tokens(tokens, where))[0].detach()
    shown = [0, 2, 4, 6]
    expected = literal_losses.info_nce(predicted[shown], patches[0].flatten(0, 1)[shown], 1 / 0.07)
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "infonce"])
def test_equal_parts_of_a_batch_have_the_mean_loss_of_the_whole(kind):
    module = objective(3, (2, 3), 4, kind=kind, hidden=5)
    tokens, cubes, patches = numbers(0, 4, 3, 2, 2, 2), sparse_cubes(3, 4), numbers(1, 4, 2, 6, 4)
    planes, slices = torch.tensor([[0, 2]] * 4), torch.tensor([[3, 4]] * 4)

    def loss(part):
        return module(tokens[part], cubes[part], planes=planes[part], slices=slices[part], patches=patches[part])

    parts = [loss(slice(start, start + 2)) for start in (0, 2)]
    torch.testing.assert_close(loss(slice(None)), torch.stack(parts).mean())


@pytest.mark.parametrize("kind", ["cosine", "infonce"])
def test_gradients(kind):
    module, tokens, cube, places = one_volume(kind=kind, hidden=4)
    patches = numbers(1, 1, 2, 4, 4)
    assert torch.autograd.gradcheck(lambda x: module(x, cube, patches=patches, **places), tokens.requires_grad_())


@pytest.mark.parametrize("kind", ["cosine", "infonce"])
def test_digits_are_kept_under_bf16_autocast(kind):
    module, tokens, cube, places = one_volume(kind=kind)
    module.head = torch.nn.Identity()  # which autocast would let run in bf16, as it shall
    patches = numbers(1, 1, 2, 4, 3)
    exact = module(tokens, cube, patches=patches, **places)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(tokens.float(), cube.float(), patches=patches.float(), **places)
    assert inside.item() == pytest.approx(exact.item(), rel=1e-5)


def test_half_precision_inside_autocast_is_widened():
    module, tokens, cube, places = one_volume()
    module, patches = module.float(), numbers(1, 1, 2, 4, 4)
    exact = module(tokens.float(), cube.float(), patches=patches.float(), **places)
    with torch.autocast("cpu", torch.bfloat16):
        value = module(tokens.bfloat16(), cube.float(), patches=patches.half(), **places)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), abs=0.01)


def test_facts_of_a_store_are_read():
    assert DenseSpec.of({"grid": [7, 7], "dim": 48, "fingerprint": "x"}) == DenseSpec((7, 7), 48)
