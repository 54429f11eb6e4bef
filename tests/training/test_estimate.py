from dataclasses import replace
from functools import partial

import pytest

from m3di.config import load_config
from m3di.training import estimate
from m3di.training.finetune import finetune
from tests.phantoms import write_msd_dataset
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
    assert (found.steps, found.fitting) == (40, 4), "a batch of four, whole"
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
    monkeypatch.setattr(estimate, "_watch", lambda train, config: estimate._Watched(4, 2.0, next(watched)))
    monkeypatch.setattr(estimate, "_free_gib", lambda device: estimate.MARGIN * two)
    found = estimate.estimate_pretraining(store, config(), device="cpu")
    assert found.fitting == 2, "a batch of 4 in two parts of 2, which need 1.5 GiB and the margin"
    assert found.memory_gib == pytest.approx(estimate.MARGIN * 2.5)
    monkeypatch.setattr(estimate, "_free_gib", lambda device: 0.5)
    found = estimate.estimate_pretraining(store, config(), device="cpu")
    assert (found.fitting, found.step_s, found.total_s) == (None, None, None)


@pytest.mark.parametrize("memory_gib, fitting", [(None, 3), (1.4, 2), (0.5, None)])
def test_the_batch_of_a_fine_tuning_that_fits_is_found(tmp_path, monkeypatch, memory_gib, fitting):
    data = write_msd_dataset(tmp_path / "data", 6)
    if memory_gib is not None:
        used = iter([1.0, 1.5, 1.2])
        watch = estimate._watch
        monkeypatch.setattr(estimate, "_watch", lambda *asked: replace(watch(*asked), memory_gib=next(used)))
        monkeypatch.setattr(estimate, "_free_gib", lambda device: memory_gib)
    train = partial(finetune, "msd", data, network="unet", cubes_folder=tmp_path / ".data")
    settings = config("finetune.batch_size=3", "finetune.max_steps=20")
    found = estimate.estimate_finetuning(lambda run, one, report: train(run, one, report=report), settings)
    assert (found.steps, found.fitting) == (20, fitting)
    assert (found.total_s is None) == (fitting is None)
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".data"}, "no run is left"
