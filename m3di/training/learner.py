"""The state of a fine-tuning run between two steps, which checkpoints save and restore."""

import copy
from pathlib import Path
from typing import Any

from torch import nn

from m3di.config import FinetuneConfig
from m3di.tasks.task import Task
from m3di.training import checkpoint
from m3di.training.average import MovingAverage
from m3di.training.goals import Validation
from m3di.training.optimiser import adamw, load_state
from m3di.training.progress import Progress
from stores.errors import RefusedError


class Learner:
    """Holds what a run's checkpoints hold: the network in training, its average, its best weights, the optimiser.

    Args:
        model: The network, on its device.
        settings: Rates, average and what is kept.
        keeps_best: Whether the weights that did best in validation are kept.

    Attributes:
        optimizer: The optimiser.
        progress: The course of validation.
        validation: Scores of the last evaluation; None before the first.
    """

    def __init__(self, model: nn.Module, settings: FinetuneConfig, *, keeps_best: bool) -> None:
        self._model = model
        self._held = nn.ModuleDict({"network": model})
        self._average = (
            MovingAverage(self._held, decay=settings.ema_decay, parts=("network",)) if settings.ema_decay else None
        )
        self._best = copy.deepcopy(model).requires_grad_(False) if keeps_best else None
        self._encoder = getattr(model, "encoder", None)
        self._trainable = [] if self._encoder is None else [p for p in self._encoder.parameters() if p.requires_grad]
        self.optimizer = adamw(self._rates(settings), weight_decay=settings.weight_decay)
        self.progress = Progress()
        self.validation: dict[str, float] | None = None

    @property
    def judged(self) -> nn.Module:
        """What validation judges and others shall use: the average where there is one."""
        return self._model if self._average is None else self._average.get_submodule("network")

    def set_modes(self, *, frozen: bool) -> None:
        """Put the network into training; a frozen encoder into evaluation, its weights without gradients."""
        for parameter in self._trainable:
            parameter.requires_grad_(not frozen)
        self._model.train()
        if frozen and self._encoder is not None:
            self._encoder.eval()

    def follow(self, step: int) -> None:
        """Take an update into the average."""
        if self._average is not None:
            self._average.update(self._held, num_updates=step)

    def judge(self, found: Validation, samples_seen: int) -> None:
        """Take an evaluation into account: keep what was judged if it is the best."""
        self.validation = found.scores
        self.progress = self.progress.after(found.rank, samples_seen)
        if self._best is not None and self.progress.is_best_at(samples_seen):
            self._best.load_state_dict(self.judged.state_dict())

    def course(self) -> dict[str, Any]:
        """What a checkpoint's facts say of validation so far."""
        return {"progress": self.progress.to_dict(), "validation": self.validation}

    def modules(self) -> dict[str, nn.Module]:
        """The modules of a checkpoint by name."""
        found = {"network": self._model}
        if self._average is not None:
            found["ema"] = self._average.get_submodule("network")
        if self._best is not None and self.progress.best:
            found["best"] = self._best
        return found

    def restore(self, run: Path, task: Task) -> int:
        """Continue from the newest checkpoint; returns its clock, 0 when there is none.

        Raises:
            RefusedError: E_CONFIG, when it was trained for another task or with other settings.
        """
        if checkpoint.latest(run) is None:
            return 0
        found = checkpoint.load(run, kind="finetune")
        if found.facts["task"] != task.name:
            message = f"{run} was trained for task {found.facts['task']!r}, not {task.name!r}"
            raise RefusedError("E_CONFIG", message, hint="choose another --run")
        self.progress = Progress.from_dict(found.facts["progress"]) if "progress" in found.facts else Progress()
        self.validation = found.facts.get("validation")
        try:
            for name, module in self.modules().items():
                module.load_state_dict(found.weights(name if found.has(name) else "network"))
            load_state(self.optimizer, found.optimizer_state())
        except (RuntimeError, ValueError) as error:
            message = f"{found.folder} was trained with other settings: {str(error).splitlines()[-1].strip()}"
            raise RefusedError("E_CONFIG", message, hint=f"its settings are in {run / 'config.json'}") from error
        return found.samples_seen

    def _rates(self, settings: FinetuneConfig) -> list[tuple[nn.Module, float]]:
        """Modules with their base learning rates: the encoder may have its own."""
        own = settings.encoder_learning_rate or settings.encoder_rate_factor * settings.learning_rate
        children = [module for module in self._model.children() if module is not self._encoder]
        encoder = [] if self._encoder is None else [(self._encoder, own)]
        return [*encoder, *((module, settings.learning_rate) for module in children)]
