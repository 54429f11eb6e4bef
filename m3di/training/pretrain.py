"""The online phase: trains a 3D encoder and PSAT against the store's cached targets (paper, section 2).

Alone, or as one of several processes that torchrun starts (`m3di.training.distributed`).
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from m3di.config import Config
from m3di.evaluation.localisation import LocalisationScores
from m3di.evaluation.retrieval import RetrievalScores
from m3di.events import Report, ignore
from m3di.networks.encoders import EncoderOutput, as_module
from m3di.networks.psat import PlaneSliceAwareTransformer
from m3di.networks.registry import create_encoder
from m3di.networks.weights import load_public_weights
from m3di.signals import stop_on_signals
from m3di.storage import to_train_from
from m3di.tasks.split import Owner
from m3di.teachers.identity import dense_facts, find_teacher
from m3di.training import checkpoint, distributed, runtime, steps
from m3di.training.average import MovingAverage
from m3di.training.distributed import World
from m3di.training.held_out import HeldOutScores, look
from m3di.training.leave_out import people_left_out, who_trains
from m3di.training.loader import BatchReader, prefetch
from m3di.training.objectives import DenseSpec, LocalObjective, PooledObjective, TeachersObjective
from m3di.training.optimiser import adamw, apply_gradients, load_state, set_rate
from m3di.training.sampler import PlaneSliceSampler
from m3di.training.slice_weights import read_slice_weights
from m3di.types import Float, Tensor
from stores import Store
from stores.embeddings import EmbeddingStore
from stores.errors import RefusedError
from stores.index import StoreIndex
from stores.records import people_of


class Model(nn.Module):
    """What pretraining trains: `encoder`, `psat`, and what the losses learn, in `objective` and `local`.

    Args:
        config: Sizes of encoder and PSAT, and the losses.
        cube_size: Edge of the volumes, voxels.
        embedding_dim: Width of the teacher's embeddings.
        further_dims: Width of the embeddings of each further teacher.
        dense: The store's dense rows; None when there are none.

    Raises:
        RefusedError: E_CONFIG, when a loss needs dense rows and there are none; E_NETWORK, when the encoder cannot
            do what the settings ask.
    """

    def __init__(
        self, config: Config, *, cube_size: int, embedding_dim: int, further_dims: Sequence[int] = (),
        dense: DenseSpec | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = create_encoder(config.encoder.name, cube_size=cube_size, **config.encoder.options)
        if config.encoder.weights:
            load_public_weights(as_module(self.encoder), config.encoder.weights)
        self.psat = PlaneSliceAwareTransformer(
            self.encoder.token_dim, embedding_dim=embedding_dim, num_slices=cube_size, **asdict(config.psat)
        )
        self.objective = (
            TeachersObjective(config.objective, [embedding_dim, *further_dims])
            if further_dims
            else PooledObjective(config.objective, embedding_dim)
        )
        self.local = LocalObjective(
            config.objective, self.encoder.token_dim, cube_size, dense, token_stride=self.encoder.token_stride
        )
        self.pooled_trains_encoder = config.objective.pooled_trains_encoder
        if config.pretrain.gradient_checkpointing:
            _checkpoint_layers(as_module(self.encoder), config.encoder.name)

    def forward(
        self, volumes: Tensor, planes: Tensor, slices: Tensor, voxel_mm: Tensor | None = None
    ) -> tuple[EncoderOutput, Float[Tensor, "b k e"]]:
        """What the encoder makes of the volumes, and one vector for each slice of each."""
        encoded = self.encoder(volumes)
        tokens = encoded.tokens if self.pooled_trains_encoder else encoded.tokens.detach()
        return encoded, self.psat(tokens, planes, slices, voxel_mm)


@dataclass(frozen=True)
class PretrainSummary:
    """How a pretraining run ended."""

    run: Path
    samples_seen: int
    num_train: int
    num_held_out: int
    retrieval: RetrievalScores | None
    localisation: LocalisationScores | None
    num_left_out: int = 0  # people of the store whom `pretrain.leave_out` kept out
    is_first: bool = True  # of the run's processes: the one that reports


def pretrain(
    store_path: Path, run: Path, config: Config, *, device: str = "auto", resume: bool = False, report: Report
) -> PretrainSummary:
    """Pretrain an encoder on a store, or continue a run.

    Args:
        store_path: A store with embeddings.
        run: The run's folder: settings, metrics, checkpoints. Of several processes, the first one's.
        config: All settings; with `resume`, those of the run.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        resume: Continue from the newest checkpoint, if there is one.
        report: Receives the events; of several processes, the first one's.

    Raises:
        RefusedError: When store, run and settings do not fit together.
        DivergedError: E_DIVERGED, when a loss or gradient is not finite; the last checkpoint stays.
        LockedError: E_LOCKED, when another process writes into the run.
        ResourceError: E_MEMORY, or E_WORKER when another process of the run is gone.
        Interrupted: On TERM or INT, after saving.
    """
    settings = config.pretrain
    runtime.prepare_process()
    with (
        distributed.join() as world, Store(to_train_from(store_path, config.storage)) as store,
        stop_on_signals() as stop, runtime.memory_named(), ExitStack() as held,
    ):  # fmt: skip
        _require_equal_parts(config, world)
        place = runtime.pick_device(device, local_rank=world.local_rank)
        run, report = world.collect(run)[0], report if world.is_first else ignore
        teachers = _teachers(store, config)
        embeddings = store.embeddings(teachers[0])
        train, held_out, left_out = _split(store, teachers, embeddings, config, world, report)
        reader, sampler = _data(store, embeddings, train, teachers, config, place, report)
        facts = _facts(config, store, teachers, sampler) | {"store": str(store_path.resolve())}
        _require_same_run(run if resume else None, config, facts, world)
        model = _build(config, store, teachers, train.index).to(place)
        average = MovingAverage(model, decay=settings.ema_decay) if settings.ema_decay else None
        optimizer = adamw([(model, settings.learning_rate)], weight_decay=settings.weight_decay)
        if world.is_first:
            held.enter_context(runtime.run_locked(run))
        begun = _restore(run, model, average, optimizer, store) if resume else 0
        _require_same_clock(begun, run, world)
        predict = _forward_pass(model, config, place)
        voxel_mm = _voxel_sizes(train, store, config)
        write = _log_writer(run, config, begun, world)
        total = runtime.total_samples(settings, len(train))

        samples_seen, scores = begun, None
        report(
            "begin", run=str(run), samples_seen=begun, total=total, train=len(train), held_out=len(held_out),
            left_out=len(left_out),
        )  # fmt: skip
        started = time.perf_counter()
        for batch in prefetch(
            reader, sampler, start=begun, stop=total, batch_size=settings.batch_size, rank=world.rank,
            world_size=world.size,
        ):  # fmt: skip
            rate = set_rate(optimizer, samples_seen, total, settings)
            parts = steps.cut(
                batch, settings.accumulation, place, clock=samples_seen + world.rank * len(batch.volumes),
                voxel_mm=voxel_mm,
                jitter_seed=config.seed if settings.intensity_augmentation else None,
            )  # fmt: skip
            optimizer.zero_grad(set_to_none=True)
            outcome = steps.compute_gradients(model, parts, predict, model.objective, world)
            losses = apply_gradients(
                optimizer, model, {"loss": outcome.loss, **outcome.losses}, max_norm=settings.max_gradient_norm,
                where=f"step after {samples_seen} samples, volumes {_suspects(outcome, train.index)}",
            )  # fmt: skip
            samples_seen += settings.batch_size
            step = samples_seen // settings.batch_size
            if average is not None:
                average.update(model, num_updates=step)
            stop.number = world.agree(stop.number)
            done = samples_seen >= total
            if step % settings.log_every == 0 or done:
                speed = (samples_seen - begun) / (time.perf_counter() - started)
                write(samples_seen=samples_seen, learning_rate=rate, **losses)
                report(
                    "step", samples_seen=samples_seen, total=total, volumes_per_s=round(speed, 2),
                    remaining_s=round((total - samples_seen) / speed),
                    memory_gib=round(runtime.peak_memory_gib(place), 2), **losses,
                )  # fmt: skip
            if len(held_out) and (step % settings.evaluate_every == 0 or done):
                scores = _look(average or model, store, held_out, config=config, device=place, world=world)
                write(samples_seen=samples_seen, **scores.to_dict())
                report("evaluated", samples_seen=samples_seen, **scores.to_dict())
            # A stop saves, but logs nothing that a run without it would not.
            if (step % settings.checkpoint_every == 0 or done or stop.number is not None) and world.is_first:
                folder = checkpoint.save(run, samples_seen, _saved(model, average), optimizer, facts)
                report("checkpoint", samples_seen=samples_seen, folder=str(folder))
            stop.raise_if_set()
        return PretrainSummary(
            run, samples_seen, len(train), len(held_out),
            retrieval=scores.retrieval if scores else None, localisation=scores.localisation if scores else None,
            num_left_out=len(left_out), is_first=world.is_first,
        )  # fmt: skip


def _require_equal_parts(config: Config, world: World) -> None:
    parts = world.size * config.pretrain.accumulation
    if config.pretrain.batch_size % parts:
        message = (
            f"pretrain.batch_size={config.pretrain.batch_size} cannot be cut into {config.pretrain.accumulation} "
            f"equal parts (pretrain.accumulation) on {world.size} processes"
        )
        raise RefusedError("E_CONFIG", message, hint=f"make the batch size a multiple of {parts}")


def _require_same_clock(begun: int, run: Path, world: World) -> None:
    if set(world.collect(begun)) != {begun}:
        message = f"not every process of the run sees the same checkpoint in {run}"
        raise RefusedError("E_PATH", message, hint="keep the run on a file system that all machines share")


def _require_same_run(run: Path | None, config: Config, facts: Mapping[str, Any], world: World) -> None:
    """Refuse processes with unlike slice weights, and to continue a run that does not fit the settings.

    These are one of other slice weights, of code that it alone names, of other teachers, and one that was trained on
    volumes which are now held out: its next checkpoint would not tell of them.
    """
    digest = facts["slice_weights"]
    if set(world.collect(digest)) != {digest}:
        message = "not every process of the run reads the same file of pretrain.slice_weights"
        raise RefusedError("E_PATH", message, hint="keep it on a file system that all machines share")
    found = None if run is None else checkpoint.latest(run)
    if found is None or found.facts["kind"] != "pretrain":  # another kind is refused where it is read
        return
    found.encoder(named=config.encoder.name)
    taught_by = [found.facts["teacher"], *found.facts.get("further_teachers", [])]
    if taught_by != [facts["teacher"], *facts["further_teachers"]]:
        message = (
            f"{found.folder} was taught by teacher {', '.join(name[:16] for name in taught_by)}, not the store's"
        )
        hint = "make it current again by m3di build-store with its settings, or begin a new run"
        raise RefusedError("E_STORE", message, hint=hint)
    known = found.facts.get("slice_weights", "")
    if known != digest:
        message = (
            f"pretrain.slice_weights={config.pretrain.slice_weights!r} (sha256 {digest or 'of none'}) is not what "
            f"{found.folder} was trained with ({known or 'none'})"
        )
        raise RefusedError("E_CONFIG", message, hint="give the run its own file, or begin a new run")
    gone = sorted(found.facts["trained_on"].keys() - facts["trained_on"].keys())
    if gone:
        message = f"{found.folder} was trained on {len(gone)} volumes that these settings hold out: {gone[0]}, ..."
        raise RefusedError("E_CONFIG", message, hint="give the run its own split and leave_out, or begin a new run")


def _require_trained_teacher(store: Store, allowed: bool) -> None:
    facts = store.facts("teacher", store.current()["teacher"]) or {}
    if facts.get("random") and not allowed:
        message = f"the teacher of {store.path} ({facts['spec']}) was never trained"
        hint = "for a control experiment: --set pretrain.random_teacher=true"
        raise RefusedError("E_WEIGHTS", message, hint=hint)


def _split(  # noqa: PLR0917
    store: Store, teachers: Sequence[str], embeddings: EmbeddingStore, config: Config, world: World, report: Report
) -> tuple[EmbeddingStore, EmbeddingStore, Set[Owner]]:
    """The training and the held-out rows, and who is left out, which the first process finds out."""
    left_out = world.collect(people_left_out(store, config) if world.is_first else frozenset())[0]
    _warn_of_teachers(_fitted_on(store, teachers), left_out, report)
    train, held_out = split_store(embeddings, config, left_out)
    return train, held_out, left_out


def _warn_of_teachers(fitted_on: Mapping[str, Sequence[str]] | None, left_out: Set[Owner], report: Report) -> None:
    """Say that a teacher has seen people who are left out."""
    known = {(dataset, subject) for _, dataset, subject in (fitted_on or {}).values()} & left_out
    if known:
        message = (
            f"the teacher was fitted to slices of {len(known)} of the {len(left_out)} people left out: "
            "m3di build-store with the same --leave-out fits one that was not"
        )
        report("warning", code="W_TEACHER", message=message)


def split_store(
    embeddings: EmbeddingStore, config: Config, left_out: Set[Owner] = frozenset()
) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The rows of the training subjects, and of the held-out ones (validation and test shares, and who is left out).

    Fine-tuning splits the same datasets the same way, so its test subjects are never pretrained on.
    """
    index = embeddings.index
    owners = list(zip(index.datasets, index.subjects, strict=True))
    trains = who_trains(owners, config, left_out, purpose="pretrain on")
    return embeddings.select([i for i, one in enumerate(trains) if one]), embeddings.select(
        [i for i, one in enumerate(trains) if not one]
    )


def _data(  # noqa: PLR0917
    store: Store,
    embeddings: EmbeddingStore,
    train: EmbeddingStore,
    teachers: Sequence[str],
    config: Config,
    device: torch.device,
    report: Report,
) -> tuple[BatchReader, PlaneSliceSampler]:
    """What reads the training volumes, and what says which; `embeddings` are those of all volumes."""
    facts = dense_facts(store, teachers[0]) if config.objective.dense_weight else None
    dense = store.embeddings(facts["fingerprint"]) if facts else None
    further = [store.embeddings(teacher) for teacher in teachers[1:]]
    settings = config.pretrain
    weights = None
    if settings.slice_weights:
        weights = read_slice_weights(Path(settings.slice_weights), known=embeddings.index, drawn=train.index)
    sampler = PlaneSliceSampler(
        train.index, slices_per_volume=settings.slices_per_volume, seed=config.seed,
        plane_weights=settings.plane_weights, slice_weights=weights,
    )  # fmt: skip
    _warn_of_repeats(sampler, settings.slices_per_volume, report)
    return BatchReader(store.volumes, train, dense=dense, further=further, pinned=device.type == "cuda"), sampler


def _warn_of_repeats(sampler: PlaneSliceSampler, slices_per_volume: int, report: Report) -> None:
    """Say that some volumes have fewer than K slices."""
    num_few = int((sampler.num_drawable < slices_per_volume).sum())
    if num_few:
        poorest = int(sampler.num_drawable.argmin())
        message = (
            f"{num_few} of {len(sampler.index)} volumes have fewer than {slices_per_volume} slices to draw "
            f"({sampler.index.volumes[poorest]} has {sampler.num_drawable[poorest]}): a step takes theirs more than "
            "once; lower --slices-per-volume, or build with a smaller stride"
        )
        report("warning", code="W_FEW_SLICES", message=message)


def _forward_pass(model: Model, config: Config, device: torch.device) -> steps.Predict:
    """The model's forward pass over a part, its randomness keyed, in mixed precision."""
    settings = config.pretrain
    compiled: Callable[..., tuple[EncoderOutput, Tensor]] = torch.compile(model) if settings.compile else model

    def predict(part: steps.Part) -> steps.Prediction:
        with steps.keyed_randomness(config.seed, part.clock, device), runtime.autocast(device, settings.precision):
            encoded, vectors = compiled(part.volumes, part.planes, part.slices, part.voxel_mm)
            local = model.local(encoded, part.volumes, part.planes, part.slices, part.patches)
        return steps.Prediction(vectors.float().flatten(0, 1), local)

    return predict


def _look(
    judged: Model | MovingAverage, store: Store, held_out: EmbeddingStore, *, config: Config, device: torch.device,
    world: World,
) -> HeldOutScores:  # fmt: skip
    """Score the held-out volumes, without augmentation."""

    def vectors(cube: Tensor, planes: Tensor, slices: Tensor, voxel_mm: Tensor | None) -> Tensor:
        voxel = None if voxel_mm is None else voxel_mm.to(device)
        with runtime.autocast(device, config.pretrain.precision):
            tokens = judged.get_submodule("encoder")(cube.to(device, torch.float32)).tokens
            return judged.get_submodule("psat")(tokens, planes.to(device), slices.to(device), voxel)[0]

    voxel_sizes = _voxel_sizes(held_out, store, config)
    return look(vectors, judged, store, held_out, voxel_mm=voxel_sizes, world=world)


def _log_writer(run: Path, config: Config, samples_seen: int, world: World) -> Callable[..., None]:
    """Where the metrics go: the first process keeps the run's log."""
    if not world.is_first:
        return lambda **facts: None
    return runtime.begin_run(run, config, samples_seen=samples_seen, tensorboard=config.pretrain.tensorboard).write


def _suspects(outcome: steps.Outcome, index: StoreIndex) -> list[str]:
    """The volumes whose vectors are not finite; all volumes of the batch when the fault is elsewhere."""
    broken = outcome.names[~outcome.finite].tolist()
    return [index.volumes[name] for name in broken or outcome.names.tolist()]


def _voxel_sizes(part: EmbeddingStore, store: Store, config: Config) -> Float[Tensor, " n"] | None:
    """Edge of every volume's voxels in its cube, mm; None when PSAT does not count in mm."""
    if config.psat.positions != "mm":
        return None
    return torch.tensor([store.record(volume).chain(store.recipe).voxel_mm for volume in part.index.volumes])


def _build(config: Config, store: Store, teachers: Sequence[str], index: StoreIndex) -> Model:
    """A freshly initialised model: the same seed gives the same weights, the global generator is left alone."""
    first, *further = (_width(store, teacher, index.volumes[0]) for teacher in teachers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        dense = dense_facts(store, teachers[0])
        spec = DenseSpec.of(dense) if dense else None
        return Model(config, cube_size=store.recipe.cube_size, embedding_dim=first, further_dims=further, dense=spec)


def _teachers(store: Store, config: Config) -> list[str]:
    """Fingerprints of the teachers that teach, the current one first.

    Raises:
        RefusedError: E_CONFIG, when a further one is not known, or named twice; E_WEIGHTS, when the current one was
            never trained.
    """
    _require_trained_teacher(store, config.pretrain.random_teacher)
    teachers = [store.current()["teacher"]]
    for name in config.objective.further_teachers:
        teacher = find_teacher(store, name)
        if teacher in teachers:
            message = f"objective.further_teachers: {name!r} is the store's current teacher, or there twice"
            raise RefusedError("E_CONFIG", message, hint=f"leave {name!r} out")
        teachers.append(teacher)
    return teachers


def _width(store: Store, teacher: str, volume: str) -> int:
    """Width of a teacher's embeddings, of which a volume has some."""
    rows = store.rows_record(teacher, volume)
    if rows is None:
        message = f"the store has no embeddings of teacher {teacher[:16]}"
        raise RefusedError("E_STORE", message, hint="run m3di build-store to its end")
    return rows.dim


def _checkpoint_layers(encoder: nn.Module, name: str) -> None:
    """Have an encoder compute its layers again in the backward pass."""
    if not hasattr(encoder, "checkpointing"):
        hint = "leave pretrain.gradient_checkpointing out, and raise pretrain.accumulation instead"
        raise RefusedError("E_NETWORK", f"encoder {name!r} has no gradient checkpointing", hint=hint)
    encoder.checkpointing = True  # type: ignore[assignment]


def _saved(model: Model, average: MovingAverage | None) -> dict[str, nn.Module]:
    """The modules of a checkpoint by name; those that learn nothing are left out."""
    modules = dict(model.named_children()) | ({"ema": average} if average is not None else {})
    return {name: module for name, module in modules.items() if module.state_dict()}


def _restore(
    run: Path, model: Model, average: MovingAverage | None, optimizer: torch.optim.Optimizer, store: Store
) -> int:
    """Continue from the newest checkpoint; returns its clock, 0 when there is none."""
    if checkpoint.latest(run) is None:
        return 0
    found = checkpoint.load(run, kind="pretrain")
    check_recipe(found, store)
    modules = _saved(model, average)
    begin_average = average is not None and not found.has("ema")
    try:
        for name in modules.keys() - ({"ema"} if begin_average else set()):
            modules[name].load_state_dict(found.weights(name))
        load_state(optimizer, found.optimizer_state())
    except (RuntimeError, ValueError) as error:
        message = f"{found.folder} was trained with other settings: {str(error).splitlines()[-1].strip()}"
        raise RefusedError("E_CONFIG", message, hint=f"its settings are in {run / 'config.json'}") from error
    if average is not None and begin_average:
        average.begin(model)
    return found.samples_seen


def check_recipe(found: checkpoint.Checkpoint, store: Store) -> None:
    """Refuse a checkpoint that was trained on volumes of another recipe.

    Raises:
        RefusedError: E_STORE, naming the fields that differ.
    """
    if found.facts["recipe"] != store.recipe.to_dict():
        differences = store.recipe.differences(type(store.recipe).from_dict(found.facts["recipe"]))
        message = f"{found.folder} was trained on another recipe ({'; '.join(differences)})"
        raise RefusedError("E_STORE", message, hint="use the store that the run began with, or begin a new run")


def _facts(config: Config, store: Store, teachers: Sequence[str], sampler: PlaneSliceSampler) -> dict[str, Any]:
    """What a checkpoint says about itself: how to rebuild the encoder, and what it has seen."""
    records = [store.record(volume) for volume in sampler.index.volumes]
    return {
        "kind": "pretrain",
        "encoder": {"name": config.encoder.name, "options": config.encoder.options},
        "recipe": store.recipe.to_dict(),
        "teacher": teachers[0],
        "further_teachers": list(teachers[1:]),
        "captioner": store.current()["captioner"],
        "config": config.to_dict(),
        "slice_weights": sampler.slice_weights.digest if sampler.slice_weights is not None else "",
        "trained_on": {record.volume: record.source_digest for record in records},
        "people": people_of(records),
        "teachers_fitted_on": _fitted_on(store, teachers),
    }


def _fitted_on(store: Store, teachers: Sequence[str]) -> dict[str, list[str]] | None:
    """Content digest, dataset and subject of the volumes that teachers were fitted to; None when nobody knows."""
    fitted_on: dict[str, list[str]] = {}
    for teacher in teachers:
        facts = store.facts("teacher", teacher) or {}
        if "fitted_on" not in facts:  # an earlier version fitted it
            return None
        fitted_on |= facts["fitted_on"]
    return fitted_on
