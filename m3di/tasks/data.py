"""A task's cubes and label cubes: built once by the store's own code, keyed by digest, shared by runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from m3di.build import commit_volumes
from m3di.events import Report
from m3di.tasks.registry import SegmentationTask
from m3di.types import Float, Int64, Tensor
from stores import Store
from stores.errors import DamagedError, RefusedError
from stores.recipe import Recipe, digest_of
from stores.records import VolumeRecord


@dataclass(frozen=True)
class TaskData:
    """Reads a task's volumes and labels from its store.

    Attributes:
        store: The open store.
        records: Volumes in the order of the task's cases, quarantined ones left out.
        class_values: Label value of each class index, background first.
    """

    store: Store
    records: tuple[VolumeRecord, ...]
    class_values: tuple[int, ...]

    def read(self, volumes: Sequence[int]) -> tuple[Float[Tensor, "b 1 d h w"], Int64[Tensor, "b d h w"]]:
        """Read cubes and their class indices, every checksum verified.

        Raises:
            DamagedError: Naming a damaged or missing item.
            RefusedError: E_LABEL_VALUES, when a label map holds a value that the task does not name.
        """
        images = [self.store.volumes.read("image", self.records[i].slot) for i in volumes]
        labels = [self._classes(self.records[i]) for i in volumes]
        return torch.from_numpy(np.stack(images)).float()[:, None], torch.from_numpy(np.stack(labels))

    def _classes(self, record: VolumeRecord) -> np.ndarray:
        label = self.store.volumes.read("label", record.slot)
        table = np.full(256, -1, np.int64)
        table[list(self.class_values)] = np.arange(len(self.class_values))
        classes = table[label]
        if classes.min() < 0:
            value = int(label[classes < 0][0])
            message = f"the label map of {record.volume} has the value {value}, which the task does not name"
            raise RefusedError("E_LABEL_VALUES", message, hint="name it in dataset.json, or correct the label map")
        return classes


def prepare_task(task: SegmentationTask, recipe: Recipe, folder: Path, *, report: Report) -> Path:
    """Build, or bring up to date, the store of a task's labelled cubes; returns its path.

    Args:
        task: The task.
        recipe: How its scans become cubes; labels are added, slice images left out.
        folder: Where such stores are kept.
        report: Receives the events.
    """
    labelled = replace(recipe, labels=True, slice_size=0)
    key = digest_of({"task": task.name, "data": str(task.data.resolve()), "recipe": labelled.digest})
    path = folder / f"{task.name}-{key[:12]}"
    with Store.create_or_open(path, labelled) as store:
        commit_volumes(store, task.cases, workers=None, strict=False, report=report, check=lambda: None)
        store.write_quarantine_table()
    return path


def open_task(task: SegmentationTask, store: Store) -> TaskData:
    """View the store that `prepare_task` built."""
    records = [store.find(case.id) for case in task.cases]
    built = tuple(record for record in records if record is not None)
    if not built:
        raise DamagedError("E_MISSING", f"{store.path} holds no case of {task.name}", hint="see its quarantine.tsv")
    return TaskData(store, built, tuple(sorted({0, *task.classes})))
