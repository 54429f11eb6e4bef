from types import SimpleNamespace

import pytest
import torch
from torchvision.models import resnet50

from m3di.networks.m3t import SliceFeatures, TokenSequence
from m3di.networks.registry import create_classification
from stores.errors import RefusedError
from tests.networks.test_encoders import cubes
from tests.networks.test_imagenet import publish
from tests.networks.test_registry import refusal
from tests.references.m3t import sequence

SMALL = {"channels": 2, "hidden_size": 16, "mlp_dim": 24, "num_layers": 2, "num_heads": 2}


@pytest.fixture(autouse=True)
def no_weights_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def small(num_classes=3, **options):
    torch.manual_seed(0)
    return create_classification("m3t", cube_size=32, num_classes=num_classes, **{**SMALL, **options})


def inputs_of(module):
    """A list that gets the first input of each call."""
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return seen


def test_parameter_count_at_full_size():
    with torch.device("meta"):
        network = create_classification("m3t", cube_size=128, num_classes=2)
    convolutions = 32 * 5**3 + 2 * 32 + 32 * 32 * 5**3 + 2 * 32
    # torchvision's, less its classes, with a wider stem
    resnet = 25_557_032 - (2048 * 1000 + 1000) + (32 - 3) * 64 * 7 * 7
    projection = (2048 * 512 + 512) + (512 * 256 + 256)
    tokens = (388 + 3 + 1 + 1) * 256  # positions, planes, class token, separator
    layer = 4 * (256 * 256 + 256) + (256 * 768 + 768) + (768 * 256 + 256) + 2 * 2 * 256
    expected = convolutions + resnet + projection + tokens + 8 * layer + 2 * 256 + (2 * 256 + 2)
    assert sum(p.numel() for p in network.parameters()) == expected == 30_280_610
    assert network.encoder is None


def test_388_tokens_and_384_slices_at_full_size():
    with torch.device("meta"):
        network = create_classification("m3t", cube_size=128, num_classes=2)
        tokens, slices = inputs_of(network.head.layers[0]), inputs_of(network.head.slice_features.resnet)
        assert network(torch.empty(2, 1, 128, 128, 128)).shape == (2, 2)
    assert [t.shape for t in tokens] == [(2, 388, 256)]
    assert [s.shape for s in slices] == [(2 * 384, 32, 128, 128)]


@torch.no_grad()
def test_its_sequence_is_the_literal_reference():
    network, volume = small().eval(), cubes(2)
    seen = inputs_of(network.head.layers[0])
    network(volume)
    assert seen[0].shape == (2, 1 + 3 * 33, 16)
    torch.testing.assert_close(seen[0][1], sequence(network.head, volume[1, 0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_class_token_and_separators_take_their_places():
    given = TokenSequence(num_slices=2, token_dim=1)
    given.class_token.fill_(1000)
    given.separator.fill_(2000)
    given.plane.copy_(torch.tensor([[100.0], [200.0], [300.0]]))
    given.position.copy_(torch.arange(10.0)[:, None] / 10)
    slices = torch.arange(1.0, 7).view(1, 6, 1)
    expected = [1100, 101.1, 102.2, 2100.3, 203.4, 204.5, 2200.6, 305.7, 306.8, 2300.9]
    torch.testing.assert_close(given(slices)[0, :, 0], torch.tensor(expected))


@torch.no_grad()
def test_only_the_class_token_is_read():
    network, last = small().eval(), []
    network.head.layers[-1].register_forward_hook(lambda *call: last.append(call[-1]))
    logits = network(cubes(1))
    assert last[0].shape == (1, 100, 16)
    torch.testing.assert_close(logits, network.head.classify(network.head.norm(last[0][:, 0])))


@pytest.mark.parametrize("slices_per_chunk", [None, 12])
def test_every_weight_gets_a_gradient(slices_per_chunk):
    network = small(slices_per_chunk=slices_per_chunk, dropout=0.1)
    logits = network(cubes(1))
    assert logits.shape == (1, 3)
    logits.square().mean().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(("slices_per_chunk", "sizes"), [(32, [32]), (12, [11, 11, 10]), (100, [32])])
@torch.no_grad()
def test_chunks_change_nothing_in_evaluation(slices_per_chunk, sizes):
    whole, chunked = small().eval(), small(slices_per_chunk=slices_per_chunk).eval()
    seen = inputs_of(chunked.head.slice_features.resnet)
    torch.testing.assert_close(chunked(cubes(2)), whole(cubes(2)), rtol=1e-4, atol=1e-5)
    assert [len(s) for s in seen] == [2 * size for size in sizes] * 3


@pytest.mark.slow
def test_checkpointing_changes_neither_gradients_nor_statistics():
    results = []
    for checkpointing in (False, True):
        network = small(slices_per_chunk=16, checkpointing=checkpointing)
        calls = inputs_of(network.head.slice_features)
        network(cubes(1)).square().sum().backward()
        assert len(calls) == 6 * (1 + checkpointing)
        gradients = {f"{n}.grad": p.grad for n, p in network.named_parameters()}
        results.append(dict(network.named_buffers()) | gradients)
        assert {m.momentum for m in network.modules() if hasattr(m, "momentum")} == {0.1}
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, msg=lambda text, name=name: f"{name}: {text}")
    assert results[0]["head.slice_features.resnet.bn1.num_batches_tracked"] == 6


def test_training_may_set_checkpointing():
    network = small()
    assert network.head.checkpointing is False
    calls = inputs_of(network.head.slice_features)
    network.head.checkpointing = True
    network(cubes(1)).sum().backward()
    assert len(calls) == 2


@torch.no_grad()
def test_runs_under_bf16_autocast():
    network = small().eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(cubes(1))
    torch.testing.assert_close(logits.float(), network(cubes(1)), rtol=0.1, atol=0.1)


@torch.no_grad()
def test_an_odd_cube_leaves_a_chunk_of_one_slice():
    torch.manual_seed(0)
    network = create_classification("m3t", cube_size=33, num_classes=2, slices_per_chunk=2, **SMALL)
    seen = inputs_of(network.head.slice_features.resnet)
    assert network(cubes(1, 33)).isfinite().all()
    assert [len(s) for s in seen] == ([2] * 16 + [1]) * 3


def test_sizes_that_do_not_fit_are_refused():
    message, hint = refusal(create_classification, "m3t", cube_size=31, num_classes=2)
    assert (message, bool(hint)) == ("m3t needs a cube of at least 32 voxels, not 31", True)
    assert refusal(small, slices_per_chunk=1)[0] == "m3t: chunks of 1 slices"
    assert refusal(small, num_heads=3)[0].startswith("m3t: stages of [16] channels")
    assert refusal(small, dropout=2.0)[0] == "dropout 2.0 is no share"


def test_imagenet_weights_are_used_where_they_are_on_the_disk(tmp_path, monkeypatch):
    assert small().head.initialisation == "random"
    with pytest.raises(RefusedError, match=r"E_WEIGHTS no ImageNet weights at .*resnet50-0676ba61\.pth"):
        small(imagenet=True)
    torch.manual_seed(5)
    state = resnet50(weights=None).state_dict()
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=publish(tmp_path, state)))
    monkeypatch.setattr("m3di.networks.m3t.ResNet50_Weights", weights)
    network, without = small(), small(imagenet=False)
    assert (network.head.initialisation, without.head.initialisation) == ("imagenet", "random")
    loaded = network.head.slice_features.resnet.state_dict()
    assert loaded.keys() == state.keys() - {"fc.weight", "fc.bias"}
    stem = loaded.pop("conv1.weight")
    assert torch.equal(stem, without.head.slice_features.resnet.conv1.weight)
    for name, value in loaded.items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_the_slice_network_is_torchvisions_resnet50():
    features = SliceFeatures(3, 8).eval()
    theirs = resnet50(weights=None).eval()
    theirs.load_state_dict(features.resnet.state_dict() | theirs.fc.state_dict(prefix="fc."), strict=True)
    pictures = torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        seen = inputs_of(theirs.fc)
        theirs(pictures[0])
        torch.testing.assert_close(features(pictures), features.project(seen[0]))
