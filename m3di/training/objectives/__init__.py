"""What pretraining minimises: one file an objective, and `objective.py` that puts them together."""

from m3di.training.objectives.dense import DenseSpec
from m3di.training.objectives.objective import LocalObjective, PooledObjective

__all__ = ["DenseSpec", "LocalObjective", "PooledObjective"]
