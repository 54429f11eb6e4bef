import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.resnet import resnet10
from monai.networks.nets.unet import UNet
from torch import nn

from m3di.networks.convolutional import BlockShape, ResidualBlock
from m3di.networks.registry import create_encoder
from tests.networks.test_encoders import cubes


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"),
    # Measured on the reference implementation without its head; shortcut A at 18 and 34, as of the public weights.
    [(10, 14_355_520), (18, 32_986_176), (34, 63_295_808), (50, 46_155_072), (101, 85_201_216)],
)
def test_medicalnet_parameter_counts(depth, expected):
    with torch.device("meta"):
        encoder = create_encoder("medicalnet", cube_size=64, depth=depth)
    assert count(encoder) == expected


@torch.no_grad()
def test_medicalnet_geometry():
    encoder = create_encoder("medicalnet", cube_size=16, depth=50)
    assert encoder(cubes(size=16)).pyramid[-1].shape == (1, 2048, 2, 2, 2)
    strides = [m.stride[0] for layer in (encoder.layer3, encoder.layer4) for m in layer.modules() if _is_wide(m)]
    assert set(strides) == {1}
    assert {m.dilation for m in encoder.layer3.modules() if _is_wide(m)} == {(2, 2, 2)}
    assert {m.dilation for m in encoder.layer4.modules() if _is_wide(m)} == {(4, 4, 4)}


def _is_wide(module):
    return isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3)


def test_shortcut_a_takes_every_second_cell_and_adds_empty_channels():
    block = ResidualBlock(2, BlockShape(4, stride=2, dilation=1, wide=False), shortcut="A").eval()
    nn.init.zeros_(block.conv2.weight)  # what remains is the shortcut
    features = torch.rand(1, 2, 4, 4, 4, requires_grad=True)
    output = block(features)
    torch.testing.assert_close(output[:, :2], features[:, :, ::2, ::2, ::2], rtol=0, atol=0)
    assert not output[:, 2:].any()
    output.sum().backward()
    assert features.grad.count_nonzero() == 2 * 2**3


@torch.no_grad()
def test_resnet_is_monais():
    ours = create_encoder("resnet10", cube_size=64).eval()
    theirs = resnet10(n_input_channels=1, num_classes=2, conv1_t_stride=2).eval()
    theirs.load_state_dict({n.removeprefix("resnet."): v for n, v in ours.state_dict().items()}, strict=False)
    logits = theirs.fc(ours(cubes(size=64)).tokens.mean(dim=1))
    torch.testing.assert_close(logits, theirs(cubes(size=64)))


def test_a_stem_that_does_not_stride_has_tokens_half_as_large():
    with torch.device("meta"):
        encoder = create_encoder("resnet50", cube_size=32, stem_stride=1)
        assert encoder(torch.empty(2, 1, 32, 32, 32)).grid == (2, 2, 2)
    assert encoder.token_stride == 16


@torch.no_grad()
def test_densenet_is_monais():
    ours = create_encoder("densenet121", cube_size=64).eval()
    theirs = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
    assert theirs.load_state_dict(ours.state_dict(), strict=False).unexpected_keys == []
    logits = theirs.class_layers.out(ours(cubes(size=64)).tokens.mean(dim=1))
    torch.testing.assert_close(logits, theirs(cubes(size=64)))


@torch.no_grad()
def test_unet_is_the_down_path_of_monais():
    ours = create_encoder("unet", cube_size=32)
    theirs = UNet(3, 1, 14, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)
    level, downs = theirs.model, []
    for _ in range(4):
        downs.append(level[0])
        level = level[1].submodule
    downs.append(level)
    for down, own in zip(downs, ours.downs, strict=True):
        own.load_state_dict(down.state_dict())
    torch.testing.assert_close(ours(cubes()).pyramid[-1], nn.Sequential(*downs)(cubes()))
    # 4,822,057 with 14 classes: the encoder and the four up layers of MONAI's network.
    ups = count(theirs) - sum(count(down) for down in downs)
    assert count(ours) + ups == 4_822_057


@torch.no_grad()
def test_dynunet_is_the_down_path_of_monais():
    ours = create_encoder("dynunet", cube_size=64)
    theirs = DynUNet(3, 1, 14, [3] * 6, [1] + [2] * 5, [2] * 5)
    state = theirs.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()}, strict=True)
    path = nn.Sequential(theirs.input_block, *theirs.downsamples, theirs.bottleneck)
    torch.testing.assert_close(ours(cubes(size=64)).pyramid[-1], path(cubes(size=64)))
    assert count(ours) + count(theirs.upsamples) + count(theirs.output_block) == 31_189_806


def test_densenet_tokens_are_activated():
    encoder = create_encoder("densenet121", cube_size=64).eval()
    tokens = encoder(cubes(size=64)).tokens
    torch.testing.assert_close(tokens, F.relu(tokens), rtol=0, atol=0)
