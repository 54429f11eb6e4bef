import hashlib

import pytest
import torch

from m3di.networks.imagenet import find_imagenet
from stores.errors import RefusedError


def publish(torch_home, state):
    """Put a state dict where torchvision would have, under a name with its digest; return where it was published."""
    folder = torch_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    (folder / "new.pth").rename(folder / f"net-{digest}.pth")
    return f"https://example.org/models/net-{digest}.pth"


@pytest.fixture(autouse=True)
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_weights_on_the_disk_are_read_unless_they_are_not_wanted(torch_home):
    url = publish(torch_home, {"weight": torch.arange(3.0)})
    for wanted in (True, None):
        assert find_imagenet(url, wanted=wanted)["weight"].tolist() == [0, 1, 2]
    assert find_imagenet(url, wanted=False) is None


def test_weights_that_are_not_there_are_refused_only_if_wanted(torch_home):
    url = "https://example.org/models/net-01234567.pth"
    assert find_imagenet(url, wanted=None) is None
    with pytest.raises(RefusedError, match=r"no ImageNet weights at .*net-01234567\.pth") as caught:
        find_imagenet(url, wanted=True)
    assert (caught.value.code, url in caught.value.hint) == ("E_WEIGHTS", True)
    assert not list(torch_home.iterdir())


def test_a_file_that_is_not_the_published_one_is_refused(torch_home):
    url = publish(torch_home, {"weight": torch.arange(3.0)})
    path = torch_home / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RefusedError, match=r"has sha256 \w{8}\.\.\., not") as caught:
        find_imagenet(url, wanted=None)
    assert caught.value.code == "E_WEIGHTS"
