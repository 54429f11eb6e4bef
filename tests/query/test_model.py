import json
import shutil

import numpy as np
import pytest
import torch

from m3di.config import load_config
from m3di.diagnostics import diagnose
from m3di.events import ignore
from m3di.exports.export import export
from m3di.query import Searcher, Wanted
from m3di.query.model import ModelRows
from m3di.query.page.write import write_answer_page
from m3di.query.question import Question, ask
from m3di.training import checkpoint
from m3di.training.pretrain import Model, pretrain, split_store
from m3di.volumes.layouts import discover
from stores import Store
from stores.errors import RefusedError
from stores.geometry import PLANES
from tests.query.test_page import data_of
from tests.references.search import one_per_volume, ranked
from tests.stores.stores import CAPTIONER, DIM, RECIPE, TEACHER, build, captions_of, chunks, record, rows_of
from tests.tasks import trees
from tests.training.test_leave_out import build as build_cases

SETTINGS = [
    "encoder.options.hidden_size=24", "encoder.options.mlp_dim=24", "psat.width=16", "psat.num_queries=4",
    "pretrain.batch_size=4", "pretrain.max_steps=2", "pretrain.slices_per_volume=3", "split.ratios=[0.6,0.2,0.2]",
]  # fmt: skip


@pytest.fixture(scope="module", params=[[], ["psat.positions=mm", "psat.extent_mm=30", "pretrain.ema_decay=0.5"]])
def made(request, tmp_path_factory):
    """A store, a run on it, and its whole model as pretraining has it."""
    folder = tmp_path_factory.mktemp("model")
    config = load_config(preset="smoke", settings=[*SETTINGS, *request.param])
    store = build(folder / "store", 10)
    pretrain(store, folder / "run", config, device="cpu", report=ignore)
    found = checkpoint.load(folder / "run", kind="pretrain")
    model = Model(config, cube_size=RECIPE.cube_size, embedding_dim=DIM).eval()
    prefix = "psat."
    model.encoder.load_state_dict(found.encoder_weights())
    averaged = found.weights("ema") if found.has("ema") else None
    model.psat.load_state_dict(
        {name.removeprefix(prefix): value for name, value in averaged.items() if name.startswith(prefix)}
        if averaged
        else found.weights("psat")
    )
    return store, folder / "run", model


def literal(model, store, volume, plane, index):
    """The vector of one slice by pretraining's own forward pass."""
    record = store.record(volume)
    cube = torch.from_numpy(store.volumes.read("image", record.slot)).float()[None, None]
    voxel_mm = torch.tensor([record.chain(store.recipe).voxel_mm])
    with torch.no_grad():
        _, vectors = model(cube, torch.tensor([[plane]]), torch.tensor([[index]]), voxel_mm)
    vector = vectors[0, 0].double().numpy()
    return vector / np.linalg.norm(vector)


def test_a_slice_asks_by_the_vector_that_the_model_makes_of_it(made):
    path, run, model = made
    with Searcher(path, run=run, device="cpu") as searcher:
        index = int(searcher.store.record("v2").valid_slices(1)[1])
        vector = searcher.vector_of("v2", 1, index)
        np.testing.assert_allclose(vector, literal(model, searcher.store, "v2", 1, index), atol=1e-5)
        answer = searcher.by_slice("v2", "coronal", index)
        assert "what it makes of the slice" in answer.notes[-1]
        rows = {}
        for volume in searcher.store.volume_names():
            for plane in range(3):
                own = searcher.store.plane_rows(TEACHER, volume, plane)[:, 0].astype(float)
                places = searcher.store.record(volume).valid_slices(plane)
                rows |= {(volume, plane, int(i)): row.tolist() for i, row in zip(places, own, strict=True)}
        expected = one_per_volume(ranked(rows, vector.astype(float).tolist()))
        assert [(h.volume, PLANES.index(h.plane), h.slice) for h in answer.results] == [p for p, _ in expected]


def test_other_questions_are_held_against_volumes_that_it_did_not_train_on(made):
    path, run, model = made
    trained = set(checkpoint.load(run, kind="pretrain").facts["trained_on"])
    with Searcher(path, run=run, device="cpu") as searcher:
        answer = searcher.by_vector(np.eye(DIM, dtype=np.float32)[1], Wanted(top=100, one_per_volume=False))
        assert {hit.volume for hit in answer.results} == set(searcher.store.volume_names()) - trained
        best = answer.results[0]
        vector = literal(model, searcher.store, best.volume, PLANES.index(best.plane), best.slice)
        assert best.score == pytest.approx(vector[1], abs=2e-3)
        assert "did not train on" in answer.notes[-1]


def test_model_rows_are_gathered_as_they_lie(made):
    path, run, _ = made
    with Searcher(path, run=run, device="cpu") as searcher:
        assert searcher.model is not None
        rows = ModelRows(searcher.model, searcher.embeddings.select([0, 4]), per_plane=2)
        assert rows.index.num_rows().tolist() == [[2, 2, 2]] * 2
        for number, volume in enumerate(rows.index.volumes):
            planes, slices = rows.index.slices_of(number)
            own = np.concatenate(rows.halves(0)[3 * number : 3 * number + 3]).view("<f2")
            gathered = rows.gather(np.array([number]), planes[None], slices[None])
            np.testing.assert_array_equal(gathered[0, :, 0], own)
            expected = searcher.model.vectors(volume, planes, slices)
            np.testing.assert_allclose(own, expected, atol=1e-3)


def test_volumes_ask_by_the_mean_of_the_models_vectors(made):
    path, run, _ = made
    with Searcher(path, run=run, device="cpu") as searcher:
        answer = searcher.by_volume("v1", Wanted(top=3))
        assert len(answer.results) == 3 and "v1" not in {hit.volume for hit in answer.results}
        assert "what it makes of the volume" in answer.notes[-1]


def test_a_run_of_another_teacher_is_refused(made, tmp_path):
    _, run, _ = made
    path = build(tmp_path / "store", 3)
    with Store(path, writable=True) as store:
        for name in store.volume_names():
            store.commit_rows("d4" * 32, store.record(name), rows_of(store.record(name), 3))
        store.commit_current(teacher="d4" * 32, captioner=CAPTIONER)
    with (
        Searcher(path, run=run, device="cpu") as searcher,
        pytest.raises(RefusedError, match="was taught by"),
    ):
        searcher.by_volume("v0")


def held_out(path, run):
    """The volumes against which other questions are held."""
    with Searcher(path, run=run, device="cpu") as searcher:
        answer = searcher.by_vector(np.eye(DIM, dtype=np.float32)[1], Wanted(top=100))
        assert f"{len(answer.results)} volumes it did not train on" in answer.notes[-1]
        return {hit.volume for hit in answer.results}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI
def test_whom_pretraining_left_out_is_held_out(tmp_path):
    data = trees.write_medmnist(tmp_path / "data")
    path = build_cases(tmp_path / "store", discover(data))
    kept_out = [("pretrain.leave_out", [f"table:{data}"])]
    config = load_config(preset="smoke", settings=SETTINGS, overrides=kept_out)
    done = pretrain(path, tmp_path / "run", config, device="cpu", report=ignore)
    trained = set(checkpoint.load(done.run, kind="pretrain").facts["trained_on"])
    with Store(path) as store:
        names = set(store.volume_names())
        _, by_ratios = split_store(store.embeddings(TEACHER), config)
    assert held_out(path, done.run) == names - trained > set(by_ratios.index.volumes)
    with Searcher(path, run=done.run, device="cpu") as searcher:
        assert diagnose(searcher).held_out == len(names - trained)


def test_scans_and_people_that_it_was_trained_on_are_not_held_out_under_other_names(made, tmp_path):
    path, run, _ = made
    shutil.copytree(path, tmp_path / "store")
    before = held_out(tmp_path / "store", run)
    with Store(tmp_path / "store", writable=True) as store:
        trained = store.record(next(iter(checkpoint.load(run, kind="pretrain").facts["trained_on"])))
        others = {"new": {}, "scan": {"source_digest": trained.source_digest}, "person": {"subject": trained.subject}}
        for seed, (name, facts) in enumerate(others.items()):
            kept = store.commit_volume(record(name, **facts), chunks(seed))
            captions = captions_of(kept)
            store.commit_captions(CAPTIONER, name, captions)
            store.commit_rows(TEACHER, kept, rows_of(kept, seed), captions_digest=captions.digest)
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    assert held_out(tmp_path / "store", run) == before | {"new"}


def test_a_run_that_was_trained_on_everyone_has_nobody_to_be_held_against(made, tmp_path):
    path, run, _ = made
    shutil.copytree(run, tmp_path / "run")
    newest = checkpoint.latest(tmp_path / "run").folder / checkpoint.FACTS
    facts = json.loads(newest.read_text())
    with Store(path) as store:
        facts["trained_on"] = {record.volume: record.source_digest for record in store.records()}
    newest.write_text(json.dumps(facts))
    with Searcher(path, run=tmp_path / "run", device="cpu") as searcher:
        with pytest.raises(RefusedError, match=r"E_SPLIT .* was trained on everyone"):
            searcher.by_vector(np.eye(DIM, dtype=np.float32)[1])
        assert searcher.by_volume("v0").results


def test_an_exported_encoder_is_refused_by_name(made, tmp_path):
    path, run, _ = made
    export(run, "hub", tmp_path / "hub")
    with (
        Searcher(path, run=tmp_path / "hub", device="cpu") as searcher,
        pytest.raises(RefusedError, match=r"E_WEIGHTS .*hub holds an encoder alone") as refused,
    ):
        searcher.by_volume("v0")
    assert refused.value.hint == "name the pretraining run that it was exported from"


@pytest.mark.parametrize("plane", [None, "coronal"])
def test_its_answers_become_a_page(made, tmp_path, plane):
    path, run, _ = made
    with Searcher(path, run=run, device="cpu") as searcher:
        index = int(searcher.store.record("v2").valid_slices(1)[1]) if plane else None
        question = Question(volume="v2", plane=plane, slice=index)
        answer = write_answer_page(searcher, question, Wanted(top=3), tmp_path / "page.html")
        assert answer == ask(searcher, question, Wanted(top=3))
        data = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))
        assert [hit["volume"] for hit in data["answer"]["results"]] == [hit.volume for hit in answer.results]
        assert f"by the encoder of {run.name} after" in data["answer"]["notes"][-1]
        assert str(run.parent) not in (tmp_path / "page.html").read_text(encoding="utf-8"), "pages travel"
        best = answer.results[0].volume
        curves = data["curves"][best]
        if plane is None:
            assert curves is None, "whole volumes were compared"
            return
        vector = searcher.vector_of("v2", 1, index)
        rows = searcher.embeddings.all_rows([best])[:, 0].astype(np.float32)
        assert [cosine for curve in curves for cosine in curve] == pytest.approx((rows @ vector).tolist(), abs=1e-3)
