"""What pretraining minimises: one file an objective, and `objective.py` that puts them together."""

from m3di.training.objectives.dense import DenseSpec
from m3di.training.objectives.objective import LocalObjective, PooledObjective
from m3di.training.objectives.teachers import TeachersObjective

__all__ = ["DenseSpec", "LocalObjective", "PooledObjective", "TeachersObjective"]
