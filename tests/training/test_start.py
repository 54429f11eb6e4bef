"""Fine-tuning that starts from a pretraining run."""

import pytest
import torch

from m3di.config import load_config
from m3di.events import ignore
from m3di.training import checkpoint
from m3di.training.pretrain import pretrain
from m3di.training.start import build_network, start_of
from stores.errors import RefusedError
from tests.stores.stores import RECIPE, build
from tests.training.test_pretrain import SETTINGS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI


def config(*settings, preset="smoke"):
    return load_config(preset=preset, settings=list(settings))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("start")
    settings = load_config(preset="smoke", settings=[*SETTINGS, "pretrain.max_steps=1"])
    pretrain(build(root / "store", 10), root / "run", settings, device="cpu", report=ignore)
    return root / "run"


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_the_runs_encoder_and_recipe_are_taken(run, kind):
    start = start_of(kind, None, run, config(preset="default"))
    assert (start.network, start.encoder, start.origin["kind"]) == ("vit", "vit", "run")
    assert start.recipe.cube_size == RECIPE.cube_size, "and not the default"
    found = checkpoint.load(run, kind="pretrain")
    assert start.pretrained_on == found.facts["trained_on"]
    assert start.note == ""
    model = build_network(kind, start, num_classes=3, seed=0)
    for name, value in found.encoder_weights().items():
        assert torch.equal(model.encoder.state_dict()[name], value)


def test_a_window_that_is_set_counts_and_is_told(run):
    start = start_of("segmentation", None, run, config("volumes.ct_window_hu=[-160, 240]", preset="default"))
    assert start.recipe.ct_window_hu == (-160, 240)
    assert "the encoder was pretrained on other intensities: ct_window_hu" in start.note


def test_other_cubes_than_the_runs_are_refused(run):
    with pytest.raises(RefusedError, match=r"E_CONFIG .* another recipe: volumes\.cube_size is"):
        start_of("segmentation", None, run, config("volumes.cube_size=48"))


def test_a_network_on_another_encoder_is_refused_with_the_one_that_fits(run):
    for kind, network in (("segmentation", "nnformer"), ("classification", "resnet50")):
        with pytest.raises(RefusedError, match=rf"E_NETWORK network '{network}' has no 'vit' encoder") as refused:
            start_of(kind, network, run, config())
        assert refused.value.hint == "use --network vit"


def test_an_encoder_without_a_segmentation_network_needs_one_to_be_named():
    with pytest.raises(RefusedError, match="E_NETWORK no segmentation network is built on encoder 'resnet18'"):
        start_of("segmentation", None, None, config("encoder.name=resnet18"))
    assert start_of("classification", None, None, config("encoder.name=resnet18")).network == "resnet18"


def test_an_encoders_options_go_to_networks_that_know_them():
    assert start_of("segmentation", "unetr", None, config()).options["num_layers"] == 2
    assert start_of("segmentation", "nnformer", None, config()).options == {"deep_supervision": True}
    probe = start_of("classification", "vit", None, config("finetune.freeze_fraction=1"))
    assert probe.options["pooling"] == "mean", "a class token could not learn to ask a frozen encoder"


def test_an_unknown_network_is_refused():
    with pytest.raises(RefusedError, match="E_NETWORK unknown segmentation network: 'nnformr'") as refused:
        start_of("segmentation", "nnformr", None, config())
    assert "did you mean 'nnformer'?" in refused.value.hint
