"""nnU-Net's own commands train from an export.

nnU-Net is no dependency: it and what it needs are a GB beside torch, and it bounds their versions. Install it into
a virtual environment of its own (`pip install nnunetv2`), and set M3DI_NNUNET to that environment's `bin`.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from m3di.config import ExportConfig
from m3di.exports import export
from tests.exports.made import pretrained_run
from tests.phantoms import write_msd_dataset

BIN = os.environ.get("M3DI_NNUNET", "")
COMMAND = shutil.which("nnUNetv2_train", path=BIN or None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMMAND is None, reason="needs nnU-Net: set M3DI_NNUNET to the bin folder that has nnUNetv2_train"
    ),
]


@pytest.fixture
def nnunet(tmp_path):
    """Runs one of nnU-Net's commands, on folders of this test."""
    places = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for place in places.values():
        place.mkdir()
    trainers = tmp_path / "trainers"
    trainers.mkdir()
    shutil.copy(Path(__file__).with_name("nnunet_trainers.py"), trainers)

    def run(command, *arguments, workers=1):
        env = {**os.environ, **{name: str(place) for name, place in places.items()}, "OMP_NUM_THREADS": "1"}
        env |= {"nnUNet_extTrainer": str(trainers), "nnUNet_n_proc_DA": str(workers)}
        done = subprocess.run(
            [Path(COMMAND).with_name(command), *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run.places = places
    return run


def write_task(root):
    """A decathlon set with all that nnU-Net's converter asks for."""
    write_msd_dataset(root, 5, shape=(24, 24, 24), spacing=(1.0, 1.0, 1.0))
    (root / "imagesTs").mkdir()
    manifest = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**manifest, "numTraining": 5, "test": []}))


def test_training_begins_with_our_weights(tmp_path, nnunet):
    write_task(tmp_path / "Task01_Heads")
    run = pretrained_run(tmp_path / "run", "dynunet", cube_size=16, filters=[4, 6, 8])
    out = tmp_path / "exported"
    export(run, "nnunet", out, settings=ExportConfig(spacing_mm=1.5))
    nnunet("nnUNetv2_convert_MSD_dataset", "-i", tmp_path / "Task01_Heads", "-np", "1")
    (raw,) = nnunet.places["nnUNet_raw"].glob("Dataset001_*/dataset.json")
    raw.write_text(json.dumps({**json.loads(raw.read_text()), "numTraining": 5}))
    shutil.copytree(out / "Dataset900_m3di", nnunet.places["nnUNet_preprocessed"] / "Dataset900_m3di")
    nnunet("nnUNetv2_extract_fingerprint", "-d", "1", "-np", "1")
    nnunet("nnUNetv2_plan_experiment", "-d", "1")
    nnunet("nnUNetv2_move_plans_between_datasets", "-s", "900", "-t", "1", "-sp", "m3diPlans")
    nnunet("nnUNetv2_preprocess", "-d", "1", "-plans_name", "m3diPlans", "-c", "3d_fullres", "-np", "1")
    told = nnunet(
        "nnUNetv2_train", "1", "3d_fullres", "0", "-p", "m3diPlans", "-tr", "TwoSteps", "-device", "cpu",
        "-pretrained_weights", out / "checkpoint_final.pth", workers=0,
    )  # fmt: skip
    assert "Loading pretrained weights" in told
    (fold,) = nnunet.places["nnUNet_results"].glob("Dataset001_*/TwoSteps__m3diPlans__3d_fullres/fold_0")
    begun = torch.load(fold / "begun.pth", weights_only=True)
    ours = torch.load(out / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert {name for name in begun if not torch.equal(begun[name], ours.get(name, torch.zeros(0)))} == {
        name for name in begun if ".seg_layers." in name
    }
    assert (fold / "checkpoint_final.pth").is_file()
