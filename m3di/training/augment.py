"""Augmentation of cubes on their device, keyed by (seed, epoch, volume): no global random state, exact on resume.

A flip would change which cached slice is shown, so pretraining changes intensities only. In fine-tuning image and
label map go the same way: flips exactly, a small affine map by one interpolation.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from m3di.training.sampler import Indices, keyed_uniform
from m3di.types import Float, Int64, Tensor

AXES: Final = {"x": 0, "y": 1, "z": 2}  # of the cube: to the patient's right, anterior, superior
MAX_DEGREES: Final = 10.0
MAX_SCALING: Final = 0.1
MAX_SHIFT: Final = 0.05  # of the cube's edge
# Keys of the random numbers, apart from the lanes of the sampler's slices.
LANES = np.array([[101, 102, 103]])  # gamma, contrast, brightness
FLIP_LANES = np.array([[111, 112, 113]])  # one an axis
AFFINE_LANES = np.array([[121, 122, 123, 124, 125, 126, 127]])  # three angles, a scale, three shifts


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


def flip(
    volumes: Float[Tensor, "b 1 d h w"],
    labels: Int64[Tensor, "b d h w"] | None,
    axes: Sequence[str],
    *,
    seed: int,
    epochs: Indices,
    names: Indices,
) -> tuple[Float[Tensor, "b 1 d h w"], Int64[Tensor, "b d h w"] | None]:
    """Mirror each cube, with its label map, along each of some axes with a chance of a half.

    Args:
        volumes: Cubes.
        labels: Their label maps; None without.
        axes: Of `AXES`.
        seed: Seed of the run.
        epochs: (b,) epoch of each volume.
        names: (b,) position of each volume in its index.
    """
    drawn = keyed_uniform(seed, epochs[:, None], names[:, None], FLIP_LANES) < 0.5
    for axis in sorted({AXES[name] for name in axes}):
        turned = torch.from_numpy(drawn[:, axis]).to(volumes.device)
        volumes = torch.where(turned.view(-1, 1, 1, 1, 1), volumes.flip(axis + 2), volumes)
        if labels is not None:
            labels = torch.where(turned.view(-1, 1, 1, 1), labels.flip(axis + 1), labels)
    return volumes, labels


def warp(
    volumes: Float[Tensor, "b 1 d h w"],
    labels: Int64[Tensor, "b d h w"] | None,
    *,
    seed: int,
    epochs: Indices,
    names: Indices,
) -> tuple[Float[Tensor, "b 1 d h w"], Int64[Tensor, "b d h w"] | None]:
    """Turn each cube up to 10 degrees about each axis, scale it by up to a tenth, and shift it by up to a twentieth.

    What comes from outside is 0 and background, as padding is. Labels take the nearest voxel's class.

    Args:
        volumes: Cubes.
        labels: Their label maps; None without.
        seed: Seed of the run.
        epochs: (b,) epoch of each volume.
        names: (b,) position of each volume in its index.
    """
    uniform = 2 * keyed_uniform(seed, epochs[:, None], names[:, None], AFFINE_LANES) - 1
    theta = torch.from_numpy(affine_maps(uniform)).to(volumes)
    grid = F.affine_grid(theta, list(volumes.shape), align_corners=False)
    moved = F.grid_sample(volumes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if labels is None:
        return moved, None
    with_labels = labels[:, None].to(volumes.dtype)
    nearest = F.grid_sample(with_labels, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, nearest[:, 0].round().long()


def affine_maps(uniform: np.ndarray) -> np.ndarray:
    """Maps from the places of a warped cube to those of the cube, for `affine_grid`.

    Args:
        uniform: (b, 7) numbers from -1 to 1: three angles, a scale, three shifts.

    Returns:
        (b, 3, 4), in coordinates from -1 to 1, last axis of the cube first.
    """
    turn = np.eye(3)
    for axis in range(3):
        angles = np.deg2rad(MAX_DEGREES * uniform[:, axis])
        one = np.zeros((len(uniform), 3, 3))
        first, second = (axis + 1) % 3, (axis + 2) % 3
        one[:, axis, axis] = 1
        one[:, first, first] = one[:, second, second] = np.cos(angles)
        one[:, first, second], one[:, second, first] = -np.sin(angles), np.sin(angles)
        turn = turn @ one
    scaled = turn * (1 + MAX_SCALING) ** uniform[:, 3, None, None]
    shift = 2 * MAX_SHIFT * uniform[:, 4:, None]
    return np.concatenate([scaled[:, ::-1, ::-1], shift[:, ::-1]], axis=2)
