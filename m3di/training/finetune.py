"""Fine-tuning: a segmentation network on a labelled task, from scratch or from a pretrained encoder (paper, 3.1)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3di.config import Config
from m3di.evaluation.metrics import dice_per_class
from m3di.events import Report
from m3di.networks.registry import SEGMENTATION, create_segmentation
from m3di.networks.segmentation import SegmentationNetwork
from m3di.signals import stop_on_signals
from m3di.tasks.data import TaskData, open_task, prepare_task
from m3di.tasks.registry import SegmentationTask, load_task
from m3di.tasks.split import SHARES, nested_order, split_subjects
from m3di.training import checkpoint, runtime
from m3di.training.augment import jitter_intensity
from m3di.training.losses import dice_cross_entropy
from m3di.training.optimiser import adamw, set_rate, update
from m3di.training.sampler import Shuffle
from stores import Store
from stores.errors import RefusedError
from stores.recipe import Recipe


@dataclass(frozen=True)
class FinetuneSummary:
    """How a fine-tuning run ended."""

    run: Path
    samples_seen: int
    num_train: int
    num_validation: int
    num_test: int
    validation_dice: float | None


@dataclass(frozen=True)
class Start:
    """Where a network's encoder comes from, and what follows from that.

    Attributes:
        encoder: Name and options of the encoder.
        recipe: How scans become cubes.
        checkpoint: The pretrained weights; None from scratch.
    """

    encoder: dict[str, Any]
    recipe: Recipe
    checkpoint: checkpoint.Checkpoint | None


def finetune(
    task_name: str,
    data: Path,
    run: Path,
    config: Config,
    *,
    network: str | None = None,
    init: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    report: Report,
) -> FinetuneSummary:
    """Train a network on the training subjects of a task.

    Args:
        task_name: Name in the task registry.
        data: The dataset's folder.
        run: The run's folder; the task's cubes are kept beside it, in `.data`.
        config: All settings.
        network: Name of the segmentation network; by default the one that fits the encoder.
        init: A pretraining run whose encoder is the start; None to start from scratch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        resume: Continue from the newest checkpoint, if there is one.
        report: Receives the events.

    Raises:
        RefusedError: When task, run and settings do not fit together.
        DivergedError: E_DIVERGED, when a loss or gradient is not finite.
        Interrupted: On TERM or INT, after saving.
    """
    settings = config.finetune
    place = runtime.pick_device(device)
    runtime.prepare_process()
    task = load_task(task_name, data)
    start = _start(config, init)
    name = network or _fitting_network(start.encoder["name"])
    store_path = prepare_task(task, start.recipe, run.parent / ".data", report=report)
    with Store(store_path) as store, stop_on_signals() as stop:
        cubes = open_task(task, store)
        train, validation, test = split_task(cubes, config)
        model = _build(name, start, len(cubes.class_values), config).to(place)
        optimizer = adamw(_rates(model, settings), weight_decay=settings.weight_decay)
        begun = _restore(run, model, optimizer) if resume else 0
        facts = _facts(task, cubes, name, start, config, {"train": train, "validation": validation, "test": test})
        log = runtime.begin_run(run, config, samples_seen=begun)
        total = runtime.total_samples(settings, len(train))
        shuffle = Shuffle(len(train), seed=config.seed)
        compiled = torch.compile(model) if settings.compile else model

        samples_seen, dice = begun, None
        report("begin", run=str(run), samples_seen=begun, total=total, train=len(train), network=name)
        started = time.perf_counter()
        while samples_seen < total:
            rate = set_rate(optimizer, samples_seen, total, settings)
            drawn, epochs = shuffle.draw(samples_seen, settings.batch_size)
            volumes, labels = cubes.read([train[i] for i in drawn])
            volumes, labels = volumes.to(place), labels.to(place)
            if settings.intensity_augmentation:
                volumes = jitter_intensity(volumes, seed=config.seed, epochs=epochs, names=drawn)
            with runtime.autocast(place, settings.precision):
                logits = compiled(volumes)
            loss = dice_cross_entropy(logits.float(), labels)
            where = f"step after {samples_seen} samples, cases {[cubes.records[train[i]].volume for i in drawn]}"
            losses = update(optimizer, model, loss, {}, max_norm=settings.max_gradient_norm, where=where)
            samples_seen += settings.batch_size
            step = samples_seen // settings.batch_size
            last = samples_seen >= total or stop.number is not None
            if step % settings.log_every == 0 or samples_seen >= total:
                speed = (samples_seen - begun) / (time.perf_counter() - started)
                log.write(samples_seen=samples_seen, learning_rate=rate, **losses)
                report("step", samples_seen=samples_seen, total=total, volumes_per_s=round(speed, 2), **losses)
            if validation and (step % settings.evaluate_every == 0 or samples_seen >= total):
                dice = validate(model, cubes, validation, config, place)
                log.write(samples_seen=samples_seen, validation_dice=dice)
                report("evaluated", samples_seen=samples_seen, validation_dice=dice)
            if step % settings.checkpoint_every == 0 or last:
                folder = checkpoint.save(run, samples_seen, {"network": model}, optimizer, facts)
                report("checkpoint", samples_seen=samples_seen, folder=str(folder))
            stop.raise_if_set()
        return FinetuneSummary(run, samples_seen, len(train), len(validation), len(test), dice)


def split_task(cubes: TaskData, config: Config) -> tuple[list[int], list[int], list[int]]:
    """Volumes of the training, validation and test subjects, as positions in `cubes.records`.

    `label_fraction` keeps the first part of the training subjects in hash order, so smaller fractions are subsets.

    Raises:
        RefusedError: E_SPLIT, when there are too few subjects.
    """
    subjects = [record.subject for record in cubes.records]
    shares = split_subjects(subjects, ratios=config.split.ratios, seed=config.split.seed)
    labelled = nested_order({s for s in subjects if shares[s] == "train"}, seed=config.split.seed)
    kept = set(labelled[: max(1, round(config.finetune.label_fraction * len(labelled)))])
    positions = {share: [i for i, s in enumerate(subjects) if shares[s] == share] for share in SHARES}
    train = [i for i in positions["train"] if subjects[i] in kept]
    return train, positions["validation"], positions["test"]


@torch.no_grad()
def validate(
    model: SegmentationNetwork, cubes: TaskData, volumes: Sequence[int], config: Config, device: torch.device
) -> float:
    """Mean Dice over foreground classes and cases, on the cubes."""
    model.eval()
    classes = range(1, len(cubes.class_values))
    scores: list[float] = []
    for volume in volumes:
        image, label = cubes.read([volume])
        with runtime.autocast(device, config.finetune.precision):
            prediction = model(image.to(device)).argmax(dim=1)[0].cpu().numpy()
        scores += dice_per_class(prediction, label[0].numpy(), classes).values()
    model.train()
    return float(np.nanmean(scores))


def load_network(found: checkpoint.Checkpoint) -> SegmentationNetwork:
    """Rebuild the network of a fine-tuning checkpoint, with its weights, in evaluation mode.

    Raises:
        DamagedError: E_WEIGHTS, when the weights are damaged.
    """
    facts = found.facts
    recipe = Recipe.from_dict(facts["recipe"])
    num_classes, options = len(facts["class_values"]), facts["encoder"]["options"]
    model = create_segmentation(facts["network"], cube_size=recipe.cube_size, num_classes=num_classes, **options)
    model.load_state_dict(found.weights("network"))
    return model.eval()


def _start(config: Config, init: Path | None) -> Start:
    """Take encoder and recipe from the pretraining run, or from the settings when there is none."""
    if init is None:
        return Start({"name": config.encoder.name, "options": config.encoder.options}, config.volumes, None)
    found = checkpoint.load(init, kind="pretrain")
    recipe = Recipe.from_dict(found.facts["recipe"])
    asked, standard = config.volumes.to_dict(), Recipe().to_dict()
    wrong = [name for name, value in recipe.to_dict().items() if asked[name] not in (standard[name], value)]
    if wrong:
        message = f"{init} was pretrained with another recipe: volumes.{wrong[0]} is {getattr(recipe, wrong[0])}"
        raise RefusedError("E_CONFIG", message, hint=f"leave volumes.{wrong[0]} out, it is taken from the run")
    return Start(dict(found.facts["encoder"]), recipe, found)


def _fitting_network(encoder: str) -> str:
    """The segmentation network around an encoder."""
    for name, halves in SEGMENTATION.items():
        if halves.encoder == encoder:
            return name
    hint = f"name one by --network: {', '.join(SEGMENTATION)}"
    raise RefusedError("E_NETWORK", f"no segmentation network is built on encoder {encoder!r}", hint=hint)


def _build(name: str, start: Start, num_classes: int, config: Config) -> SegmentationNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = create_segmentation(
            name, cube_size=start.recipe.cube_size, num_classes=num_classes, **start.encoder["options"]
        )
    if start.checkpoint is not None:
        if SEGMENTATION[name].encoder != start.encoder["name"]:
            message = (
                f"network {name!r} has no {start.encoder['name']!r} encoder, which {start.checkpoint.folder} holds"
            )
            raise RefusedError("E_NETWORK", message, hint=f"use --network {_fitting_network(start.encoder['name'])}")
        model.encoder.load_state_dict(start.checkpoint.encoder_weights())
    return model


def _rates(model: SegmentationNetwork, settings: Any) -> list[tuple[torch.nn.Module, float]]:
    """Modules with their base learning rates: the encoder may have its own."""
    return [
        (model.encoder, settings.encoder_learning_rate or settings.learning_rate),
        (model.decoder, settings.learning_rate),
    ]


def _restore(run: Path, model: SegmentationNetwork, optimizer: torch.optim.Optimizer) -> int:
    if checkpoint.latest(run) is None:
        return 0
    found = checkpoint.load(run, kind="finetune")
    model.load_state_dict(found.weights("network"))
    optimizer.load_state_dict(found.optimizer_state())
    return found.samples_seen


def _facts(  # noqa: PLR0917
    task: SegmentationTask, cubes: TaskData, network: str, start: Start, config: Config, split: dict[str, list[int]]
) -> dict[str, Any]:
    """What a checkpoint says about itself: how to rebuild the network, and who was trained on."""
    pretrained_on = dict(start.checkpoint.facts["trained_on"]) if start.checkpoint else {}
    return {
        "kind": "finetune",
        "task": task.name,
        "data": str(task.data.resolve()),
        "classes": {str(value): task.classes.get(value, "background") for value in cubes.class_values},
        "class_values": list(cubes.class_values),
        "modality": task.modality,
        "network": network,
        "encoder": start.encoder,
        "recipe": start.recipe.to_dict(),
        "split": {share: [cubes.records[i].volume for i in members] for share, members in split.items()},
        "trained_on": {cubes.records[i].volume: cubes.records[i].source_digest for i in split["train"]},
        "pretrained_on": pretrained_on,
        "config": config.to_dict(),
    }
