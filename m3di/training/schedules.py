"""Learning rate as a pure function of the one clock, `samples_seen`."""

import math
from typing import Literal


def rate_scale(
    samples_seen: int, total_samples: int, *, schedule: Literal["constant", "cosine"], warmup_fraction: float
) -> float:
    """Factor of the base learning rate for the step that starts at `samples_seen`.

    Linear warm-up over the first `warmup_fraction`, then constant, or half a cosine down to zero.
    """
    warmup = warmup_fraction * total_samples
    if samples_seen < warmup:
        return (samples_seen + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (samples_seen - warmup) / max(total_samples - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
