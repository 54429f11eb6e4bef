"""Fine-tuning of small networks on phantoms, in this process; tests/cli/test_finetune.py runs every task."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from m3di.config import load_config
from m3di.events import ignore
from m3di.networks.registry import create_encoder
from m3di.networks.segmentation import SegmentationOutput
from m3di.signals import Interrupted
from m3di.tasks.data import open_task, prepare_task
from m3di.tasks.registry import load_task
from m3di.training import checkpoint, goals
from m3di.training.finetune import finetune
from m3di.training.repeats import repeat, runs_of
from m3di.training.runtime import read_metrics, run_locked
from m3di.training.start import build_network, load_network, start_of
from stores import Store
from stores.errors import DivergedError, LockedError, RefusedError
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI
SIZES = ["volumes.cube_size=16", "finetune.max_steps=4", "finetune.checkpoint_every=2", "finetune.evaluate_every=2"]
ENCODER = {"patch_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_layers": 2, "num_heads": 4}  # of `smoke`


def config(*settings):
    return load_config(preset="smoke", settings=[*SIZES, *settings])


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Five heads with two structures, their cubes built."""
    root = tmp_path_factory.mktemp("heads")
    data = trees.write_msd(root / "msd", 6)
    prepare_task(load_task("msd", data), config().volumes, root / "cubes", workers=0, report=ignore)
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Ten scans of each of two classes, their cubes built."""
    root = tmp_path_factory.mktemp("classes")
    data = trees.write_table(root / "table", classes=("a", "b"), count=20)
    prepare_task(load_task("table", data), config().volumes, root / "cubes", workers=0, report=ignore)
    return root


def train(root, run, *settings, task=None, **options):
    task = task or ("msd" if (root / "msd").exists() else "table")
    return finetune(
        task, root / task, run, config(*settings), cubes_folder=root / "cubes", device="cpu",
        **{"report": ignore, **options},
    )  # fmt: skip


def weights(run, part="network"):
    return checkpoint.load(run, kind="finetune").weights(part)


def differ(first, second, prefix=""):
    return [name for name in first if name.startswith(prefix) and not torch.equal(first[name], second[name])]


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("heads", ["finetune.flip_axes=['x','y']"]),
        ("heads", ["finetune.ema_decay=0", "finetune.freeze_fraction=1"]),
        ("classes", ["finetune.class_balance='sampling'", "finetune.options.dropout=0.3"]),
    ],
)
def test_a_run_in_two_halves_is_the_run_in_one(request, tmp_path, kind, settings):
    root = request.getfixturevalue(kind)
    same = [*settings, "finetune.schedule=constant", "finetune.warmup_fraction=0"]
    train(root, tmp_path / "one", *same)
    train(root, tmp_path / "two", *same, "finetune.max_steps=2")
    assert train(root, tmp_path / "two", *same, resume=True).samples_seen == 8
    one, two = (checkpoint.load(tmp_path / name, kind="finetune") for name in ("one", "two"))
    assert one.facts["files"] == two.facts["files"], "weights and optimiser state are bit-equal"
    assert {**one.facts, "config": 0} == {**two.facts, "config": 0}
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("kind, samples", [("heads", 2), ("heads", 6), ("classes", 4)])
def test_a_stopped_run_goes_on_to_the_same_weights(request, tmp_path, kind, samples):
    """Stopped by TERM before, or after, the encoder is let go."""
    root = request.getfixturevalue(kind)
    settings = ["finetune.freeze_fraction=0.5", "finetune.checkpoint_every=3"]

    def stop(event, **facts):
        if event == "step" and facts["samples_seen"] == samples:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = train(root, tmp_path / "straight", *settings)
    with pytest.raises(Interrupted) as stopped:
        train(root, tmp_path / "stopped", *settings, report=stop)
    assert stopped.value.exit_code == 143
    assert checkpoint.load(tmp_path / "stopped", kind="finetune").samples_seen == samples
    again = train(root, tmp_path / "stopped", *settings, resume=True)
    assert replace(again, run=straight.run) == straight
    one, two = (checkpoint.load(tmp_path / name, kind="finetune") for name in ("straight", "stopped"))
    assert one.facts == two.facts, "with the digests of weights and optimiser state"
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "stopped")]
    assert lines[0] == lines[1]


def test_a_run_that_has_ended_is_told_again(heads, tmp_path):
    first = train(heads, tmp_path)
    again = train(heads, tmp_path, resume=True)
    assert first == again
    assert first.validation is not None


def test_a_finished_folder_needs_resume(heads, tmp_path):
    train(heads, tmp_path, "finetune.max_steps=1")
    with pytest.raises(RefusedError, match=r"E_PATH .* holds checkpoints of an earlier run"):
        train(heads, tmp_path)


def test_another_task_or_network_cannot_resume_a_run(heads, classes, tmp_path):
    train(heads, tmp_path, "finetune.max_steps=1")
    with pytest.raises(RefusedError, match=r"E_CONFIG .* was trained for task 'msd', not 'table'"):
        train(classes, tmp_path, resume=True)
    with pytest.raises(RefusedError, match=r"E_CONFIG .* was trained with other settings"):
        train(heads, tmp_path, "encoder.options.num_layers=1", resume=True)


def test_a_run_that_another_process_writes_into_is_refused(heads, tmp_path):
    with run_locked(tmp_path), pytest.raises(LockedError, match=f"E_LOCKED another process writes to {tmp_path}"):
        train(heads, tmp_path)


@pytest.mark.parametrize("kind", ["heads", "classes"])
def test_divergence_names_step_and_cases_and_leaves_the_last_checkpoint(request, tmp_path, kind):
    root = request.getfixturevalue(kind)
    train(root, tmp_path, "finetune.max_steps=2")
    ill = ["finetune.learning_rate=1e35", "finetune.schedule=constant", "finetune.max_gradient_norm=1e30"]
    with pytest.raises(DivergedError, match=r"E_DIVERGED step after \d samples, cases \['\w+', '\w+'\]") as told:
        train(root, tmp_path, *ill, resume=True)
    assert told.value.exit_code == 7
    assert checkpoint.load(tmp_path, kind="finetune").samples_seen == 4


def test_facts_say_what_evaluation_needs(classes, heads, tmp_path):
    train(classes, tmp_path / "c")
    facts = checkpoint.load(tmp_path / "c", kind="finetune").facts
    assert (facts["task_kind"], facts["loss"], facts["metrics"][0]) == (
        "classification", "cross_entropy", "balanced_accuracy",
    )  # fmt: skip
    assert facts["classes"] == {"0": "a", "1": "b"}
    assert [len(facts["split"][share]) for share in ("train", "validation", "test")] == [14, 2, 4]
    train(heads, tmp_path / "s")
    facts = checkpoint.load(tmp_path / "s", kind="finetune").facts
    assert (facts["task_kind"], facts["class_values"], facts["loss"]) == (
        "segmentation", [0, 1, 2], "dice_cross_entropy",
    )  # fmt: skip
    assert facts["init"] == {"kind": "scratch"}
    assert facts["trained_on"].keys() == set(facts["split"]["train"])


def test_a_frozen_encoder_stays_and_is_let_go(heads, tmp_path):
    initial = initial_weights()
    train(heads, tmp_path / "probe", "finetune.freeze_fraction=1", "finetune.ema_decay=0")
    probe = weights(tmp_path / "probe")
    assert not differ(initial, probe, "encoder.")
    assert differ(initial, probe, "decoder.")
    train(heads, tmp_path / "half", "finetune.freeze_fraction=0.5", "finetune.ema_decay=0", "finetune.max_steps=2")
    assert differ(initial, weights(tmp_path / "half"), "encoder."), "one step frozen, one not"


def initial_weights():
    """The weights that a segmentation run begins with."""
    settings = config()
    return build_network(
        "segmentation", start_of("segmentation", None, None, settings), num_classes=3, seed=0
    ).state_dict()


def test_a_frozen_encoder_is_in_evaluation(classes, tmp_path):
    """Batch norms of a frozen encoder keep their statistics."""
    settings = ["finetune.freeze_fraction=1", "finetune.ema_decay=0", "finetune.options.depth=10"]
    train(classes, tmp_path, *settings, "finetune.max_steps=1", network="medicalnet")
    found = weights(tmp_path)
    counted = [name for name in found if name.endswith("num_batches_tracked")]
    assert counted
    assert not any(found[name].any() for name in counted)


def test_the_encoder_may_learn_at_its_own_rate(heads, tmp_path):
    train(heads, tmp_path, "finetune.encoder_rate_factor=0.1", "finetune.max_steps=1")
    groups = checkpoint.load(tmp_path, kind="finetune").optimizer_state()["param_groups"]
    assert [group["base_rate"] for group in groups] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-3])
    train(heads, tmp_path, "finetune.encoder_learning_rate=0.5", resume=True)
    groups = checkpoint.load(tmp_path, kind="finetune").optimizer_state()["param_groups"]
    assert groups[0]["base_rate"] == 0.5, "as given"


UNSTEADY = [
    "finetune.evaluate_every=1", "finetune.checkpoint_every=1", "finetune.schedule=constant",
    "finetune.warmup_fraction=0", "finetune.learning_rate=0.01", "split.ratios=[0.5, 0.3, 0.2]",
]  # fmt: skip


def evaluations(run):
    """(clock, rank) of every evaluation of a classification run."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "validation" in line]
    scores = [(line["samples_seen"], line["validation"]) for line in lines]
    return [(clock, (one["balanced_accuracy"], -one["cross_entropy"])) for clock, one in scores]


@pytest.mark.parametrize("average, part", [(0, "network"), (0.5, "ema")])
def test_the_best_weights_in_validation_are_kept_and_used(classes, tmp_path, average, part):
    settings = [*UNSTEADY, f"finetune.ema_decay={average}"]
    summary = train(classes, tmp_path / "run", *settings, "finetune.max_steps=6")
    clock, rank = max(evaluations(tmp_path / "run"), key=lambda one: (one[1], one[0]))
    assert (summary.best, summary.best_samples_seen) == (rank[0], clock)
    assert 0 < clock < summary.samples_seen, "or this test shows nothing"
    found = checkpoint.load(tmp_path / "run", kind="finetune")
    assert found.has("ema") == bool(average)
    train(classes, tmp_path / "short", *settings, f"finetune.max_steps={clock // 2}")
    used = load_network(found)
    assert not differ(weights(tmp_path / "short", part), used.state_dict())
    assert differ(found.weights(part), used.state_dict())
    assert not used.training


def test_the_last_weights_are_used_when_asked(classes, tmp_path):
    train(classes, tmp_path, *UNSTEADY, "finetune.max_steps=6", "finetune.keep=last")
    found = checkpoint.load(tmp_path, kind="finetune")
    assert not found.has("best")
    assert not differ(found.weights("ema"), load_network(found).state_dict())


def test_training_stops_when_validation_gets_no_better(classes, tmp_path):
    settings = [*UNSTEADY, "finetune.max_steps=20", "finetune.ema_decay=0"]
    train(classes, tmp_path / "long", *settings, "finetune.patience=0")
    ranks = [rank for _, rank in evaluations(tmp_path / "long")]
    bests = [max(ranks[: n + 1]) for n in range(len(ranks))]
    stop = next(n for n in range(2, len(ranks)) if bests[n] == bests[n - 2])
    assert stop < len(ranks) - 1, "or this test shows nothing"
    summary = train(classes, tmp_path / "run", *settings, "finetune.patience=2")
    assert (summary.samples_seen, summary.stopped_early) == (2 * (stop + 1), True)
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "long")[: stop + 1]
    again = train(classes, tmp_path / "run", *settings, "finetune.patience=2", resume=True)
    assert again == summary, "it stays stopped"
    assert train(classes, tmp_path / "run", *settings, "finetune.patience=0", resume=True).samples_seen == 40


def test_validation_in_between_changes_nothing(classes, tmp_path):
    train(classes, tmp_path / "often", "finetune.evaluate_every=1")
    train(classes, tmp_path / "never", "split.ratios=[0.8, 0.0, 0.2]", "finetune.evaluate_every=1")
    lines = read_metrics(tmp_path / "often" / "metrics.jsonl")
    assert {"balanced_accuracy", "auc", "cross_entropy"} == set(lines[1]["validation"])
    assert not checkpoint.load(tmp_path / "never", kind="finetune").has("best"), "without validation there is no best"
    train(classes, tmp_path / "once", "finetune.evaluate_every=4")
    assert not differ(weights(tmp_path / "often"), weights(tmp_path / "once"))


def test_weights_of_a_file_are_the_encoder(heads, tmp_path):
    encoder = create_encoder("vit", cube_size=16, **ENCODER)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    frozen = ["finetune.freeze_fraction=1", "finetune.max_steps=1", "finetune.ema_decay=0"]
    train(heads, tmp_path / "run", *frozen, init=tmp_path / "encoder.safetensors")
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[f"encoder.{name}"], value) for name, value in encoder.state_dict().items())
    facts = checkpoint.load(tmp_path / "run", kind="finetune").facts
    assert facts["init"]["kind"] == "file"
    assert facts["pretraining_known"] is False
    whole = {name: value.contiguous() for name, value in found.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    train(heads, tmp_path / "more", *frozen, init=str(tmp_path / "whole.safetensors"))
    assert not differ(found, weights(tmp_path / "more"), "encoder.")


def test_weights_that_do_not_fit_are_refused(heads, tmp_path):
    encoder = create_encoder("vit", cube_size=16, **{**ENCODER, "num_layers": 1})
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(RefusedError, match=r"E_WEIGHTS .* does not fit the encoder 'vit': \d+ weights differ"):
        train(heads, tmp_path / "run", init=tmp_path / "encoder.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for init in ("nowhere", tmp_path / "nowhere.safetensors", tmp_path / "broken.safetensors", "swin:nowhere"):
        with pytest.raises(RefusedError, match="E_WEIGHTS"):
            train(heads, tmp_path / "run", init=init)
    assert not (tmp_path / "run").exists()


def test_a_network_without_an_encoder_is_neither_given_weights_nor_frozen(classes, tmp_path):
    with pytest.raises(RefusedError, match="E_NETWORK network 'mrnet' has no encoder to give weights to"):
        train(classes, tmp_path / "run", network="mrnet", init="medicalnet:x")
    with pytest.raises(RefusedError, match="E_NETWORK network 'mrnet' has no encoder to freeze"):
        train(classes, tmp_path / "run", "finetune.freeze_fraction=0.5", network="mrnet")
    with pytest.raises(RefusedError, match=r"E_NETWORK .*'unett'"):
        train(classes, tmp_path / "run", network="unett")


def test_left_and_right_are_not_mirrored_where_classes_tell_them_apart(tmp_path):
    data = trees.write_mmwhs(tmp_path / "heart", ct=0, mr=1)
    with pytest.raises(RefusedError, match=r"E_CONFIG finetune\.flip_axes mirrors left and right.*'left atrium'"):
        finetune("mmwhs-mr", data, tmp_path / "run", config("finetune.flip_axes=['x']"), report=ignore)


def test_deep_supervision_is_there_where_the_network_has_it(heads, tmp_path):
    settings = ["volumes.cube_size=32", "encoder.options={}", "finetune.max_steps=1", "finetune.batch_size=1"]
    narrow = "finetune.options.filters=[4, 8, 8, 8]"
    for run, more in (("with", []), ("without", ["finetune.deep_supervision=false"])):
        train(heads, tmp_path / run, *settings, narrow, *more, network="nnunet")
    options = [checkpoint.load(tmp_path / run, kind="finetune").facts["options"] for run in ("with", "without")]
    assert options[0] == {"filters": [4, 8, 8, 8], "deep_supervision": True}
    assert options[1] == {"filters": [4, 8, 8, 8]}
    assert load_network(checkpoint.load(tmp_path / "with", kind="finetune")).auxiliary_weights


def test_repeats_differ_by_their_seeds_alone(heads, tmp_path):
    def one(run, settings):
        return train(heads, run, f"seed={settings.seed}", "finetune.max_steps=1")

    runs = repeat(tmp_path / "run", config("seed=3"), 2, one)
    assert [summary.run.name for summary in runs] == ["repeat-0", "repeat-1"]
    assert runs_of(tmp_path / "run") == [summary.run for summary in runs]
    assert runs_of(tmp_path) == [tmp_path]
    facts = [checkpoint.load(summary.run, kind="finetune").facts for summary in runs]
    assert [one["config"]["seed"] for one in facts] == [3, 4]
    assert facts[0]["split"] == facts[1]["split"]
    assert differ(weights(runs[0].run), weights(runs[1].run))
    with pytest.raises(RefusedError, match="E_CONFIG --repeats 0"):
        repeat(tmp_path, config(), 0, one)


def test_dice_of_cubes_by_hand(heads):
    label = torch.tensor([[0, 1, 1, 2, -1, -1]]).view(1, 1, 1, 6)
    prediction = torch.tensor([[1, 1, 0, 2, 3, 1]]).view(1, 1, 1, 6)
    found = goals.cube_dice(prediction, label, num_classes=4)
    assert found[:2] == pytest.approx([2 * 1 / (2 + 2), 1.0])
    assert np.isnan(found[2]), "predicted only where nobody knows"


def test_validation_is_the_mean_dice_of_cases_and_structures(heads):
    task = load_task("msd", heads / "msd")
    path, _ = prepare_task(task, config().volumes, heads / "cubes", workers=0, report=ignore)
    with Store(path) as store:
        cubes = open_task(task, store)
        truth = {cubes.read([i])[0].sum().item(): cubes.read([i])[1] for i in (0, 1)}

        def perfect_but_blind_to_the_second(volumes):
            label = truth[volumes.sum().item()].clone()
            label[label == 2] = 0
            return SegmentationOutput(torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float())

        found = goals.SegmentationGoal().validate(perfect_but_blind_to_the_second, cubes, [0, 1])
    assert found.scores == {"dice": 0.5}
    assert found.rank == (0.5,)


def test_settings_are_saved_and_can_be_fed_back(heads, tmp_path):
    train(heads, tmp_path, "finetune.max_steps=1", "split.folds=2", "split.fold=1")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert load_config(base=saved) == config("finetune.max_steps=1", "split.folds=2", "split.fold=1")
