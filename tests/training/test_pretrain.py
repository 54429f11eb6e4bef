import copy

import pytest
import torch
from torch import nn

from m3di.config import load_config
from m3di.events import ignore
from m3di.networks.encoders import EncoderOutput
from m3di.training import checkpoint
from m3di.training.average import MovingAverage
from m3di.training.distributed import World
from m3di.training.pretrain import Model, pretrain
from m3di.training.runtime import memory_named, read_metrics, run_locked
from m3di.training.steps import Part, Prediction, compute_gradients, keyed_randomness
from stores import Store
from stores.errors import DivergedError, LockedError, RefusedError, ResourceError
from tests.stores.stores import DIM, TEACHER, build, captions_of

SIZE = 16
SETTINGS = [
    "encoder.options.hidden_size=24", "encoder.options.mlp_dim=24", "psat.width=16", "psat.num_queries=4",
    "pretrain.batch_size=4", "pretrain.max_steps=4", "pretrain.checkpoint_every=2", "pretrain.slices_per_volume=3",
    "split.ratios=[0.6,0.2,0.2]",
]  # fmt: skip


def config(*settings):
    return load_config(preset="smoke", settings=[*SETTINGS, *settings])


def model_of(settings, seed=0):
    torch.manual_seed(seed)
    return Model(settings, cube_size=SIZE, embedding_dim=DIM).double()


def batch(volumes=4, k=3):
    """A batch in double precision, as one part."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(volumes, k, 2, DIM, generator=generator, dtype=torch.float64)
    targets[1, 0, 1] = targets[0, 0, 1]  # an equal caption, in another part
    return Part(
        volumes=torch.rand(volumes, 1, SIZE, SIZE, SIZE, generator=generator, dtype=torch.float64),
        planes=torch.randint(3, (volumes, k), generator=generator),
        slices=torch.randint(SIZE, (volumes, k), generator=generator),
        targets=nn.functional.normalize(targets, dim=-1),
        names=torch.arange(volumes) + 7,
        clock=0,
    )


def cut(whole, num_parts):
    size = len(whole.volumes) // num_parts
    return [
        Part(
            *(
                getattr(whole, name)[start : start + size]
                for name in ("volumes", "planes", "slices", "targets", "names")
            ),
            clock=start,
        )
        for start in range(0, len(whole.volumes), size)
    ]


def forward(model):
    def predict(part):
        with keyed_randomness(0, part.clock, torch.device("cpu")):
            encoded, vectors = model(part.volumes, part.planes, part.slices)
            local = model.local(encoded, part.volumes, part.planes, part.slices, None)
        return Prediction(vectors.flatten(0, 1), local)

    return predict


def literal(model, parts):
    """The batch's losses with every part's graph held at once, and their gradients."""
    predictions = [forward(model)(part) for part in parts]
    whole = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in ("targets", "planes", "slices", "names")
    }
    losses = model.objective(
        torch.cat([prediction.vectors for prediction in predictions]), whole["targets"].flatten(0, 1),
        planes=whole["planes"].flatten(), slices=whole["slices"].flatten(),
        volumes=whole["names"].repeat_interleave(whole["planes"].shape[1]),
    )  # fmt: skip
    for name in predictions[0].local:
        losses[name] = sum(prediction.local[name] for prediction in predictions) / len(parts)
    sum(losses.values()).backward()
    return losses, gradients(model)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_pooled_loss_may_train_psat_alone(num_parts):
    def found(*settings):
        model = model_of(config("objective.reconstruction_weight=0.5", *settings))
        compute_gradients(model, cut(batch(), num_parts), forward(model), model.objective, World())
        return {name: gradient for name, gradient in gradients(model).items() if gradient.any()}

    def of(part, named):
        return {name: gradient for name, gradient in named.items() if name.startswith(part)}

    apart, both = found("objective.pooled_trains_encoder=false"), found()
    without = found("objective.image_weight=0", "objective.text_weight=0")
    assert_same(of("encoder.", apart), of("encoder.", without))
    for part in ("psat.", "objective.", "local."):
        assert_same(of(part, apart), of(part, both))
    assert of("encoder.", apart) and of("psat.", apart) and not of("psat.", without)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid", "soft"])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_have_the_losses_and_gradients_of_the_whole_batch(num_parts, kind):
    model = model_of(config("objective.reconstruction_weight=0.5", f"objective.kind={kind}"))
    losses, expected = literal(model, [batch()])
    outcome = compute_gradients(model, cut(batch(), num_parts), forward(model), model.objective, World())
    assert_same(gradients(model), expected)
    assert_same(outcome.losses, {name: loss.detach() for name, loss in losses.items()})
    torch.testing.assert_close(outcome.loss, sum(losses.values()).detach())
    assert outcome.names.tolist() == [7, 8, 9, 10]
    assert outcome.finite.all()


class Dropping(nn.Module):
    """Dropout and batch norm before the encoder."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.norm = nn.BatchNorm3d(1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, volumes) -> EncoderOutput:
        return self.encoder(self.dropout(self.norm(volumes)))


def dropping_model():
    model = model_of(config())
    model.encoder = Dropping(model.encoder)
    return model.double()


def test_both_passes_over_a_part_drop_the_same():
    model = dropping_model()
    _, expected = literal(copy.deepcopy(model), cut(batch(), 2))
    state = torch.random.get_rng_state()
    compute_gradients(model, cut(batch(), 2), forward(model), model.objective, World())
    assert_same(gradients(model), expected)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"


def test_running_statistics_see_each_part_once():
    model = dropping_model()
    compute_gradients(model, cut(batch(), 2), forward(model), model.objective, World())
    assert model.encoder.norm.num_batches_tracked == 2
    first, second = (part.volumes.mean() for part in cut(batch(), 2))
    torch.testing.assert_close(model.encoder.norm.running_mean, (0.9 * 0.1 * first + 0.1 * second).view(1))


def test_the_volume_whose_vectors_are_not_finite_is_known():
    model = model_of(config())
    whole = batch()
    whole.volumes[2, 0, 3, 3, 3] = float("nan")
    outcome = compute_gradients(model, cut(whole, 2), forward(model), model.objective, World())
    assert outcome.names[~outcome.finite].tolist() == [9]
    assert not outcome.loss.isfinite()


def test_layers_computed_again_give_the_same_gradients():
    plain, saving = (model_of(config(f"pretrain.gradient_checkpointing={word}")) for word in ("false", "true"))
    _, expected = literal(plain, [batch()])
    _, found = literal(saving, [batch()])
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_the_average_follows_the_weights_soon_at_first_and_slowly_then():
    model = model_of(config())
    average = MovingAverage(model, decay=0.9)
    start = model.psat.queries.detach().clone()
    with torch.no_grad():
        model.psat.queries.add_(1.0)
    average.update(model, num_updates=1)  # keeps (1 + 1) / (10 + 1)
    torch.testing.assert_close(average.psat.queries, start + 9 / 11)
    average.update(model, num_updates=1000)
    torch.testing.assert_close(average.psat.queries, start + 1 - 0.9 * 2 / 11)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert average.state_dict().keys() == {
        name for name in model.state_dict() if name.startswith(("encoder.", "psat."))
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pretrain") / "store", 10)


def train(store, run, *settings, **options):
    return pretrain(store, run, config(*settings), device="cpu", report=ignore, **options)


def test_the_average_is_saved_and_is_what_others_use(store, tmp_path):
    train(store, tmp_path / "with", "pretrain.ema_decay=0.5")
    train(store, tmp_path / "without")
    averaged, plain = (checkpoint.load(tmp_path / name, kind="pretrain") for name in ("with", "without"))
    assert (averaged.has("ema"), plain.has("ema")) == (True, False)
    assert averaged.weights("psat").keys() == plain.weights("psat").keys()
    name = "vit.patch_embedding.position_embeddings"
    assert torch.equal(averaged.weights("encoder")[name], plain.weights("encoder")[name]), "training is as without"
    assert torch.equal(plain.encoder_weights()[name], plain.weights("encoder")[name])
    assert torch.equal(averaged.encoder_weights()[name], averaged.weights("ema")[f"encoder.{name}"])
    assert not torch.equal(averaged.encoder_weights()[name], averaged.weights("encoder")[name])
    assert averaged.encoder_weights().keys() == plain.encoder_weights().keys()


@pytest.mark.parametrize(
    "settings",
    [
        ["pretrain.ema_decay=0.5", "objective.reconstruction_weight=0.1", "objective.kind=transport"],
        ["pretrain.accumulation=2", "psat.positions=mm", "psat.extent_mm=30", "pretrain.schedule=constant"],
    ],
)
def test_a_run_in_two_halves_is_the_run_in_one(store, tmp_path, settings):
    train(store, tmp_path / "one", *settings, "pretrain.schedule=constant", "pretrain.warmup_fraction=0")
    half = [*settings, "pretrain.schedule=constant", "pretrain.warmup_fraction=0"]
    train(store, tmp_path / "two", *half, "pretrain.max_steps=2")
    assert train(store, tmp_path / "two", *half, resume=True).samples_seen == 16
    one, two = (checkpoint.load(tmp_path / name, kind="pretrain") for name in ("one", "two"))
    assert one.facts["files"] == two.facts["files"]
    losses = [
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("one", "two")
    ]
    assert losses[0] == losses[1]


def test_a_run_without_an_average_can_begin_one(store, tmp_path):
    train(store, tmp_path, "pretrain.max_steps=2")
    train(store, tmp_path, "pretrain.ema_decay=0.5", resume=True)
    assert checkpoint.load(tmp_path, kind="pretrain").has("ema")


def test_other_settings_cannot_resume_a_run(store, tmp_path):
    train(store, tmp_path, "pretrain.max_steps=2")
    with pytest.raises(RefusedError, match=r"E_CONFIG .* was trained with other settings: .*queries"):
        train(store, tmp_path, "psat.num_queries=5", resume=True)


def test_a_batch_that_cannot_be_cut_is_refused(store, tmp_path):
    with pytest.raises(RefusedError, match=r"pretrain\.batch_size=4 cannot be cut into 3 equal parts"):
        train(store, tmp_path, "pretrain.accumulation=3")
    assert not list(tmp_path.iterdir())


def test_a_run_that_another_process_writes_into_is_refused(store, tmp_path):
    train(store, tmp_path, "pretrain.max_steps=2")
    with run_locked(tmp_path), pytest.raises(LockedError, match=f"E_LOCKED another process writes to {tmp_path}"):
        train(store, tmp_path, resume=True)
    assert train(store, tmp_path, resume=True).samples_seen == 16


def test_memory_that_runs_out_is_named():
    with pytest.raises(ResourceError, match="E_MEMORY") as told, memory_named():
        torch.empty(1 << 46)
    assert told.value.exit_code == 5
    with pytest.raises(ResourceError, match="E_MEMORY"), memory_named():
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:")  # all that is left of it after some other libraries
    with pytest.raises(RuntimeError, match="shape"), memory_named():
        torch.zeros(2, 3) @ torch.zeros(2, 3)


def test_divergence_names_step_and_volumes_and_leaves_the_last_checkpoint(store, tmp_path):
    train(store, tmp_path, "pretrain.max_steps=2")
    with pytest.raises(DivergedError, match=r"step after 12 samples, volumes \['v\d', 'v\d', 'v\d', 'v\d'\]") as told:
        train(store, tmp_path, "pretrain.learning_rate=1e30", "pretrain.schedule=constant", resume=True)
    assert told.value.exit_code == 7
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.samples_seen == 8
    assert train(store, tmp_path, resume=True).samples_seen == 16, "with a lower rate it goes on"


def test_held_out_slices_are_retrieved_and_located(store, tmp_path):
    summary = train(store, tmp_path)
    assert summary.retrieval is not None
    assert summary.localisation is not None
    evaluated = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "retrieval" in line]
    assert evaluated[-1]["localisation"]["plane_accuracy"] == summary.localisation.plane_accuracy
    assert set(evaluated[-1]["retrieval"]["recall"]["text"]) == {"1", "5", "10"}


def test_two_teachers_of_one_store_teach_together(tmp_path):
    path, other = build(tmp_path / "store", 10), "c3" * 32
    with Store(path, writable=True) as rows:
        for record in rows.records():
            made = [rows.plane_rows(TEACHER, record.volume, plane)[..., :4] for plane in range(3)]
            rows.commit_rows(other, record, made, captions_digest=captions_of(record).digest)
        rows.commit_facts("teacher", other, {"spec": "other", "fingerprint": other})
    both = 'objective.further_teachers=["other"]'
    train(path, tmp_path / "whole", both)
    train(path, tmp_path / "run", both, "pretrain.max_steps=2", "pretrain.schedule=constant")
    losses = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    assert {"image_loss", "text_loss", "image_loss_2", "text_loss_2"} <= losses[-1].keys()
    found = checkpoint.load(tmp_path / "run", kind="pretrain")
    assert found.facts["further_teachers"] == [other]
    assert found.weights("objective")["maps.1.weight"].shape == (4, DIM)
    train(path, tmp_path / "run", both, resume=True)
    with pytest.raises(RefusedError, match=r"E_STORE .* was taught by teacher a1a1a1a1a1a1a1a1, c3c3c3c3c3c3c3c3"):
        train(path, tmp_path / "run", resume=True)
    with pytest.raises(RefusedError, match="'c3' is the store's current teacher, or there twice"):
        train(path, tmp_path / "twice", 'objective.further_teachers=["other", "c3"]')


def test_metrics_reach_tensorboard(store, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    train(store, tmp_path, "pretrain.tensorboard=true", "pretrain.max_steps=2")
    train(store, tmp_path, "pretrain.tensorboard=true", resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [4, 8, 12, 16]
    logged = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)
    assert "retrieval/recall/image/1" in events.Tags()["scalars"]
