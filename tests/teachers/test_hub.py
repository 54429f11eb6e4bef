"""What can be known of downloaded teachers without a network: how they are refused."""

import pytest

from m3di.teachers.clip import load_teacher
from m3di.teachers.hub import _needs_quick_gelu
from m3di.teachers.libraries import import_open_clip
from stores.errors import RefusedError


@pytest.fixture(autouse=True)
def offline():
    """huggingface_hub reads HF_HUB_OFFLINE when it is imported, which another test may have caused before."""
    open_clip = import_open_clip(offline=True)
    from huggingface_hub import constants  # noqa: PLC0415

    if not constants.HF_HUB_OFFLINE:
        pytest.skip("huggingface_hub was imported before HF_HUB_OFFLINE was set")
    return open_clip


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(RefusedError, match="ViT-B-23") as error:
        load_teacher("ViT-B-23@openai")
    assert error.value.code == "E_CONFIG"
    assert "ViT-B-32" in error.value.hint


@pytest.mark.parametrize("tag", ["opanai", "/tmp/weights.pt", ""])
def test_unknown_tag_names_the_nearest_and_is_never_a_path(tag):
    with pytest.raises(RefusedError) as error:
        load_teacher(f"ViT-B-32@{tag}")
    assert error.value.code == "E_CONFIG"
    assert "openai" in error.value.hint


def test_weights_that_cannot_be_had_are_refused_and_not_random():
    with pytest.raises(RefusedError, match="m3di/no-such-model") as error:
        load_teacher("hf-hub:m3di/no-such-model")
    assert error.value.code == "E_WEIGHTS"
    assert "embedded" in error.value.hint


def test_the_activation_of_openais_weights_is_known(offline):
    assert _needs_quick_gelu(offline, "ViT-B-32", "openai")
    assert not _needs_quick_gelu(offline, "ViT-B-32", "laion2b_s34b_b79k")
