"""Every network of the paper's two tables, small: trained a step, evaluated, and used to predict a scan."""

import csv
import json

import nibabel
import numpy as np
import pytest

from m3di.evaluation.evaluate import evaluate
from m3di.evaluation.predict import predict_scans
from m3di.events import ignore
from m3di.networks.registry import CLASSIFICATION, SEGMENTATION
from m3di.training.runtime import read_metrics
from tests.evaluation.runs import train
from tests.networks.test_encoders import SMALL
from tests.networks.test_m3t import SMALL as SMALL_M3T
from tests.networks.test_segmentation import DECODER, ENCODER_OF
from tests.networks.test_segmentation import SIZE as SEGMENTATION_SIZE
from tests.tasks import trees

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of MONAI
LEAST = ["finetune.max_steps=1", "finetune.ema_decay=0", "finetune.keep=last"]
# Table 2, and the second reading of its Swin-ViT; the size that each is tried at, in voxels.
CLASSIFIERS = {
    "resnet50": (64, {}), "densenet121": (64, {}), "mrnet": (64, {}), "medicalnet": (32, SMALL["medicalnet"]),
    "m3t": (32, SMALL_M3T), "vit": (32, SMALL["vit"]), "swin": (64, SMALL["swin"]),
    "video_swin": (64, SMALL["video_swin"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    trees.write_msd(root / "heads", 6)
    trees.write_table(root / "classes", classes=("a", "b"), count=12)
    return root


def tuned(root, task, data, name, *, size, options):
    """A run of one step, its loss a number."""
    listed = ", ".join(f"{option} = {json.dumps(value)}" for option, value in options.items())
    settings = [*LEAST, f"volumes.cube_size={size}", f"finetune.options={{{listed}}}"]
    run = train(task, root / data, root / f"runs/{task}-{name}", *settings, network=name)
    (loss,) = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert np.isfinite(loss)
    return run


@pytest.mark.parametrize("name", SEGMENTATION)
def test_every_segmentation_network_trains_evaluates_and_predicts(root, tmp_path, name):
    options = {**SMALL[ENCODER_OF[name]], **DECODER.get(name, {})}
    run = tuned(root, "msd", "heads", name, size=SEGMENTATION_SIZE.get(name, 32), options=options)
    result = evaluate(run, device="cpu", report=ignore)
    assert result.cases
    assert all(0 <= dice <= 1 for case in result.cases for dice in case.dice.values())
    scan = root / "heads/imagesTr/head_000.nii.gz"
    (mask,) = predict_scans([scan], [run], tmp_path / "masks", device="cpu", report=ignore).written
    found = nibabel.load(mask)
    assert found.shape == nibabel.load(scan).shape
    assert set(np.unique(found.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classification_network_trains_evaluates_and_predicts(root, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no ImageNet weights
    size, options = CLASSIFIERS[name]
    run = tuned(root, "table", "classes", name, size=size, options=options)
    result = evaluate(run, device="cpu", report=ignore)
    assert 0 <= result.summary.mean["balanced_accuracy"].mean <= 1
    out = tmp_path / "classes.csv"
    predict_scans([root / "classes/scan0.nii.gz"], [run], out, device="cpu", report=ignore)
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["probability of a"]) + float(row["probability of b"]) == pytest.approx(1, abs=1e-5)


def test_no_network_of_the_paper_is_left_out():
    table1 = {"unet", "attention_unet", "med3d", "transunet", "nnunet", "unetr", "nnformer"}
    assert table1 | {f"setr_{head}" for head in ("naive", "pup", "mla")} <= SEGMENTATION.keys()
    assert CLASSIFIERS.keys() <= CLASSIFICATION.keys()
