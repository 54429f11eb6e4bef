"""A task's cubes and their labels: built once by the store's own code, keyed by digest, shared by runs and tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from m3di.build import commit_volumes
from m3di.config import SplitConfig
from m3di.events import Check, Report, go_on
from m3di.tasks.split import SHARES, Owner, Share, complete, fold_of, nested_part, share_of, split_subjects
from m3di.tasks.task import Kind, Task
from m3di.types import Float, Int64, Tensor
from m3di.volumes.cases import Case
from m3di.volumes.prepare import identify
from stores import Store
from stores.errors import CaseError, DamagedError, RefusedError
from stores.recipe import Recipe, digest_of
from stores.records import VolumeRecord

WAIT_S: Final = 24 * 3600.0  # for another run that builds the same cubes
IGNORED: Final = -1  # class index of voxels that are neither trained on nor scored


@dataclass(frozen=True)
class TaskData:
    """Reads a task's volumes and what is known of them from its store.

    Attributes:
        store: The open store.
        records: Volumes in the order of the task's cases, quarantined ones left out.
        kind: What is predicted.
        classes: Class name by class value, in the order of class indices; of segmentation background first.
        background: Label values that count as background.
        ignored: Label values that become `IGNORED`.
        targets: Class index of each record, for classification; else empty.
    """

    store: Store
    records: tuple[VolumeRecord, ...]
    kind: Kind
    classes: Mapping[int, str]
    background: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()
    targets: tuple[int, ...] = ()

    @property
    def class_values(self) -> tuple[int, ...]:
        """Value of each class index."""
        return tuple(self.classes)

    def read(self, volumes: Sequence[int]) -> tuple[Float[Tensor, "b 1 d h w"], Int64[Tensor, "b ..."]]:
        """Read cubes, and the class index of each voxel or of each volume, every checksum verified.

        Raises:
            DamagedError: Naming a damaged or missing item.
            RefusedError: E_LABEL_VALUES, when a label map holds a value that the task does not name.
        """
        images = [self.store.volumes.read("image", self.records[i].slot) for i in volumes]
        cubes = torch.from_numpy(np.stack(images)).float()[:, None]
        if self.kind == "classification":
            return cubes, torch.tensor([self.targets[i] for i in volumes])
        return cubes, torch.from_numpy(np.stack([self._classes(self.records[i]) for i in volumes]))

    def _classes(self, record: VolumeRecord) -> np.ndarray:
        label = self.store.volumes.read("label", record.slot)
        unknown = IGNORED - 1
        table = np.full(256, unknown, np.int64)
        table[list(self.background)] = 0
        table[list(self.ignored)] = IGNORED
        table[list(self.classes)] = np.arange(len(self.classes))
        classes = table[label]
        if classes.min() == unknown:
            value = int(label[classes == unknown][0])
            message = f"the label map of {record.volume} has the value {value}, which the task does not name"
            raise RefusedError("E_LABEL_VALUES", message, hint="name it in dataset.json, or correct the label map")
        return classes


@dataclass(frozen=True)
class TaskSplit:
    """Positions in `TaskData.records` of each share; `train` is what remains of it after the label fraction."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def prepare_task(
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None = None,
    report: Report,
    check: Check = go_on,
) -> tuple[Path, int]:
    """Build, or bring up to date, the store of a task's cubes; returns its path and how many cases were refused.

    Another run that is building it is waited for.

    Args:
        task: The task.
        recipe: How its scans become cubes; label maps are added where the task has them, slice images left out.
        folder: Where such stores are kept.
        workers: Processes that read and resample, by default one a core; 0 does it in this process.
        report: Receives the events.
        check: Called between two cases; raises to stop.
    """
    mine = replace(recipe, labels=task.kind == "segmentation", slice_size=0)
    key = digest_of({"layout": task.layout, "data": str(task.data.resolve()), "recipe": mine.digest})
    path = folder / f"{task.layout}-{key[:12]}"
    with Store.create_or_open(path, mine, wait_s=WAIT_S) as store:
        stale = [case for case in task.cases if not _is_up_to_date(case, store, report)]
        done = commit_volumes(store, stale, workers=workers, strict=False, report=report, check=check)
        store.write_quarantine_table()
    return path, done.refused


def _is_up_to_date(case: Case, store: Store, report: Report) -> bool:
    """Whether a case's cube is built; found out here, so that runs on cubes that are start no worker processes."""
    record = store.find(case.id)
    try:
        built = record is not None and record.item_digest == identify(case, store.recipe)[2]
    except CaseError:
        return False  # said by the worker that reads it
    if built:
        report("up to date", volume=case.id, stage="volumes")
    return built


def open_task(task: Task, store: Store) -> TaskData:
    """View the store that `prepare_task` built.

    Raises:
        DamagedError: E_MISSING, when no case of the task is in it.
        RefusedError: E_LABEL_VALUES, when the label maps hold nothing but background.
    """
    records = [store.find(case.id) for case in task.cases]
    built = tuple(record for record in records if record is not None)
    if not built:
        raise DamagedError("E_MISSING", f"{store.path} holds no case of {task.name}", hint="see its quarantine.tsv")
    if task.kind == "classification":
        targets = tuple(task.targets[record.volume] for record in built)
        return TaskData(store, built, task.kind, task.classes, targets=targets)
    classes = task.classes or _found_classes(store, built)
    return TaskData(store, built, task.kind, classes, task.background, task.ignored)


def split_task(cubes: TaskData, task: Task, split: SplitConfig, *, label_fraction: float = 1.0) -> TaskSplit:
    """Divide the volumes by subject, as the settings say: by folds, by the set's own split, or by ratios.

    `label_fraction` keeps the first part of the training subjects in an order of their own, so smaller fractions are
    subsets; of classification every class keeps about its share.

    Raises:
        RefusedError: E_SPLIT, when there are too few subjects, or training lacks a class.
    """
    owners = [(record.dataset, record.subject) for record in cubes.records]
    shares = shares_of(owners, task, split)
    positions = {share: [i for i, one in enumerate(shares) if one == share] for share in SHARES}
    classes = cubes.targets or (0,) * len(owners)
    of_subject = {owners[i][1]: classes[i] for i in positions["train"]}
    kept = nested_part(of_subject, fraction=label_fraction, seed=split.seed)
    train = tuple(i for i in positions["train"] if owners[i][1] in kept)
    found = TaskSplit(train, tuple(positions["validation"]), tuple(positions["test"]))
    if cubes.kind == "classification":
        _require_classes(cubes, found)
    return found


def shares_of(owners: Sequence[Owner], task: Task, split: SplitConfig) -> list[Share]:
    """The share of every (dataset, subject) of a task, in the order given.

    Raises:
        RefusedError: As `fold_of` and `split_subjects`.
    """
    if split.folds:
        return fold_of(owners, folds=split.folds, fold=split.fold, ratios=split.ratios, seed=split.seed)
    if split.own and task.own_split:
        own = {owner: task.own_split[owner] for owner in owners}
        shares = complete(own, ratios=split.ratios, seed=split.seed)
        return [shares[owner] for owner in owners]
    if len({dataset for dataset, _ in owners}) > 1:
        return share_of(owners, ratios=split.ratios, seed=split.seed)
    by_subject = split_subjects([subject for _, subject in owners], ratios=split.ratios, seed=split.seed)
    return [by_subject[subject] for _, subject in owners]


def _require_classes(cubes: TaskData, split: TaskSplit) -> None:
    """Refuse training volumes that lack a class which validation or test holds, or that have but one."""
    names = list(cubes.classes.values())
    trained = {cubes.targets[i] for i in split.train}
    for share in ("validation", "test"):
        missing = sorted({cubes.targets[i] for i in getattr(split, share)} - trained)
        if missing:
            message = f"class {names[missing[0]]!r} is in the {share} share, and no training subject has it"
            hint = "raise the label fraction, choose another split.seed, or add subjects"
            raise RefusedError("E_SPLIT", message, hint=hint)
    if len(trained) < 2:
        message = f"all {len(split.train)} training volumes are of class {names[trained.pop()]!r}"
        raise RefusedError("E_SPLIT", message, hint="raise the label fraction, or choose another split.seed")


def _found_classes(store: Store, records: Sequence[VolumeRecord]) -> dict[int, str]:
    """The values that label maps without names hold."""
    values: set[int] = set()
    for record in records:
        values |= set(np.unique(store.volumes.read("label", record.slot)).tolist())
    values -= {0}
    if not values:
        raise RefusedError("E_LABEL_VALUES", "every label map holds background only", hint="check the label maps")
    return {0: "background", **{value: f"label {value}" for value in sorted(values)}}
