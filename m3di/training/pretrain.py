"""The online phase: trains a 3D encoder and PSAT against the store's cached targets (paper, section 2)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from m3di.config import Config
from m3di.evaluation.retrieval import RetrievalScores, held_out_slices, score_retrieval
from m3di.events import Report
from m3di.networks.psat import PlaneSliceAwareTransformer
from m3di.networks.registry import create_encoder
from m3di.signals import stop_on_signals
from m3di.tasks.split import share_of
from m3di.training import checkpoint, runtime
from m3di.training.augment import jitter_intensity
from m3di.training.loader import Batch, BatchReader, prefetch
from m3di.training.losses import InfoNCE
from m3di.training.optimiser import adamw, set_rate, update
from m3di.training.sampler import PlaneSliceSampler
from m3di.types import Float, Tensor
from stores import Store
from stores.embeddings import EmbeddingStore
from stores.errors import RefusedError
from stores.index import StoreIndex

SLICES_PER_PLANE = 8  # held-out slices of each plane and volume that take part in retrieval


class Model(nn.Module):
    """What pretraining trains: `encoder`, `psat` and the two learnable temperatures in `objective`.

    Args:
        config: Sizes of encoder and PSAT.
        cube_size: Edge of the volumes, voxels.
        embedding_dim: Width of the teacher's embeddings.
    """

    def __init__(self, config: Config, *, cube_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.encoder = create_encoder(config.encoder.name, cube_size=cube_size, **config.encoder.options)
        self.psat = PlaneSliceAwareTransformer(
            self.encoder.token_dim, embedding_dim=embedding_dim, num_slices=cube_size, **asdict(config.psat)
        )
        self.objective = nn.ModuleDict({"image": InfoNCE(), "text": InfoNCE()})

    def forward(self, volumes: Tensor, planes: Tensor, slices: Tensor) -> Float[Tensor, "b k e"]:
        """One vector for each slice of each volume."""
        return self.psat(self.encoder(volumes).tokens, planes, slices)


@dataclass(frozen=True)
class PretrainSummary:
    """How a pretraining run ended."""

    run: Path
    samples_seen: int
    num_train: int
    num_held_out: int
    retrieval: RetrievalScores | None


def pretrain(
    store_path: Path, run: Path, config: Config, *, device: str = "auto", resume: bool = False, report: Report
) -> PretrainSummary:
    """Pretrain an encoder on a store, or continue a run.

    Args:
        store_path: A store with embeddings.
        run: The run's folder: settings, metrics, checkpoints.
        config: All settings; with `resume`, those of the run.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        resume: Continue from the newest checkpoint, if there is one.
        report: Receives the events.

    Raises:
        RefusedError: When store, run and settings do not fit together.
        DivergedError: E_DIVERGED, when a loss or gradient is not finite; the last checkpoint stays.
        Interrupted: On TERM or INT, after saving.
    """
    settings = config.pretrain
    place = runtime.pick_device(device)
    runtime.prepare_process()
    with Store(store_path) as store, stop_on_signals() as stop:
        _require_trained_teacher(store, settings.random_teacher)
        embeddings = store.embeddings(store.current()["teacher"])
        train, held_out = split_store(embeddings, config)
        reader = BatchReader(store.volumes, train, pinned=place.type == "cuda")
        sampler = PlaneSliceSampler(
            train.index, slices_per_volume=settings.slices_per_volume, seed=config.seed,
            plane_weights=settings.plane_weights,
        )  # fmt: skip

        model = _build(config, store, embeddings).to(place)
        optimizer = adamw([(model, settings.learning_rate)], weight_decay=settings.weight_decay)
        begun = _restore(run, model, optimizer, store) if resume else 0
        facts = _facts(config, store, train.index)
        log = runtime.begin_run(run, config, samples_seen=begun)
        total = runtime.total_samples(settings, len(train))
        compiled = torch.compile(model) if settings.compile else model

        samples_seen, scores = begun, None
        report("begin", run=str(run), samples_seen=begun, total=total, train=len(train), held_out=len(held_out))
        started = time.perf_counter()
        for batch in prefetch(reader, sampler, start=begun, stop=total, batch_size=settings.batch_size):
            rate = set_rate(optimizer, samples_seen, total, settings)
            losses = _step(compiled, model, optimizer, batch, config, place, samples_seen)
            samples_seen += settings.batch_size
            step = samples_seen // settings.batch_size
            last = samples_seen >= total or stop.number is not None
            if step % settings.log_every == 0 or last:
                speed = (samples_seen - begun) / (time.perf_counter() - started)
                log.write(samples_seen=samples_seen, learning_rate=rate, **losses)
                report("step", samples_seen=samples_seen, total=total, volumes_per_s=round(speed, 2), **losses)
            if len(held_out) and (step % settings.evaluate_every == 0 or samples_seen >= total):
                scores = evaluate(model, store, held_out, config, place)
                log.write(samples_seen=samples_seen, retrieval=asdict(scores))
                report("evaluated", samples_seen=samples_seen, **asdict(scores))
            if step % settings.checkpoint_every == 0 or last:
                parts: dict[str, Any] = {"encoder": model.encoder, "psat": model.psat, "objective": model.objective}
                folder = checkpoint.save(run, samples_seen, parts, optimizer, facts)
                report("checkpoint", samples_seen=samples_seen, folder=str(folder))
            stop.raise_if_set()
        return PretrainSummary(run, samples_seen, len(train), len(held_out), scores)


def _require_trained_teacher(store: Store, allowed: bool) -> None:
    facts = store.facts("teacher", store.current()["teacher"]) or {}
    if facts.get("random") and not allowed:
        message = f"the teacher of {store.path} ({facts['spec']}) was never trained"
        hint = "for a control experiment: --set pretrain.random_teacher=true"
        raise RefusedError("E_WEIGHTS", message, hint=hint)


def split_store(embeddings: EmbeddingStore, config: Config) -> tuple[EmbeddingStore, EmbeddingStore]:
    """The rows of the training subjects, and of the held-out ones (validation and test shares together).

    Fine-tuning splits the same datasets the same way, so its test subjects are never pretrained on.
    """
    index = embeddings.index
    owners = list(zip(index.datasets, index.subjects, strict=True))
    shares = share_of(owners, ratios=config.split.ratios, seed=config.split.seed)
    train = [i for i, share in enumerate(shares) if share == "train"]
    held_out = [i for i, share in enumerate(shares) if share != "train"]
    return embeddings.select(train), embeddings.select(held_out)


@torch.no_grad()
def evaluate(
    model: Model, store: Store, held_out: EmbeddingStore, config: Config, device: torch.device
) -> RetrievalScores:
    """Retrieval of held-out slices among each other, by the vectors of encoder and PSAT."""
    model.eval()
    predictions, targets, planes, positions = [], [], [], []
    for volume, slot in enumerate(held_out.index.slots):
        plane, position = held_out_slices(held_out.index, volume, per_plane=SLICES_PER_PLANE)
        cube = torch.from_numpy(store.volumes.read("image", int(slot))).to(device, torch.float32)[None, None]
        with runtime.autocast(device, config.pretrain.precision):
            vectors = model(cube, plane[None].to(device), position[None].to(device))[0]
        rows = held_out.gather(np.array([volume]), plane[None].numpy(), position[None].numpy())[0]
        predictions.append(vectors.float().cpu())
        targets.append(torch.from_numpy(rows))
        planes.append(plane)
        positions.append(position)
    model.train()
    return score_retrieval(
        torch.cat(predictions), torch.cat(targets), torch.cat(planes), torch.cat(positions),
        cube_size=store.recipe.cube_size,
    )  # fmt: skip


def _step(  # noqa: PLR0917
    compiled: Callable[..., Tensor], model: Model, optimizer: torch.optim.Optimizer, batch: Batch, config: Config,
    device: torch.device, samples_seen: int,
) -> dict[str, float]:  # fmt: skip
    """One forward and backward pass and one update; refuses to update by what is not finite."""
    settings = config.pretrain
    volumes = batch.volumes.to(device, torch.float32, non_blocking=True)
    if settings.intensity_augmentation:
        volumes = jitter_intensity(volumes, seed=config.seed, epochs=batch.draw.epochs, names=batch.draw.volumes)
    with runtime.autocast(device, settings.precision):
        predictions = compiled(volumes, batch.planes.to(device), batch.slices.to(device))
    targets = batch.targets.to(device, torch.float32).flatten(0, 1)
    image, text = _losses(model, predictions.float().flatten(0, 1), targets)
    loss = settings.image_weight * image + settings.text_weight * text
    where = f"step after {samples_seen} samples, volumes {batch.draw.volumes.tolist()}"
    parts = {"image_loss": image, "text_loss": text}
    return update(optimizer, model, loss, parts, max_norm=settings.max_gradient_norm, where=where)


def _losses(model: Model, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Contrastive loss against the image and against the text targets; equal captions are no negatives."""
    image, text = targets[:, 0], targets[:, 1]
    same_text = text @ text.T > 1 - 1e-4  # rows are unit vectors in float16
    image_loss = model.objective["image"](predictions, image)
    return image_loss, model.objective["text"](predictions, text, duplicate=same_text)


def _build(config: Config, store: Store, embeddings: EmbeddingStore) -> Model:
    """A freshly initialised model: the same seed gives the same weights, the global generator is left alone."""
    rows = store.rows_record(store.current()["teacher"], embeddings.index.volumes[0])
    if rows is None:
        raise RefusedError("E_STORE", "the store has no embeddings", hint="run m3di build-store to its end")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Model(config, cube_size=store.recipe.cube_size, embedding_dim=rows.dim)


def _restore(run: Path, model: Model, optimizer: torch.optim.Optimizer, store: Store) -> int:
    """Continue from the newest checkpoint; returns its clock, 0 when there is none."""
    if checkpoint.latest(run) is None:
        return 0
    found = checkpoint.load(run, kind="pretrain")
    check_recipe(found, store)
    for name in ("encoder", "psat", "objective"):
        getattr(model, name).load_state_dict(found.weights(name))
    optimizer.load_state_dict(found.optimizer_state())
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


def _facts(config: Config, store: Store, index: StoreIndex) -> dict[str, Any]:
    """What a checkpoint says about itself: how to rebuild the encoder, and what it has seen."""
    return {
        "kind": "pretrain",
        "encoder": {"name": config.encoder.name, "options": config.encoder.options},
        "recipe": store.recipe.to_dict(),
        "teacher": store.current()["teacher"],
        "captioner": store.current()["captioner"],
        "config": config.to_dict(),
        "trained_on": sources_of(store, index.volumes),
    }


def sources_of(store: Store, volumes: Sequence[str]) -> dict[str, str]:
    """Content digest of each volume's scan, by id: what a leak guard compares."""
    return {volume: store.record(volume).source_digest for volume in volumes}
