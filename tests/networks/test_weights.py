import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torchvision.models.video import swin3d_t

from m3di.exports.nnunet import network_weights
from m3di.networks.registry import create_encoder, create_segmentation
from m3di.networks.weights import load_public_weights
from stores.errors import RefusedError
from tests.exports.made import source
from tests.networks.test_encoders import SMALL, cubes, small


def saved(folder, state, **beside):
    path = folder / "weights.pt"
    torch.save({"state_dict": state, **beside}, path)
    return path


def refusal(encoder, spec):
    with pytest.raises(RefusedError) as caught:
        load_public_weights(encoder, spec)
    assert caught.value.hint
    return caught.value


def tensors(names_and_shapes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in names_and_shapes.items()}


def medicalnet10():
    """A state dict of the published file `resnet_10.pth`, by the names of torchvision's ResNet."""
    shapes = {"conv1.weight": (64, 1, 7, 7, 7), **_norm("bn1", 64)}
    before = 64
    for layer, width in enumerate((64, 128, 256, 512), start=1):
        root = f"layer{layer}.0"
        shapes[f"{root}.conv1.weight"] = (width, before, 3, 3, 3)
        shapes[f"{root}.conv2.weight"] = (width, width, 3, 3, 3)
        shapes |= _norm(f"{root}.bn1", width) | _norm(f"{root}.bn2", width)
        if before != width:
            shapes[f"{root}.downsample.0.weight"] = (width, before, 1, 1, 1)
            shapes |= _norm(f"{root}.downsample.1", width)
        before = width
    return tensors({f"module.{name}": shape for name, shape in shapes.items()})


def _norm(name, width):
    return {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}


def test_medicalnet(tmp_path):
    encoder = create_encoder("medicalnet", cube_size=16, depth=10)
    state = medicalnet10()
    load_public_weights(encoder, f"medicalnet:{saved(tmp_path, state)}")
    own = encoder.state_dict()
    assert len(state) == sum(not name.endswith("num_batches_tracked") for name in own)
    for name, value in state.items():
        torch.testing.assert_close(own[name.removeprefix("module.")], value, rtol=0, atol=0)


def med3d10(classes=2, prefix="module."):
    """The same with Med3D's segmentation head, `conv_seg`, by the names and shapes of the reference's `resnet.py`."""
    head = {
        "conv_seg.0.weight": (512, 32, 2, 2, 2), "conv_seg.0.bias": (32,), **_norm("conv_seg.1", 32),
        "conv_seg.3.weight": (32, 32, 3, 3, 3), **_norm("conv_seg.4", 32),
        "conv_seg.6.weight": (classes, 32, 1, 1, 1),
    }  # fmt: skip
    counters = {f"{prefix}conv_seg.{n}.num_batches_tracked": torch.tensor(7) for n in (1, 4)}
    backbone = {name.replace("module.", prefix): value for name, value in medicalnet10().items()}
    return backbone | tensors({prefix + name: shape for name, shape in head.items()}, seed=2) | counters


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_segmentation_head_of_medicalnet_fits_med3d_and_an_encoder_leaves_it_out(tmp_path, prefix):
    state = med3d10(prefix=prefix)
    spec = f"medicalnet:{saved(tmp_path, state)}"
    encoder = create_encoder("medicalnet", cube_size=16, depth=10)
    load_public_weights(encoder, spec)
    whole = create_segmentation("med3d", cube_size=16, num_classes=2, depth=10)
    load_public_weights(whole, spec)
    own = whole.state_dict()
    for name, value in state.items():
        part = "decoder" if "conv_seg" in name else "encoder"
        assert torch.equal(own[f"{part}.{name.removeprefix(prefix)}"], value)
    assert all(torch.equal(own[f"encoder.{name}"], value) for name, value in encoder.state_dict().items())
    learnt = [name for name in state if "running" not in name and "num_batches" not in name]
    assert sum(state[name].numel() for name in learnt) == 14_355_520 + 158_944, (
        "the reference's count, and its head's"
    )


def test_a_head_for_other_classes_or_without_one_does_not_fit_a_whole_med3d(tmp_path):
    whole = create_segmentation("med3d", cube_size=16, num_classes=4, depth=10)
    error = refusal(whole, f"medicalnet:{saved(tmp_path, med3d10())}")
    assert "1 of another shape (decoder.conv_seg.6.weight (2, 32, 1, 1, 1) for (4, 32, 1, 1, 1))" in error.message
    error = refusal(whole, f"medicalnet:{saved(tmp_path, medicalnet10())}")
    assert "12 missing (decoder.conv_seg.0.bias" in error.message
    state = med3d10() | {"module.conv_seg.7.weight": torch.zeros(1)}
    error = refusal(create_encoder("medicalnet", cube_size=16, depth=10), f"medicalnet:{saved(tmp_path, state)}")
    assert "1 unknown (module.conv_seg.7.weight)" in error.message, "no name is dropped that is not known"


def test_what_does_not_fit_is_named(tmp_path):
    encoder = create_encoder("medicalnet", cube_size=16, depth=10)
    before = encoder.conv1.weight.clone()
    state = medicalnet10()
    state["module.layer9.0.conv1.weight"] = torch.zeros(1)
    state["module.bn1.bias"] = torch.zeros(3)
    for name in ("layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"):
        del state[f"module.{name}.weight"]
    error = refusal(encoder, f"medicalnet:{saved(tmp_path, state)}")
    assert error.code == "E_WEIGHTS"
    assert "1 unknown (module.layer9.0.conv1.weight)" in error.message
    missing = ", ".join(f"layer{layer}.0.conv1.weight" for layer in (1, 2, 3))
    assert f"4 missing ({missing}, ...)" in error.message
    assert "1 of another shape (bn1.bias (3,) for (64,))" in error.message
    torch.testing.assert_close(encoder.conv1.weight, before, rtol=0, atol=0)


def swin_ssl(theirs, prefix):
    """A state dict as of `model_swinvit.pt`: old names of the MLP, `module.` and the heads of its pretext tasks."""
    heads = ("norm", "convTrans3d", "rotation_head", "contrastive_head")
    renamed = {prefix + name.replace("mlp.linear", "mlp.fc"): value for name, value in theirs.state_dict().items()}
    return renamed | {f"module.{head}.{part}": torch.zeros(1) for head in heads for part in ("weight", "bias")}


@pytest.mark.parametrize("prefix", ["module.", "module.swinViT.", ""])
@torch.no_grad()
def test_monais_self_supervised_swin(tmp_path, prefix):
    torch.manual_seed(3)
    theirs = SwinTransformer(1, 12, (7, 7, 7), (2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1))
    encoder = small("swin")
    load_public_weights(encoder, f"swin:{saved(tmp_path, swin_ssl(theirs, prefix))}")
    torch.testing.assert_close(encoder(cubes()).pyramid[-1], theirs(cubes())[-1], rtol=0, atol=0)


def test_the_published_swin_has_126_tensors():
    # As others who loaded `model_swinvit.pt` count them (without the 8 of the heads).
    assert len(create_encoder("swin", cube_size=32).state_dict()) == 126


def nnformer(classes=3):
    """A state dict of the reference's names, made of our network's by hand-written names."""
    net = create_segmentation("nnformer", cube_size=32, num_classes=classes, **SMALL["nnformer"])
    state = {}
    for name, value in [*net.state_dict().items(), *net.named_buffers()]:
        if not name.endswith("apart"):
            state[_reference_name(name)] = value.clone()
    return net, state


def _reference_name(name):
    embed = ("proj1.conv1", "proj1.conv2", "proj2.conv1", "proj2.conv2")
    norms = ("proj1.norm1", "proj1.norm2", "proj2.norm1", "norm")
    table = "attn.relative_position_bias_table"
    for ours, theirs in {
        "project_in": "attn.kv" if "fetch" in name else "attn.qkv",
        "project_out": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
        ".table": f".{table}",
        ".index": ".attn.relative_position_index",
        ".fetch.": ".blocks.0.",
        ".refine.": ".blocks.1.",
        ".expand.": ".Upsample.up.",
        "decoder.stages": "decoder.layers",
        "decoder.heads.0": "final.0.up",
        "encoder.": "model_down.",
        ".merges.": ".layers.",
    }.items():
        name = name.replace(ours, theirs)
    name = re.sub(r"embed\.convolutions\.(\d)", lambda m: f"patch_embed.{embed[int(m[1])]}", name)
    name = re.sub(r"embed\.norms\.(\d)", lambda m: f"patch_embed.{norms[int(m[1])]}", name)
    name = re.sub(r"model_down\.norms\.(\d)", r"model_down.norm\1", name)
    name = re.sub(r"model_down\.stages\.(\d)\.(\d)", r"model_down.layers.\1.blocks.\2", name)
    name = re.sub(r"(decoder\.layers\.\d)\.norm\.", r"\1.Upsample.norm.", name)
    return re.sub(r"(model_down\.layers\.\d)\.(norm|reduction)\.", r"\1.downsample.\2.", name)


@torch.no_grad()
def test_nnformer_with_its_decoder_or_without(tmp_path):
    net, state = nnformer()
    assert "model_down.layers.0.blocks.1.attn.relative_position_bias_table" in state
    assert "decoder.layers.2.blocks.0.attn.kv.weight" in state
    spec = f"nnformer:{saved(tmp_path, state)}"
    whole = create_segmentation("nnformer", cube_size=32, num_classes=3, **SMALL["nnformer"])
    load_public_weights(whole, spec)
    torch.testing.assert_close(whole(cubes()), net(cubes()), rtol=0, atol=0)
    encoder = small("nnformer")
    load_public_weights(encoder, spec)
    torch.testing.assert_close(encoder(cubes()).tokens, net.encoder(cubes()).tokens, rtol=0, atol=0)


def test_nnformer_tables_of_another_layout_are_refused(tmp_path):
    _, state = nnformer()
    state["model_down.layers.0.blocks.1.attn.relative_position_index"] += 1
    error = refusal(small("nnformer"), f"nnformer:{saved(tmp_path, state)}")
    assert "1 with another layout (stages.0.1.index)" in error.message


@torch.no_grad()
def test_video_swin_sums_the_stems_channels(tmp_path):
    torch.manual_seed(3)
    theirs = swin3d_t(num_classes=2).eval()
    path = tmp_path / "swin3d_t.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    ours = create_encoder("video_swin", cube_size=32)
    load_public_weights(ours, f"video_swin:{path}")
    frames = cubes().movedim(-1, 2).expand(-1, 3, -1, -1, -1)  # axial slices in time, grey as three colours
    logits = theirs.head(ours(cubes()).tokens.mean(dim=1))
    torch.testing.assert_close(logits, theirs(frames), rtol=1e-4, atol=1e-5)


def nnunet():
    """A network, and what nnU-Net keeps of the same one in a checkpoint: biases too, and a log of numpy's numbers."""
    found = source("segmentation", "nnunet", cube_size=16, filters=(4, 6, 8))
    state = network_weights(found)
    for name, value in state.items():
        if name.endswith("conv.bias"):
            state[name] = torch.rand(value.shape)
    beside = {
        "logging": {"train_losses": [np.float32(0.1), np.float64(0.2)]}, "current_epoch": np.int64(3),
        "init_args": {"plans": {"batch_size": 2}, "device": torch.device("cpu")}, "trainer_name": "nnUNetTrainer",
    }  # fmt: skip
    return found.encoder, state, beside


@torch.no_grad()
def test_an_encoder_of_nnunet(tmp_path):
    theirs, state, beside = nnunet()
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": state, **beside}, path)
    ours = create_encoder("dynunet", cube_size=16, filters=(4, 6, 8))
    load_public_weights(ours, f"nnunet:{path}")
    for one, other in zip(ours(cubes(size=16)).pyramid, theirs(cubes(size=16)).pyramid, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name", ["encoder.stages.1.0.convs.2.conv.weight", "encoder.stages.1.0.blocks.0.conv1.conv.weight"]
)
def test_other_stages_of_nnunet_are_refused(tmp_path, name):
    """Three convolutions a stage, or residual ones."""
    _, state, _ = nnunet()
    error = refusal(
        create_encoder("dynunet", cube_size=16, filters=(4, 6, 8)),
        f"nnunet:{saved(tmp_path, state | {name: torch.zeros(6, 6, 3, 3, 3)})}",
    )
    assert f"1 unknown ({name})" in error.message


class Opened:
    """What a pickle would run."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_files_that_could_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refusal(small("nnformer"), f"nnformer:{saved(tmp_path, {}, plot=Opened())}")
    assert error.code == "E_UNSAFE_WEIGHTS"
    assert not Path("ran").exists()


@pytest.mark.parametrize("spec", ["nnformer", "nnformer:", "nnfromer:weights.pt", ""])
def test_unknown_families_are_refused(spec):
    error = refusal(small("nnformer"), spec)
    assert (error.code, error.message) == ("E_WEIGHTS", f"unknown public weights {spec!r}")
    assert error.hint.endswith("medicalnet, nnformer, nnunet, swin, video_swin")


@pytest.mark.parametrize("content", [b"", b"no weights", None])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_cannot_be_read_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    error = refusal(small("nnformer"), f"nnformer:{path}")
    assert error.code in ("E_WEIGHTS", "E_UNSAFE_WEIGHTS")
    assert str(path) in error.message


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "holds no state dict" in refusal(small("nnformer"), f"nnformer:{tmp_path / 'list.pt'}").message
