"""Fine-tuning: a network on a labelled task, from scratch or from a pretrained encoder (paper, section 3.1)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from m3di.config import Config, FinetuneConfig
from m3di.events import Report
from m3di.report.pages.training import FILE as REPORT
from m3di.report.pages.training import write_training_report
from m3di.signals import StopRequest, stop_on_signals
from m3di.tasks.data import TaskData, TaskSplit, open_task, prepare_task, split_task
from m3di.tasks.registry import load_task
from m3di.tasks.split import SHARES
from m3di.tasks.task import LOSSES, Task
from m3di.training import checkpoint, runtime
from m3di.training.augment import flip, jitter_intensity, warp
from m3di.training.batches import BalancedShuffle, Draw, LabelledBatch, read_ahead
from m3di.training.goals import Predict, goal_of
from m3di.training.learner import Learner
from m3di.training.optimiser import set_rate, update
from m3di.training.sampler import Shuffle
from m3di.training.start import Start, build_network, load_network, start_of
from m3di.training.steps import keyed_randomness
from m3di.types import Float, Int64, Tensor
from stores import Store
from stores.errors import RefusedError
from stores.geometry import CubeChain
from stores.records import people_of

__all__ = ["FinetuneSummary", "finetune", "load_network"]
MEMORY_HINT = "lower finetune.batch_size, or set finetune.precision=bfloat16; then --resume"


@dataclass(frozen=True)
class FinetuneSummary:
    """How a fine-tuning run ended.

    Attributes:
        run: Its folder.
        network: Name of the network.
        samples_seen: The clock at its end.
        num_train: Training volumes.
        num_validation: Validation volumes.
        num_test: Test volumes.
        num_quarantined: Cases that could not be used.
        validation: Scores of the last evaluation by name; None when there was none.
        best: Best validation score, and `best_samples_seen` its clock; None without validation.
        best_samples_seen: See `best`.
        stopped_early: Whether validation did not get better for too long.
    """

    run: Path
    network: str
    samples_seen: int
    num_train: int
    num_validation: int
    num_test: int
    num_quarantined: int
    validation: dict[str, float] | None
    best: float | None
    best_samples_seen: int | None
    stopped_early: bool


def finetune(
    task_name: str,
    data: Path,
    run: Path,
    config: Config,
    *,
    network: str | None = None,
    init: str | Path | None = None,
    cubes_folder: Path | None = None,
    device: str = "auto",
    resume: bool = False,
    report: Report,
) -> FinetuneSummary:
    """Train a network on the training subjects of a task.

    Args:
        task_name: Name in the task registry.
        data: The dataset's folder or file.
        run: The run's folder.
        config: All settings.
        network: Name of the network; by default the one that fits the encoder.
        init: A pretraining run, or weights, of the encoder to start from; None to start from scratch.
        cubes_folder: Where the task's cubes are kept; by default beside the run, in `.data`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        resume: Continue from the newest checkpoint, if there is one.
        report: Receives the events.

    Raises:
        RefusedError: When task, run and settings do not fit together.
        DivergedError: E_DIVERGED, when a loss or gradient is not finite; the last checkpoint stays.
        LockedError: E_LOCKED, when another process writes into the run.
        ResourceError: E_MEMORY.
        Interrupted: On TERM or INT, after saving.
    """
    settings = config.finetune
    place = runtime.pick_device(device)
    runtime.prepare_process()
    task = load_task(task_name, data, class_column=settings.class_column)
    _require_same_sides(task, settings)
    start = start_of(task.kind, network, init, config)
    _require_begun_or_new(run, resume)
    with (
        stop_on_signals() as stop, runtime.memory_named(MEMORY_HINT),
        _cubes(task, start, cubes_folder or run.parent / ".data", stop, report) as (cubes, num_quarantined),
        ExitStack() as held,
    ):  # fmt: skip
        split = _split(cubes, task, start, config, report)
        model = build_network(task.kind, start, num_classes=len(cubes.classes), seed=config.seed).to(place)
        learner = Learner(model, settings, keeps_best=bool(split.validation) and settings.keep == "best")
        goal = goal_of(cubes, split.train, model, class_balance=settings.class_balance)
        held.enter_context(runtime.run_locked(run))
        begun = learner.restore(run, task) if resume else 0
        facts = _facts(task, cubes, start, config, split)
        log = runtime.begin_run(run, config, samples_seen=begun)
        total = runtime.total_samples(settings, len(split.train))
        compiled = torch.compile(model) if settings.compile else model

        samples_seen = begun
        report(
            "begin", run=str(run), samples_seen=begun, total=total, train=len(split.train),
            validation=len(split.validation), test=len(split.test), network=start.network,
        )  # fmt: skip
        started = time.perf_counter()
        for batch in read_ahead(
            cubes.read, split.train, _draw(cubes, split.train, config), start=begun,
            stop=begun if learner.progress.is_over(settings.patience) else total, batch_size=settings.batch_size,
        ):  # fmt: skip
            rate = set_rate(learner.optimizer, samples_seen, total, settings)
            learner.set_modes(frozen=samples_seen < settings.freeze_fraction * total)
            volumes, labels = _augmented(batch, settings, config.seed, place)
            with keyed_randomness(config.seed, samples_seen, place), runtime.autocast(place, settings.precision):
                output = compiled(volumes)
            losses = update(
                learner.optimizer, model, goal.loss(output, labels), {}, max_norm=settings.max_gradient_norm,
                where=f"step after {samples_seen} samples, cases {_names(batch, cubes, split.train)}",
            )  # fmt: skip
            samples_seen += settings.batch_size
            step = samples_seen // settings.batch_size
            learner.follow(step)
            finished = samples_seen >= total
            if step % settings.log_every == 0 or finished:
                speed = (samples_seen - begun) / (time.perf_counter() - started)
                log.write(samples_seen=samples_seen, learning_rate=rate, **losses)
                report(
                    "step", samples_seen=samples_seen, total=total, volumes_per_s=round(speed, 2),
                    remaining_s=round((total - samples_seen) / speed),
                    memory_gib=round(runtime.peak_memory_gib(place), 2), **losses,
                )  # fmt: skip
            if split.validation and (step % settings.evaluate_every == 0 or finished):
                found = goal.validate(_predictor(learner.judged, settings, place), cubes, split.validation)
                learner.judge(found, samples_seen)
                log.write(samples_seen=samples_seen, validation=found.scores)
                report("evaluated", samples_seen=samples_seen, **found.scores)
                finished = finished or learner.progress.is_over(settings.patience)
            # A stop saves, but logs nothing that a run without it would not.
            if step % settings.checkpoint_every == 0 or finished or stop.number is not None:
                saved = {**facts, **learner.course()}
                folder = checkpoint.save(run, samples_seen, learner.modules(), learner.optimizer, saved)
                report("checkpoint", samples_seen=samples_seen, folder=str(folder))
            stop.raise_if_set()
            if finished:
                break
        _write_report(run, report, is_news=samples_seen > begun)
        return FinetuneSummary(
            run, start.network, samples_seen, len(split.train), len(split.validation), len(split.test),
            num_quarantined, learner.validation,
            best=learner.progress.best[0] if learner.progress.best else None,
            best_samples_seen=learner.progress.best_samples_seen if learner.progress.best else None,
            stopped_early=samples_seen < total,
        )  # fmt: skip


@contextmanager
def _cubes(
    task: Task, start: Start, folder: Path, stop: StopRequest, report: Report
) -> Iterator[tuple[TaskData, int]]:  # fmt: skip
    """A task's data, brought up to date, and how many of its cases could not be used."""
    if start.note:
        report("warning", message=start.note)
    path, num_quarantined = prepare_task(task, start.recipe, folder, report=report, check=stop.raise_if_set)
    with Store(path) as store:
        yield open_task(task, store), num_quarantined


def _draw(cubes: TaskData, train: Sequence[int], config: Config) -> Draw:
    """What says which training volumes come when."""
    if cubes.kind == "classification" and config.finetune.class_balance == "sampling":
        return BalancedShuffle([cubes.targets[i] for i in train], seed=config.seed).draw
    return Shuffle(len(train), seed=config.seed).draw


def _augmented(
    batch: LabelledBatch, settings: FinetuneConfig, seed: int, device: torch.device
) -> tuple[Float[Tensor, "b 1 d h w"], Int64[Tensor, "b ..."]]:
    """The volumes and labels of a batch on the device, changed as the settings say."""
    volumes, labels = batch.volumes.to(device), batch.labels.to(device)
    mask = labels if labels.ndim > 1 else None
    key: dict[str, Any] = {"seed": seed, "epochs": batch.epochs, "names": batch.names}
    if settings.flip_axes:
        volumes, mask = flip(volumes, mask, settings.flip_axes, **key)
    if settings.affine_augmentation:
        volumes, mask = warp(volumes, mask, **key)
    if settings.intensity_augmentation:
        volumes = jitter_intensity(volumes, **key)
    return volumes, labels if mask is None else mask


def _predictor(network: nn.Module, settings: FinetuneConfig, device: torch.device) -> Predict:
    """A network's forward pass in evaluation."""
    network.eval()

    @torch.no_grad()
    def predict(volumes: Tensor) -> Any:
        with runtime.autocast(device, settings.precision):
            return network(volumes.to(device))

    return predict


def _write_report(run: Path, report: Report, *, is_news: bool) -> None:
    """Write the run's report; where nothing was learnt since, an evaluation may have put more into the one there."""
    if is_news or not (run / REPORT).exists():
        report("report", file=str(write_training_report(run)))


def _names(batch: LabelledBatch, cubes: TaskData, train: Sequence[int]) -> list[str]:
    return [cubes.records[train[name]].volume for name in batch.names]


def _require_begun_or_new(run: Path, resume: bool) -> None:
    if not resume and checkpoint.latest(run) is not None:
        message = f"{run} holds checkpoints of an earlier run"
        raise RefusedError("E_PATH", message, hint="continue it by --resume, or choose another --run")


def _require_same_sides(task: Task, settings: FinetuneConfig) -> None:
    """Refuse to mirror left and right where classes tell them apart."""
    names = set(task.classes.values())
    sided = sorted(name for name in names if "left" in name and name.replace("left", "right") in names)
    if "x" in settings.flip_axes and sided:
        message = f"finetune.flip_axes mirrors left and right, which {task.name} tells apart: {sided[0]!r}"
        raise RefusedError("E_CONFIG", message, hint="leave x out of finetune.flip_axes")


def _split(cubes: TaskData, task: Task, start: Start, config: Config, report: Report) -> TaskSplit:
    """Divide the volumes; before time goes into training, say whom of the test people the encoder has seen."""
    split = split_task(cubes, task, config.split, label_fraction=config.finetune.label_fraction)
    people = {tuple(owner) for owner in start.pretrained_people.values()}
    digests = set((start.pretrained_on or {}).values())
    records = [cubes.records[i] for i in split.test]
    seen = [one.volume for one in records if (one.dataset, one.subject) in people or one.source_digest in digests]
    if seen:
        told = f"the encoder was pretrained on people of {len(seen)} of {len(records)} test scans, such as {seen[0]}"
        hint = f"pretrain --leave-out {task.name}:{task.data} with the same split settings keeps them out"
        report("warning", message=f"{told}; {hint}")
    return split


def _facts(task: Task, cubes: TaskData, start: Start, config: Config, split: TaskSplit) -> dict[str, Any]:
    """What a checkpoint says about itself: how to rebuild the network, and who was trained on."""
    members = {share: getattr(split, share) for share in SHARES}
    return {
        "kind": "finetune",
        "task": task.name,
        "task_kind": task.kind,
        "loss": LOSSES[task.kind],
        "metrics": list(task.metrics),
        "data": str(task.data.resolve()),
        "class_column": config.finetune.class_column,
        "classes": {str(value): name for value, name in cubes.classes.items()},
        "class_values": list(cubes.class_values),
        "background_values": sorted(cubes.background),
        "ignored_values": sorted(cubes.ignored),
        "modality": task.modality,
        "network": start.network,
        "options": dict(start.options),
        "encoder": {"name": start.encoder, "options": dict(start.options)},
        "init": dict(start.origin),
        "recipe": start.recipe.to_dict(),
        "split": {share: [cubes.records[i].volume for i in volumes] for share, volumes in members.items()},
        "trained_on": {cubes.records[i].volume: cubes.records[i].source_digest for i in split.train},
        "validated_on": {cubes.records[i].volume: cubes.records[i].source_digest for i in split.validation},
        "tested_on": {cubes.records[i].volume: cubes.records[i].source_digest for i in split.test},
        "people": people_of(cubes.records[i] for i in (*split.train, *split.validation, *split.test)),
        "edges_mm": _edges_mm([cubes.records[i].chain(start.recipe) for i in split.train]),
        "pretrained_on": dict(start.pretrained_on or {}),
        "pretrained_people": {name: list(owner) for name, owner in start.pretrained_people.items()},
        "teachers_fitted_on": None if start.teachers_fitted_on is None else dict(start.teachers_fitted_on),
        "pretraining_known": start.pretrained_on is not None,
        "pretraining_store": start.pretraining_store,
        "config": config.to_dict(),
    }


def _edges_mm(chains: Sequence[CubeChain]) -> dict[str, float]:
    """Edges of the training cubes: the network's field, in which it knows its way about."""
    edges = [chain.edge_mm for chain in chains]
    return {"smallest": min(edges), "median": median(edges), "largest": max(edges)}
