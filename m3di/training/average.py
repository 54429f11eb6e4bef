"""A moving average of the weights in training (EMA), often better than the last ones."""

import copy
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

PARTS: Final = ("encoder", "psat")


class MovingAverage(nn.Module):
    """Parts of a model, averaged over the updates; to be saved, restored and evaluated like them.

    Args:
        model: What is trained: has the parts as submodules.
        decay: Share of the old average that an update keeps. Early in a run it is less, (1 + n) / (10 + n) after n
            updates, so that the first random weights are soon forgotten.
        parts: Names of the parts; by default those of pretraining, encoder and PSAT.
    """

    def __init__(self, model: nn.Module, *, decay: float, parts: Sequence[str] = PARTS) -> None:
        super().__init__()
        self.parts = tuple(parts)
        for name in self.parts:
            self.add_module(name, copy.deepcopy(model.get_submodule(name)).requires_grad_(False))
        self.decay = decay

    def begin(self, model: nn.Module) -> None:
        """Take the weights as they are: for a run that went without an average until now."""
        for name in self.parts:
            self.get_submodule(name).load_state_dict(model.get_submodule(name).state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module, *, num_updates: int) -> None:
        """Move towards the weights after the `num_updates`-th update; running statistics are taken as they are."""
        kept = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for averaged, current in ((self.get_submodule(name), model.get_submodule(name)) for name in self.parts):
            torch._foreach_lerp_(list(averaged.parameters()), list(current.parameters()), 1 - kept)
            for old, new in zip(averaged.buffers(), current.buffers(), strict=True):
                old.copy_(new)
