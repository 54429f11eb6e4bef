import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3di.config import ExportConfig, load_config
from m3di.evaluation.predict import predict_scans
from m3di.events import ignore
from m3di.exports import export, load
from m3di.exports.card import measured
from m3di.exports.source import load_source
from m3di.training import checkpoint
from m3di.training.start import start_of
from stores.errors import DamagedError, RefusedError
from tests.evaluation.runs import train
from tests.exports.made import PEOPLE, PROVENANCE, pretrained_run, source
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan

VIT = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A fine-tuning run, and the data that it was trained on."""
    root = tmp_path_factory.mktemp("tuned")
    data = write_msd_dataset(root / "Grey clinic", 8)
    return train("msd", data, root / "run", "finetune.options.filters=[4, 6, 8]", network="nnunet"), data


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "hub"
    export(tuned[0], "hub", out)
    return out


def texts(folder):
    return "\n".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".md", ".json"))


def python_blocks(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_an_encoder_comes_back_as_it_was(tmp_path):
    run = pretrained_run(tmp_path / "run", ema=True, **VIT)
    found = export(run, "hub", tmp_path / "hub")
    assert found.files == ("README.md", "config.json", "model.safetensors")
    averaged = load(run).state_dict()
    torch.testing.assert_close(load(tmp_path / "hub").state_dict(), averaged, rtol=0, atol=0)
    torch.testing.assert_close(load_file(tmp_path / "hub" / "model.safetensors"), dict(averaged), rtol=0, atol=0)
    assert not torch.equal(averaged["vit.norm.weight"], checkpoint.latest(run).weights("encoder")["vit.norm.weight"])


def test_no_name_of_a_person_scan_set_or_place_leaves(tmp_path, tuned, exported):
    export(pretrained_run(tmp_path / "run", **VIT), "hub", tmp_path / "hub")
    told = texts(tmp_path / "hub")
    for secret in (*PEOPLE, *(name for owner in PEOPLE.values() for name in owner), "hospital-store", str(tmp_path)):
        assert secret not in told
    told = texts(exported)
    assert not re.search(r"head_\d", told)
    for secret in ("Phantom heads", "Grey clinic", str(tuned[1]), str(tuned[0])):
        assert secret not in told


@pytest.mark.parametrize("kind", ["encoder", "segmentation"])
def test_the_cards_python_runs(kind, tmp_path, exported, monkeypatch):
    if kind == "encoder":
        exported = tmp_path / "hub"
        export(pretrained_run(tmp_path / "run", **VIT), "hub", exported)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_scan(folder / "scan.nii.gz", head()[0], affine=ras_affine((1.5, 1.25, 2.0)))
    monkeypatch.chdir(folder)
    blocks = python_blocks((folder / "README.md").read_text())
    assert len(blocks) == 3
    networks = []
    for block in blocks:
        names = {}
        exec(block, names)
        networks.append(names.get("network"))
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=0, atol=0)


def test_fine_tuning_begins_from_it(tmp_path):
    run = pretrained_run(tmp_path / "run", **VIT)
    export(run, "hub", tmp_path / "hub")
    config = load_config()
    ours, theirs = (start_of("segmentation", None, init, config) for init in (run, tmp_path / "hub"))
    torch.testing.assert_close(theirs.weights, ours.weights, rtol=0, atol=0)
    assert (theirs.network, theirs.options, theirs.recipe) == (ours.network, ours.options, ours.recipe)
    assert ours.pretrained_on
    assert theirs.pretrained_on is None  # nobody knows: the leak guard says so


def test_it_predicts_what_the_run_predicts(tmp_path, tuned, exported):
    run, data = tuned
    scan = data / "imagesTr" / "head_000.nii.gz"
    masks = []
    for number, folder in enumerate((run, exported)):
        (mask,) = predict_scans([scan], [folder], tmp_path / str(number), device="cpu", report=ignore).written
        masks.append(mask.read_bytes())
    assert masks[0] == masks[1]


def test_it_can_be_exported_again(tmp_path, tuned, exported):
    export(exported, "hub", tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (exported / "config.json").read_text()


def test_changed_weights_are_found_out(tmp_path, exported):
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DamagedError) as caught:
        load(tmp_path)
    assert caught.value.code == "E_WEIGHTS"


def test_code_that_the_folder_alone_names_is_not_imported(tmp_path):
    export(pretrained_run(tmp_path / "run", **VIT), "hub", tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["encoder"]["name"] = "evil:factory"
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="evil:factory"):
        load(tmp_path / "hub")


def test_test_cases_of_an_exported_network_are_not_known(exported, tuned):
    from m3di.evaluation.evaluate import evaluate  # noqa: PLC0415

    with pytest.raises(RefusedError) as caught:
        evaluate(exported, data=tuned[1], device="cpu", report=ignore)
    assert caught.value.code == "E_SPLIT"


def test_settings_speak_for_licence_and_data(tmp_path):
    run = pretrained_run(tmp_path / "run", **VIT)
    settings = ExportConfig(license="cc-by-4.0", data="Two public heads.")
    export(run, "hub", tmp_path / "hub", settings=settings)
    told = (tmp_path / "hub" / "README.md").read_text()
    assert told.startswith("---\nlicense: cc-by-4.0\n")
    assert "Two public heads." in told
    assert "Not for clinical use" in told


EVALUATION = {
    "runs": [{"sha256": PROVENANCE["weights_sha256"]}],
    "cases": [{"dataset": name[0], "subject": name} for name in ("anna", "anna", "bo")],
    "mean": {"scanner": {"liver": {"dice": [0.9, 0.8, 0.95]}, "all": {"dice": [0.9, 0.8, None]}}},
    "leaks": "1 of the test scans shared among 3 test, 5 training scans: scan-anna is scan-anna of training; "
    "not known: what /home/grey/run was pretrained on",
}  # fmt: skip


def test_measured_results_have_their_interval_and_leak_line_and_no_names(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    told = measured(tmp_path, source("segmentation", "nnunet", filters=(4, 6, 8)))
    assert "3 test scans of 2 people" in told
    assert "| liver | 0.9 (0.8 to 0.95) |" in told
    assert (
        "Leaks: 1 of the test scans shared among 3 test, 5 training scans; not known: what the initial weights"
        in told
    )
    assert "anna" not in told
    assert "grey" not in told


def test_results_of_other_weights_are_not_shown(tmp_path):
    found = source("segmentation", "nnunet", filters=(4, 6, 8))
    (tmp_path / "evaluation.json").write_text(json.dumps(EVALUATION))
    other = replace(found, provenance={**PROVENANCE, "weights_sha256": "2" * 64})
    assert measured(tmp_path, other) == "These weights were not evaluated."


def test_the_best_weights_are_taken_with_their_clock(tuned):
    found = load_source(tuned[0])
    facts = found.facts
    assert found.provenance["weights"] == "best"
    assert found.provenance["samples_seen"] == facts["progress"]["best_samples_seen"]
    assert found.provenance["weights_sha256"] == facts["files"]["best.safetensors"]
    assert found.voxel_mm == pytest.approx(36 / 16)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(RefusedError) as caught:
        load(Path(tmp_path))
    assert caught.value.code == "E_WEIGHTS"
