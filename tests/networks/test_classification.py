import math
import sys

import pytest
import torch
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import resnet10, resnet50
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.vit import ViT
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import swin3d_t

from m3di.networks.registry import CLASSIFICATION, ENCODERS, create_classification, create_encoder
from tests.networks.test_encoders import SIZE, SMALL, cubes, cubes_for, weightless
from tests.networks.test_registry import HERE as FOREIGN
from tests.networks.test_registry import refusal

UNUSED = {"nnformer": {f"encoder.norms.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}}
MONAI_RESNET = {"encoder.resnet.": "", "head.classify": "fc"}


def small(name, num_classes=3, **options):
    torch.manual_seed(0)
    options = {**SMALL.get(name, {}), **options}
    return create_classification(name, cube_size=SIZE.get(name, 32), num_classes=num_classes, **options)


def renamed(network, names):
    """Our state dict with the beginnings of its names exchanged; `names` gives theirs for each of ours."""
    state = {}
    for name, value in network.state_dict().items():
        ours = next(begin for begin in names if name.startswith(begin))
        state[names[ours] + name.removeprefix(ours)] = value
    return state


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Measured on MONAI 1.6.1's and torchvision's own classes with one channel (video_swin: three) and 2 classes.
        ("resnet50", {}, 46_163_010),
        ("resnet50", {"stem_stride": 1}, 46_163_010),
        ("densenet121", {}, 11_244_674),
        ("vit", {}, 88_588_802),
        ("video_swin", {}, 27_852_008 - 2 * 96 * 2 * 4 * 4),
        # The published encoders and 2 classes.
        ("vit", {"pooling": "mean"}, 88_586_496 + 2 * 768 + 2),
        ("swin", {}, 8_062_002 + 2 * 768 + 2),
        ("nnformer", {}, 29_835_846 + 2 * 768 + 2),
        ("medicalnet", {}, 46_155_072 + 2 * 2048 + 2),
    ],
)
def test_parameter_counts_at_full_size(name, options, expected):
    with torch.device(weightless(name)):
        network = create_classification(name, cube_size=128, num_classes=2, **options)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(("stem_stride", "expected"), [(1, 649), (2, 81)])
def test_monais_default_stem_costs_eight_times_as_much(stem_stride, expected):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = create_classification("resnet50", cube_size=128, num_classes=2, stem_stride=stem_stride)
        network(torch.empty(2, 1, 128, 128, 128))
    assert round(counter.get_total_flops() / 2 / 1e9) == expected


@pytest.mark.parametrize("name", SMALL)
def test_one_logit_a_class_and_a_gradient_for_every_weight(name):
    network = small(name)
    logits = network(cubes_for(network.encoder, b=2))
    assert logits.shape == (2, 3)
    logits.square().mean().backward()
    lacking = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert lacking == UNUSED.get(name, set())  # norms of levels that only a decoder sees


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_pretrained_encoder_loads_strictly(name):
    torch.manual_seed(7)
    pretrained = create_encoder(name, cube_size=SIZE.get(name, 32), **SMALL[name]).eval()
    network = small(name).eval()
    volume = cubes_for(pretrained)
    assert not torch.equal(network.encoder(volume).tokens, pretrained(volume).tokens)
    network.encoder.load_state_dict(pretrained.state_dict(), strict=True)
    torch.testing.assert_close(network.encoder(volume).tokens, pretrained(volume).tokens, rtol=0, atol=0)


def test_every_encoder_and_the_whole_networks_of_the_paper_classify():
    assert CLASSIFICATION.keys() == ENCODERS.keys() | {"mrnet", "m3t"}
    assert {name for name, network in CLASSIFICATION.items() if network.encoder != name} == {"mrnet", "m3t"}


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"vit"}))
@torch.no_grad()
def test_a_pooled_head_averages_the_last_map(name):
    network = small(name).eval()
    volume = cubes_for(network.encoder, b=2)
    last = network.encoder(volume).pyramid[-1]
    weight, bias = network.head.classify.weight, network.head.classify.bias
    expected = torch.einsum("bcdhw,kc->bk", last, weight) / math.prod(last.shape[2:]) + bias
    torch.testing.assert_close(network(volume), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def same_outputs(ours, theirs, volume, theirs_volume=None):
    torch.testing.assert_close(
        ours.eval()(volume), theirs.eval()(volume if theirs_volume is None else theirs_volume), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_resnet_is_monais(stem_stride):
    ours = small("resnet10", stem_stride=stem_stride)
    theirs = resnet10(spatial_dims=3, n_input_channels=1, num_classes=3, conv1_t_stride=stem_stride)
    theirs.load_state_dict(renamed(ours, MONAI_RESNET), strict=True)
    same_outputs(ours, theirs, cubes(1, 64))


def test_resnet50_loads_into_monais_by_name_and_shape():
    with torch.device("meta"):
        ours = create_classification("resnet50", cube_size=128, num_classes=2)
        theirs = resnet50(spatial_dims=3, n_input_channels=1, num_classes=2)
    theirs.load_state_dict(renamed(ours, MONAI_RESNET), strict=True, assign=True)


def test_densenet_is_monais():
    ours = small("densenet121")
    theirs = DenseNet121(spatial_dims=3, in_channels=1, out_channels=3)
    state = renamed(ours, {"encoder.": "", "head.classify": "class_layers.out"})
    theirs.load_state_dict(state, strict=True)
    same_outputs(ours, theirs, cubes(2, 64))


def monai_vit(**options):
    sizes = {"img_size": 32, "patch_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_layers": 6, "num_heads": 2}
    return ViT(in_channels=1, classification=True, num_classes=3, **sizes, **options)


def monai_vit_weights(ours, classify):
    return renamed(ours, {"encoder.vit.": "", "head.class_token": "cls_token", "head.classify": classify})


@torch.no_grad()
def test_vit_is_monais_without_its_tanh():
    ours, theirs = small("vit").eval(), monai_vit(post_activation="").eval()
    theirs.load_state_dict(monai_vit_weights(ours, "classification_head"), strict=True)
    volume = 40 * cubes(2)
    torch.testing.assert_close(ours(volume), theirs(volume)[0], rtol=1e-4, atol=1e-5)
    bounded = monai_vit().eval()
    bounded.load_state_dict(monai_vit_weights(ours, "classification_head.0"), strict=True)
    torch.testing.assert_close(ours(volume).tanh(), bounded(volume)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_swin_pools_monais_deepest_level():
    ours = small("swin", feature_size=24).eval()
    theirs = SwinTransformer(1, 24, (7, 7, 7), (2, 2, 2), (1,) * 4, (1,) * 4).eval()
    theirs.load_state_dict(ours.encoder.swinViT.state_dict(), strict=True)
    deepest = theirs(cubes(2))[-1].flatten(2)
    assert deepest.shape[1:] == (24 * 16, 1)
    torch.testing.assert_close(ours(cubes(2)), ours.head.classify(deepest.mean(2)), rtol=1e-4, atol=1e-5)


def test_video_swin_is_torchvisions_over_grey_pictures():
    torch.manual_seed(0)
    ours = create_classification("video_swin", cube_size=32, num_classes=2)
    theirs = swin3d_t(num_classes=2)
    state = renamed(ours, {"encoder.": "", "head.classify": "head"})
    stem = state["patch_embed.proj.weight"]
    assert (stem.shape, theirs.patch_embed.proj.weight.shape) == ((96, 1, 2, 4, 4), (96, 3, 2, 4, 4))
    theirs.load_state_dict(state | {"patch_embed.proj.weight": stem.expand(-1, 3, -1, -1, -1) / 3}, strict=True)
    count = {net: sum(p.numel() for p in net.parameters()) for net in (ours, theirs)}
    assert (count[theirs], count[theirs] - count[ours]) == (27_852_008, 6_144)
    frames = cubes(2).movedim(-1, 2).expand(-1, 3, -1, -1, -1)  # axial slices in time, grey as three colours
    same_outputs(ours, theirs, cubes(2), frames)


def test_a_class_token_passes_through_checkpointed_layers():
    gradients = []
    for checkpointing in (False, True):
        network, calls = small("vit"), []
        network.encoder.checkpointing = checkpointing
        network.encoder.vit.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        network(cubes()).square().sum().backward()
        assert len(calls) == 1 + checkpointing
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("name", ["resnet10", "densenet121"])
def test_a_frozen_encoder_keeps_its_norms_while_the_head_learns(name):
    network = small(name)
    network.encoder.requires_grad_(False)
    network.train()
    assert network.training and network.head.training and not network.encoder.training
    before = {n: v.clone() for n, v in network.state_dict().items()}
    alone, both = cubes(1, 64, seed=1), cubes(1, 64, seed=2)
    torch.testing.assert_close(network(torch.cat([alone, both]))[:1], network(alone))
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1)
    network(alone).square().sum().backward()
    optimizer.step()
    changed = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"head.classify.weight", "head.classify.bias"}


def test_an_encoder_that_is_thawed_trains_its_norms_again():
    network = small("resnet10")
    network.encoder.requires_grad_(False)
    network.train()
    network.encoder.requires_grad_(True)
    assert network.train().encoder.training
    assert not network.eval().encoder.training
    before = network.encoder.resnet.bn1.running_mean.clone()
    network.train()(cubes(2, 64))
    assert not torch.equal(network.encoder.resnet.bn1.running_mean, before)


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}])
def test_dropout_drops_channels_of_the_head_in_training_only(options):
    network = small("vit", dropout=0.5, **options)
    seen = []
    network.head.classify.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(cubes())
        network.eval()(cubes())
    dropped, kept = seen
    assert 0 < (dropped == 0).sum() < 24
    assert torch.equal(dropped[dropped != 0], (2 * kept)[dropped != 0])


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_runs_under_bf16_autocast(name):
    network = small(name).eval()
    volume = cubes_for(network.encoder)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(volume)
    torch.testing.assert_close(logits.float(), network(volume), rtol=0.1, atol=0.1)


def test_a_users_encoder_gets_a_pooled_head():
    network = create_classification(f"{FOREIGN}:Own", cube_size=16, num_classes=2, width=6, dropout=0.1)
    assert isinstance(network.encoder, sys.modules[FOREIGN].Own)
    assert (network.encoder.token_dim, network.head.dropout.p) == (6, 0.1)
    assert network(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 2)
    message, _ = refusal(create_classification, f"{FOREIGN}:Own", cube_size=16, num_classes=2, widht=6)
    assert message == f"unknown option of encoder {FOREIGN}:Own: 'widht'"


def test_a_packages_encoder_gets_a_pooled_head(tmp_path, monkeypatch):
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[m3di.encoders]\ntheirs = {FOREIGN}:Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    network = create_classification("theirs", cube_size=16, num_classes=4)
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 4)
    message, hint = refusal(create_classification, "their", cube_size=16, num_classes=4)
    assert message == "unknown classification network: 'their'"
    assert hint.startswith("did you mean 'theirs'?")


def test_what_does_not_fit_is_refused():
    sizes = {"cube_size": 32, "num_classes": 2}
    message, hint = refusal(create_classification, "m3", **sizes)
    assert message == "unknown classification network: 'm3'"
    assert hint.startswith("did you mean 'm3t'? known are ")
    assert set(hint.rpartition("known are ")[2].split(", ")) == CLASSIFICATION.keys()
    message, hint = refusal(create_classification, "resnet50", **sizes, droput=0.1)
    assert message == "unknown option of network resnet50: 'droput'"
    assert hint == "did you mean 'dropout'? known are dropout, stem_stride"
    message, _ = refusal(create_classification, "mrnet", **sizes, patch_size=8)
    assert message == "unknown option of network mrnet: 'patch_size'"
    assert (
        refusal(create_classification, "vit", cube_size=32, num_classes=1)[0] == "vit needs at least 2 classes, not 1"
    )
    assert refusal(create_classification, "vit", **sizes, pooling="max")[0] == "vit: unknown pooling 'max'"
    for share in (-0.1, 1.0):
        assert refusal(create_classification, "unet", **sizes, dropout=share)[0] == f"dropout {share} is no share"
    assert "a multiple of 32 voxels, not 48" in refusal(create_classification, "swin", cube_size=48, num_classes=2)[0]
    assert "at least 64 voxels" in refusal(create_classification, "densenet121", **sizes)[0]
