from types import SimpleNamespace

import pytest
import torch
from torch.optim import SGD
from torchvision.models import alexnet

from m3di.networks.mrnet import PLANES, PlaneCombination, PlaneNetwork
from m3di.networks.registry import create_classification
from stores.errors import RefusedError
from tests.networks.test_encoders import cubes
from tests.networks.test_imagenet import publish
from tests.networks.test_registry import refusal
from tests.references.mrnet import classify


@pytest.fixture(autouse=True)
def no_weights_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def network(num_classes=2, **options):
    torch.manual_seed(0)
    return create_classification("mrnet", cube_size=64, num_classes=num_classes, **options)


def test_parameter_counts():
    with torch.device("meta"):
        plane, whole = PlaneNetwork(num_classes=1), network()
    assert sum(p.numel() for p in plane.parameters()) == 2_469_953
    assert sum(p.numel() for p in plane.features.parameters()) == 2_469_696
    assert sum(p.numel() for p in whole.parameters()) == 3 * (2_469_953 + 257) + 3 * 2 + 2 == 7_410_638
    assert whole.encoder is None


@torch.no_grad()
def test_a_plane_is_its_literal_reference():
    torch.manual_seed(0)
    plane, volume = PlaneNetwork(num_classes=3), cubes(2, 64)[:, 0, :, :, :6]
    logits = plane(volume.movedim(3, 1).unsqueeze(2))
    for number in range(2):
        torch.testing.assert_close(logits[number], classify(plane, volume[number], axis=2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_planes_read_their_own_slices_and_are_averaged_at_first():
    whole, volume = network(), cubes(1, 64)
    # right, anterior, superior: sagittal slices are counted by the first axis, axial ones by the last
    axes = {"sagittal": 0, "coronal": 1, "axial": 2}
    assert whole.head.planes.keys() == axes.keys()
    logits = [classify(whole.head.planes[name], volume[0, 0], axis) for name, axis in axes.items()]
    torch.testing.assert_close(whole(volume)[0], sum(logits) / 3, rtol=1e-4, atol=1e-5)


def test_the_combination_weighs_planes_for_each_class():
    combine = PlaneCombination(num_planes=2, num_classes=2)
    with torch.no_grad():
        combine.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        combine.bias.copy_(torch.tensor([10.0, 20.0]))
    logits = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert combine(logits).tolist() == [[10 + 1 * 1 + 3 * 3, 20 + 2 * 2 + 4 * 4]]


def test_the_combination_can_learn_a_logistic_regression_over_planes():
    # Only the second of three planes tells the classes apart; the first says the opposite.
    combine = PlaneCombination(num_planes=3, num_classes=2)
    target = torch.tensor([0, 1] * 8)
    sign = (2.0 * target - 1)[:, None] * torch.tensor([-0.5, 0.5])
    logits = torch.stack([-2 * sign, sign, torch.zeros(16, 2)], dim=1)
    assert (combine(logits).argmax(1) == target).sum() == 0
    optimizer = SGD(combine.parameters(), lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(combine(logits), target).backward()
        optimizer.step()
    assert (combine(logits).argmax(1) == target).all()


def test_one_plane_is_the_papers_network_alone():
    alone = network(planes=["coronal"])
    assert alone.head.combine is None
    assert alone(cubes(2, 64)).shape == (2, 2)
    assert sum(p.numel() for p in alone.parameters()) == 2_469_696 + 2 * 257


def test_every_weight_gets_a_gradient():
    whole = network(dropout=0.1)
    logits = whole(cubes(2, 64))
    assert logits.shape == (2, 2)
    logits.square().mean().backward()
    assert not [n for n, p in whole.named_parameters() if p.grad is None or not p.grad.any()]


@torch.no_grad()
def test_runs_under_bf16_autocast():
    whole = network().eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits = whole(cubes(1, 64))
    torch.testing.assert_close(logits.float(), whole(cubes(1, 64)), rtol=0.1, atol=0.1)


@torch.no_grad()
def test_the_smallest_cube_is_the_smallest_that_alexnet_takes():
    pictures = torch.zeros(1, 3, 63, 63)
    assert PlaneNetwork(num_classes=1).features(pictures).shape == (1, 256, 1, 1)
    with pytest.raises(RuntimeError):
        PlaneNetwork(num_classes=1).features(pictures[..., 1:, 1:])
    message, hint = refusal(create_classification, "mrnet", cube_size=62, num_classes=2)
    assert message == "mrnet needs a cube of at least 63 voxels, not 62"
    assert hint


@pytest.mark.parametrize("planes", [[], ["axial", "axial"], ["frontal"]])
def test_planes_that_are_none_are_refused(planes):
    message, hint = refusal(network, planes=planes)
    assert message == f"mrnet cannot read planes {planes}"
    assert hint == f"name each at most once, of {', '.join(PLANES)}"


@torch.no_grad()
def test_imagenet_weights_are_used_where_they_are_on_the_disk(tmp_path, monkeypatch):
    assert network().head.initialisation == "random"
    features = alexnet(weights=None).features.state_dict(prefix="features.")
    state = {**features, "classifier.6.bias": torch.zeros(1000)}
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=publish(tmp_path, state)))
    monkeypatch.setattr("m3di.networks.mrnet.AlexNet_Weights", weights)
    assert network(imagenet=False).head.initialisation == "random"
    for wanted in (None, True):
        whole = network(imagenet=wanted)
        assert whole.head.initialisation == "imagenet"
        for plane in whole.head.planes.values():
            for name, value in plane.features.state_dict().items():
                torch.testing.assert_close(value, state[f"features.{name}"], rtol=0, atol=0)


def test_wanted_weights_that_are_not_there_are_refused():
    with pytest.raises(RefusedError) as caught:
        network(imagenet=True)
    assert caught.value.code == "E_WEIGHTS"
    assert caught.value.message.endswith("hub/checkpoints/alexnet-owt-7be5be79.pth")
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in caught.value.hint
