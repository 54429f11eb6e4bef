"""What fine-tuning works towards, by kind of task: the loss of a batch, and the scores of validation.

Validation is on the cubes, quick, and only there to choose weights; test scores are `m3di.evaluation`'s affair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from m3di.evaluation.classification import score_classes
from m3di.tasks.data import TaskData
from m3di.training.losses import balancing_weights, class_cross_entropy, deeply_supervised
from m3di.types import Float, Int64, Tensor

Predict = Callable[[Tensor], Any]  # a network's forward pass on its device


@dataclass(frozen=True)
class Validation:
    """Scores of the validation share.

    Attributes:
        scores: By name, as they are logged.
        rank: What decides which weights are best, the most important first; higher is better.
    """

    scores: dict[str, float]
    rank: tuple[float, ...]


@runtime_checkable
class Goal(Protocol):
    """A kind of task, as training sees it."""

    def loss(self, output: Any, labels: Tensor) -> Float[Tensor, ""]:
        """The loss of what the network gave for a batch."""
        ...

    def validate(self, predict: Predict, cubes: TaskData, volumes: Sequence[int]) -> Validation:
        """Score a network on some volumes."""
        ...


@dataclass(frozen=True)
class SegmentationGoal:
    """Dice and cross-entropy; judged by the mean Dice over cases and structures.

    Attributes:
        auxiliary_weights: Of the network's coarser maps.
    """

    auxiliary_weights: tuple[float, ...] = ()

    def loss(self, output: Any, labels: Tensor) -> Float[Tensor, ""]:
        """Dice and cross-entropy averaged, those of coarser maps added."""
        return deeply_supervised(output, labels, self.auxiliary_weights)

    def validate(self, predict: Predict, cubes: TaskData, volumes: Sequence[int]) -> Validation:
        """Mean Dice over cases and structures."""
        scores: list[float] = []
        for volume in volumes:
            image, label = cubes.read([volume])
            logits = predict(image).logits
            scores += cube_dice(logits.argmax(dim=1), label.to(logits.device), num_classes=logits.shape[1])
        known = [score for score in scores if not np.isnan(score)]
        dice = float(np.mean(known)) if known else float("nan")
        return Validation({"dice": dice}, (dice,))


@dataclass(frozen=True)
class ClassificationGoal:
    """Cross-entropy; judged by balanced accuracy, and by cross-entropy where that is equal.

    Attributes:
        weights: Of each class in the loss.
    """

    weights: "Float[Tensor, ' c']"

    def loss(self, output: Any, labels: Tensor) -> Float[Tensor, ""]:
        """Weighted cross-entropy."""
        return class_cross_entropy(output, labels, self.weights.to(output.device))

    def validate(self, predict: Predict, cubes: TaskData, volumes: Sequence[int]) -> Validation:
        """Balanced accuracy, AUC and (unweighted) cross-entropy."""
        rows = []
        for volume in volumes:
            rows.append(predict(cubes.read([volume])[0]).float().log_softmax(dim=1).cpu())
        log_probability = torch.cat(rows)
        targets = torch.tensor([cubes.targets[volume] for volume in volumes])
        cross_entropy = -float(log_probability.gather(1, targets[:, None]).mean())
        found = score_classes(log_probability.double().exp().numpy(), targets.numpy())
        scores = {"balanced_accuracy": found.balanced_accuracy, "auc": found.auc, "cross_entropy": cross_entropy}
        return Validation(scores, (found.balanced_accuracy, -cross_entropy))


def goal_of(cubes: TaskData, train: Sequence[int], model: torch.nn.Module, *, class_balance: str) -> Goal:
    """The goal of a task's kind, for a network and the volumes that train it."""
    if cubes.kind == "segmentation":
        return SegmentationGoal(tuple(getattr(model, "auxiliary_weights", ())))
    num_classes = len(cubes.classes)
    if class_balance != "loss":
        return ClassificationGoal(torch.ones(num_classes))
    return ClassificationGoal(balancing_weights([cubes.targets[i] for i in train], num_classes))


def cube_dice(
    prediction: Int64[Tensor, "1 d h w"], label: Int64[Tensor, "1 d h w"], *, num_classes: int
) -> list[float]:
    """Dice of each foreground class, NaN where neither map has it; voxels of unknown class are left out."""
    known = label >= 0
    pairs = torch.bincount(label[known] * num_classes + prediction[known], minlength=num_classes**2)
    counts = pairs.view(num_classes, num_classes).double().cpu()
    total = counts.sum(0) + counts.sum(1)
    return torch.where(total > 0, 2 * counts.diagonal() / total, torch.nan)[1:].tolist()
