"""Intensity augmentation of cubes, keyed by (seed, epoch, volume): no global random state, exact on resume.

A flip would change which cached slice is shown, so pretraining changes intensities only.
"""

import numpy as np
import torch

from m3di.training.sampler import Indices, keyed_uniform
from m3di.types import Float, Tensor

LANES = np.array([[101, 102, 103]])  # gamma, contrast, brightness; apart from the lanes of the sampler's slices


def jitter_intensity(
    volumes: Float[Tensor, "b 1 d h w"], *, seed: int, epochs: Indices, names: Indices
) -> Float[Tensor, "b 1 d h w"]:
    """Change gamma (0.7 to 1.4), contrast (0.85 to 1.15) and brightness (-0.1 to 0.1) of each cube in [0, 1].

    Padding and background stay 0: what is exactly 0 is not brightened.

    Args:
        volumes: Cubes in [0, 1].
        seed: Seed of the run.
        epochs: (b,) epoch of each volume.
        names: (b,) position of each volume in its index.
    """
    lanes = torch.from_numpy(keyed_uniform(seed, epochs[:, None], names[:, None], LANES))
    gamma, contrast, brightness = (
        lane.to(volumes).view(-1, 1, 1, 1, 1) for lane in (lanes[:, 0], lanes[:, 1], lanes[:, 2])
    )
    changed = volumes.pow(0.7 * 2.0**gamma) * (0.85 + 0.3 * contrast) + 0.2 * (brightness - 0.5)
    return torch.where(volumes > 0, changed.clamp(0, 1), volumes)
