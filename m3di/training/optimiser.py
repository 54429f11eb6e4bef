"""The update: AdamW, its rate from the clock, and the refusal to step on what is not finite."""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from m3di.config import FinetuneConfig, PretrainConfig
from m3di.training.schedules import rate_scale
from stores.errors import DivergedError


def adamw(modules: Iterable[tuple[nn.Module, float]], *, weight_decay: float) -> AdamW:
    """AdamW over some modules, each with its base learning rate.

    Vectors (biases, norms, temperatures) and position embeddings are not decayed.
    """
    groups = []
    for module, rate in modules:
        named = list(module.named_parameters())
        kept = {name for name, parameter in named if parameter.ndim <= 1 or "position" in name}
        for decay, chosen in ((weight_decay, False), (0.0, True)):
            parameters = [parameter for name, parameter in named if (name in kept) == chosen]
            groups.append({"params": parameters, "weight_decay": decay, "base_rate": rate, "lr": rate})
    return AdamW(groups, fused=True)


def load_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Continue with the state of a checkpoint, at the rates and decays that are set now.

    Names in it become the very strings that new state gets: a pickle tells equal strings from the same one, and
    weights that are let go after a resume would else be saved in other bytes than without it.
    """
    kept = [{name: group[name] for name in ("base_rate", "weight_decay")} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, kept, strict=True):
        group.update(settings)
    for parameter, values in optimizer.state.items():
        optimizer.state[parameter] = {sys.intern(name): value for name, value in values.items()}


def set_rate(optimizer: Optimizer, samples_seen: int, total: int, settings: PretrainConfig | FinetuneConfig) -> float:
    """Set every group's rate for the step that starts at `samples_seen`; returns the first group's."""
    scale = rate_scale(samples_seen, total, schedule=settings.schedule, warmup_fraction=settings.warmup_fraction)
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * scale
    return float(optimizer.param_groups[0]["lr"])


def update(
    optimizer: Optimizer, module: nn.Module, loss: Tensor, parts: Mapping[str, Tensor], *, max_norm: float, where: str
) -> dict[str, float]:
    """Backward pass and one step; returns the loss, its parts and the gradient norm.

    Raises:
        DivergedError: E_DIVERGED, before the step, when one of them is not finite.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return apply_gradients(optimizer, module, {"loss": loss, **parts}, max_norm=max_norm, where=where)


def apply_gradients(
    optimizer: Optimizer, module: nn.Module, losses: Mapping[str, Tensor], *, max_norm: float, where: str
) -> dict[str, float]:
    """One step by the gradients that are there; returns the losses and the gradient norm.

    Raises:
        DivergedError: E_DIVERGED, before the step, when one of them is not finite.
    """
    norm = nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    values = {name: part.item() for name, part in {**losses, "gradient_norm": norm}.items()}
    if not all(math.isfinite(value) for value in values.values()):
        hint = "resume from the last checkpoint with a lower learning_rate"
        raise DivergedError("E_DIVERGED", f"{where}: {values}", hint=hint)
    optimizer.step()
    return values
