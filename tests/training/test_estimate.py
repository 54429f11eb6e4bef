from dataclasses import replace

import pytest

from m3di.config import load_config
from m3di.training import estimate
from tests.stores.stores import build
from tests.training.test_pretrain import SETTINGS


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("estimate") / "store", 8)


def config(*settings):
    return load_config(preset="smoke", settings=[*SETTINGS, *settings])


def test_an_estimate_counts_the_steps_of_the_run_and_keeps_nothing(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = estimate.estimate_pretraining(store, config("pretrain.max_steps=40"), device="cpu")
    assert (found.steps, found.accumulation, found.fits) == (40, 1, True)
    assert found.step_s > 0
    assert found.total_s == pytest.approx(40 * found.step_s)
    assert 0 < found.memory_gib < found.free_gib
    assert not any(tmp_path.iterdir())


def test_epochs_are_counted_in_whole_batches(store):
    settings = config("pretrain.batch_size=2")
    settings = replace(settings, pretrain=replace(settings.pretrain, max_steps=None, epochs=3))
    assert estimate.estimate_pretraining(store, settings, device="cpu").steps == 8, "15 volumes in pairs"


def test_the_accumulation_that_fits_is_found_and_none_where_nothing_does(store, monkeypatch):
    one, two = 1.0, 1.5
    watched = iter([one, two, two] * 2)
    monkeypatch.setattr(estimate, "_watch", lambda store, config, device: estimate._Watched(4, 2.0, next(watched)))
    monkeypatch.setattr(estimate, "_free_gib", lambda device: estimate.MARGIN * two)
    found = estimate.estimate_pretraining(store, config(), device="cpu")
    assert found.accumulation == 2, "a batch of 4 in two parts of 2, which need 1.5 GiB and the margin"
    assert found.memory_gib == pytest.approx(estimate.MARGIN * 2.5)
    monkeypatch.setattr(estimate, "_free_gib", lambda device: 0.5)
    found = estimate.estimate_pretraining(store, config(), device="cpu")
    assert (found.accumulation, found.step_s, found.total_s) == (None, None, None)
