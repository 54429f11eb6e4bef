import importlib.util
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m3di.networks import psat as psat_module
from m3di.networks.psat import MODES, POOLINGS, PlaneSliceAwareTransformer
from stores.errors import RefusedError
from tests.references import psat as literal

TOKEN_DIM, NUM_SLICES = 6, 10
FORMS = [form for form in product(MODES, POOLINGS, (1, 2)) if form[0] != "linear" or form[1:] == ("mean", 1)]


def tiny_psat(seed=0, **options):
    """A small PSAT in float64 with every weight random: at the initial zeros, mistakes could hide."""
    psat = PlaneSliceAwareTransformer(
        TOKEN_DIM, embedding_dim=5, width=8, num_queries=4, num_heads=2, num_slices=NUM_SLICES, **options
    ).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in psat.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    return psat


def case(seed=0, b=2, n=5, k=3):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(b, n, TOKEN_DIM, dtype=torch.float64, generator=generator)
    plane = torch.randint(3, (b, k), generator=generator)
    return tokens, plane, torch.randint(NUM_SLICES, (b, k), generator=generator)


def outputs_and_gradients(predict, psat, tokens, plane, index):
    psat.zero_grad()
    tokens = tokens.clone().requires_grad_()
    output = predict(tokens, plane, index)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    gradients = {name: parameter.grad.clone() for name, parameter in psat.named_parameters()}
    return {"output": output.detach(), "tokens": tokens.grad, **gradients}


@pytest.mark.parametrize(("mode", "pooling", "num_layers"), FORMS)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), b=st.integers(1, 2), n=st.integers(1, 5), k=st.integers(1, 3))
def test_outputs_and_all_gradients_equal_the_literal_form(mode, pooling, num_layers, seed, b, n, k):
    psat = tiny_psat(seed, mode=mode, pooling=pooling, num_layers=num_layers)
    inputs = case(seed, b, n, k)
    fast = outputs_and_gradients(psat, psat, *inputs)
    expected = outputs_and_gradients(lambda *args: literal.predict(psat, *args), psat, *inputs)
    assert fast.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


AUTHOR = {"norm": "post", "activation": "relu", "mlp_dim": 3, "pooling": "query0", "num_layers": 3}


@pytest.mark.parametrize("options", [AUTHOR, {**AUTHOR, "pooling": "mean"}, {"activation": "relu", "mlp_dim": 5}])
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 3))
def test_layers_that_normalise_their_sums_equal_the_literal_form(options, seed, k):
    psat = tiny_psat(seed, **options)
    assert psat.layers[0].mlp[0].out_features == options["mlp_dim"]
    inputs = case(seed, 2, 4, k)
    fast = outputs_and_gradients(psat, psat, *inputs)
    expected = outputs_and_gradients(lambda *args: literal.predict(psat, *args), psat, *inputs)
    for name, value in expected.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_a_post_norm_layer_is_pytorchs_decoder_layer():
    """With the volume and its place as memory; PyTorch's keys have a bias, which the softmax does not see."""
    layer = tiny_psat(num_layers=1, norm="post", activation="relu", mlp_dim=3).layers[0]
    theirs = torch.nn.TransformerDecoderLayer(8, 2, 3, dropout=0.0, batch_first=True).double()
    named = dict(zip(("self_attn", "multihead_attn"), (layer.self_attention, layer.cross_attention), strict=True))
    with torch.no_grad():
        for name, maps in named.items():
            attention = theirs.get_submodule(name)
            attention.in_proj_weight.copy_(torch.cat([maps.query.weight, maps.key.weight, maps.value.weight]))
            attention.in_proj_bias.copy_(torch.cat([maps.query.bias, torch.ones(8), maps.value.bias]))
            attention.out_proj.load_state_dict(maps.output.state_dict())
        for number, norm in enumerate((layer.self_norm, layer.cross_norm, layer.mlp_norm), start=1):
            theirs.get_submodule(f"norm{number}").load_state_dict(norm.state_dict())
        theirs.linear1.load_state_dict(layer.mlp[0].state_dict())
        theirs.linear2.load_state_dict(layer.mlp[2].state_dict())
        generator = torch.Generator().manual_seed(5)
        queries, memory, position = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((1, 1, 4, 8), (1, 5, 8), (1, 1, 8))
        )
        expected = theirs(queries[0], memory + position)
        torch.testing.assert_close(layer(queries, memory, position)[0], expected)


def test_what_a_step_adds_is_dropped_in_training_only():
    psat = tiny_psat(dropout=0.5)
    tokens, plane, index = case()
    evaluated = psat.eval()(tokens, plane, index)
    torch.testing.assert_close(evaluated, tiny_psat()(tokens, plane, index))
    psat.train()
    torch.manual_seed(0)
    assert not torch.allclose(psat(tokens, plane, index), psat(tokens, plane, index))


def test_queries_start_small_and_unlike():
    queries = PlaneSliceAwareTransformer(TOKEN_DIM, width=64, num_heads=2, num_queries=100).queries
    assert queries.std().item() == pytest.approx(0.02, rel=0.05)


def test_places_may_start_at_random():
    options = {"embedding_dim": 5, "width": 64, "num_heads": 2, "num_queries": 2, "num_slices": 100}
    assert not PlaneSliceAwareTransformer(TOKEN_DIM, **options).position.any(), "the paper's start"
    drawn = PlaneSliceAwareTransformer(TOKEN_DIM, **options, position_std=0.5).position
    assert drawn.std().item() == pytest.approx(0.5, rel=0.05)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), b=st.integers(1, 2), k=st.integers(1, 3), extent_mm=st.floats(5, 40))
def test_places_in_mm_equal_the_literal_form_too(seed, b, k, extent_mm):
    psat = tiny_psat(seed, positions="mm", extent_mm=extent_mm)
    voxel_mm = 0.5 + 3 * torch.rand(b, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    inputs = case(seed, b, 4, k)
    fast = outputs_and_gradients(lambda *args: psat(*args, voxel_mm), psat, *inputs)
    expected = outputs_and_gradients(lambda *args: literal.predict(psat, *args, voxel_mm), psat, *inputs)
    for name, value in expected.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_places_in_mm_are_the_index_where_the_table_is_as_wide_as_the_cube():
    by_index, by_mm = tiny_psat(), tiny_psat(positions="mm", extent_mm=NUM_SLICES * 2.0)
    tokens, plane, index = case()
    two_mm = torch.full((2,), 2.0, dtype=torch.float64)
    torch.testing.assert_close(by_mm(tokens, plane, index, two_mm), by_index(tokens, plane, index))


def test_equal_distances_in_mm_are_equal_places_whatever_the_voxels():
    # Of 10 slices the centre lies between 4 and 5: slice 6 of 1 mm and slice 5 of 3 mm are both 1.5 mm from it.
    psat = tiny_psat(positions="mm", extent_mm=20.0)
    tokens, _, _ = case(b=1)
    plane = torch.zeros(1, 1, dtype=torch.int64)
    fine = psat(tokens, plane, plane + 6, torch.tensor([1.0], dtype=torch.float64))
    coarse = psat(tokens, plane, plane + 5, torch.tensor([3.0], dtype=torch.float64))
    torch.testing.assert_close(fine, coarse)
    with pytest.raises(ValueError, match="voxel_mm"):
        psat(tokens, plane, plane)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operator makes, forward or backward."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [tensor.numel() for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return made


def test_no_operator_makes_a_tensor_of_queries_by_tokens():
    queries, tokens, slices = 64, 512, 4
    psat = PlaneSliceAwareTransformer(
        TOKEN_DIM, width=16, num_queries=queries, num_heads=2, num_slices=NUM_SLICES, embedding_dim=5
    )
    inputs = case(b=1, n=tokens, k=slices)
    with Largest() as largest:
        psat(inputs[0].float(), *inputs[1:]).sum().backward()
    # The MLP's hidden layer is the largest, four times the width; one slice's attention matrix would be larger.
    assert largest.size == slices * queries * 4 * 16 < queries * tokens


def test_each_slice_depends_on_its_own_place_only():
    psat = tiny_psat()
    tokens, plane, index = case()
    together = psat(tokens, plane, index)
    alone = psat(tokens, plane[:, 1:2], index[:, 1:2])
    torch.testing.assert_close(together[:, 1:2], alone)


@pytest.mark.parametrize("mode", ["no_position", "linear"])
def test_without_position_all_slices_are_alike(mode):
    output = tiny_psat(mode=mode)(*case())
    assert output.shape == (2, 3, 5)
    torch.testing.assert_close(output, output[:, :1].expand(-1, 3, -1), rtol=0, atol=0)


def test_a_fresh_network_sees_no_position_and_learns_it():
    psat = PlaneSliceAwareTransformer(TOKEN_DIM, width=8, num_queries=4, num_heads=2, num_slices=NUM_SLICES).double()
    tokens, plane, index = case(b=1)
    output = psat(tokens, plane, index)
    assert output.shape == (1, 3, 512)
    torch.testing.assert_close(output[:, 0], output[:, 1])
    output[0, 0].square().sum().backward()
    touched = psat.position.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[plane[0, 0].item(), index[0, 0].item()]]


def test_attention_pooling_starts_as_the_mean():
    torch.manual_seed(0)
    mean = PlaneSliceAwareTransformer(TOKEN_DIM, width=8, num_queries=4, num_heads=2, num_slices=NUM_SLICES)
    attention = PlaneSliceAwareTransformer(
        TOKEN_DIM, width=8, num_queries=4, num_heads=2, num_slices=NUM_SLICES, pooling="attention"
    )
    attention.load_state_dict(mean.state_dict(), strict=False)
    tokens, plane, index = case()
    torch.testing.assert_close(attention(tokens.float(), plane, index), mean(tokens.float(), plane, index))


def test_the_papers_size():
    # Queries 300 x 512; positions 3 x 128 x 512; two attentions of 4 maps 512 x 512 and 3 biases; MLP 512-2048-512;
    # 4 norms; maps 768 -> 512 and 512 -> 512.
    attention = 4 * 512 * 512 + 3 * 512
    mlp = 2 * 512 * 2048 + 2048 + 512
    maps = 768 * 512 + 512 + 512 * 512 + 512
    with torch.device("meta"):
        psat = PlaneSliceAwareTransformer(768)
    expected = 300 * 512 + 3 * 128 * 512 + 2 * attention + mlp + 4 * 2 * 512 + maps
    assert sum(p.numel() for p in psat.parameters()) == expected
    assert psat.position.shape == (3, 128, 512)


def test_slices_beyond_the_volume_are_an_error_not_another_slice():
    tokens, plane, index = case()
    with pytest.raises(IndexError):
        tiny_psat()(tokens, plane, index + NUM_SLICES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"width": 10, "num_heads": 4}, "10.*4"),
        ({"mode": "ex3"}, "ex3"),
        ({"pooling": "max"}, "max"),
        ({"positions": "inch"}, "inch"),
        ({"num_layers": 0}, "num_layers 0"),
    ],
)
def test_refuses_options_that_do_not_fit(options, told):
    with pytest.raises(RefusedError, match=told) as refusal:
        PlaneSliceAwareTransformer(TOKEN_DIM, **options)
    assert refusal.value.code == "E_CONFIG"
    assert refusal.value.hint


def test_runs_under_bf16_autocast():
    psat = tiny_psat().float()
    tokens, plane, index = case()
    wide = psat(tokens.float(), plane, index)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = psat(tokens.float(), plane, index)
    narrow.float().sum().backward()
    torch.testing.assert_close(narrow.float(), wide, rtol=0.05, atol=0.05 * wide.abs().max().item())


def test_traces_into_one_graph():
    # Under another name the import hook's shape checks, which no compiler can trace, stay off.
    spec = importlib.util.spec_from_file_location("psat_without_shape_checks", psat_module.__file__)
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    psat = unchecked.PlaneSliceAwareTransformer(TOKEN_DIM, width=8, num_queries=4, num_heads=2).double()
    compiled = torch.compile(psat, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*case()), psat(*case()))
