"""One brain made into another: a known smooth deformation, then contrast, bias field and noise of a scanner."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from stores.geometry import Geometry

Array = npt.NDArray[Any]
Triple = tuple[float, float, float]

_TISSUES = np.array([3, 1, 2], dtype=np.uint8)  # labels of CSF, grey and white matter, in the template's order


@dataclass(frozen=True, eq=False)
class Template:
    """A skull-stripped brain with its tissues, along RAS axes in voxels of 1 mm.

    Attributes:
        channels: T1 and the shares of CSF, grey and white matter, all 0 to 1, float32 [4, x, y, z].
        geometry: Its grid.
    """

    channels: Array
    geometry: Geometry

    @cached_property
    def brain(self) -> Array:
        """Share of brain in each voxel, 0 to 1, [x, y, z]."""
        return self.channels[1:].sum(axis=0)

    @cached_property
    def centre_mm(self) -> Array:
        """Centre of the field of view, RAS mm."""
        middle = (np.array(self.geometry.shape) - 1) / 2
        return self.geometry.affine[:3, :3] @ middle + self.geometry.affine[:3, 3]

    def smoothed(self, spacing_mm: float) -> "Template":
        """Return the template with the resolution of voxels of `spacing_mm`, at least 1 mm."""
        # FWHM of the blur between the two voxel sizes, as a standard deviation.
        sigma = math.sqrt(spacing_mm**2 - 1) / 2.355
        return Template(gaussian_filter(self.channels, (0, sigma, sigma, sigma), truncate=3), self.geometry)

    def grid(self, spacing_mm: float) -> Geometry:
        """Return the RAS grid of isotropic voxels that covers the template around the same centre."""
        x, y, z = (math.ceil(size / spacing_mm) for size in self.geometry.shape)
        affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
        affine[:3, 3] = self.centre_mm - (np.array([x, y, z]) - 1) / 2 * spacing_mm
        return Geometry((x, y, z), affine)


@dataclass(frozen=True, eq=False)
class Variation:
    """How one case differs from the template.

    Attributes:
        rotation_deg: Euler angles about x, y, z.
        scale: Template mm per mm of the case, along x, y, z.
        shift_mm: Translation along x, y, z.
        displacement_mm: Coefficients of a cubic B-spline displacement, [3, a, b, c].
        bias: Coefficients of a cubic B-spline, the logarithm of the bias field, [a, b, c].
        gamma: Exponent of the contrast change.
        peak: Scanner units of the template's brightest voxel.
        noise: Standard deviation of the noise as a share of `peak`.
    """

    rotation_deg: Triple
    scale: Triple
    shift_mm: Triple
    displacement_mm: Array
    bias: Array
    gamma: float
    peak: float
    noise: float

    def to_dict(self) -> dict[str, Any]:
        """Return the facts that fit on a line each as JSON-ready values; the splines follow from the seed."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, np.ndarray)}


def draw(rng: np.random.Generator) -> Variation:
    """Draw a case; the ranges keep the brain inside the field of view and the deformation free of folds."""
    return Variation(
        rotation_deg=_triple(rng.uniform(-8, 8, 3)),
        scale=_triple(rng.uniform(0.93, 1.07, 3)),
        shift_mm=_triple(rng.uniform(-4, 4, 3)),
        # Nodes lie 45 mm apart, and the spline of such coefficients deviates by a third of them: 3 mm.
        displacement_mm=rng.normal(0, 9, (3, 7, 8, 7)),
        bias=rng.normal(0, 0.35, (5, 5, 5)),
        gamma=float(rng.uniform(0.9, 1.8)),
        peak=float(np.exp(rng.uniform(np.log(200), np.log(4000)))),
        noise=float(rng.uniform(0.01, 0.035)),
    )


def render(template: Template, variation: Variation, grid: Geometry, rng: np.random.Generator) -> tuple[Array, Array]:
    """Scan the varied template on `grid`.

    Args:
        template: Smoothed for the grid's spacing.
        variation: The case.
        grid: Where the voxels are.
        rng: Source of the noise.

    Returns:
        Image, int16 [x, y, z] in scanner units, 0 outside the brain; labels, uint8 [x, y, z]: 1 grey matter,
        2 white matter, 3 CSF, moved by the same field.
    """
    points = sampling_points(template, variation, grid)
    inside = map_coordinates(template.brain, points, order=1) > 0.5
    t1, *tissues = (map_coordinates(channel, points[:, inside], order=1) for channel in template.channels)
    # Divided by the share of brain, a voxel at the rim has its tissue's intensity, not half of the empty outside's.
    signal = np.clip(t1 / sum(tissues), 0, 1)
    bias = np.exp(evaluate_spline(variation.bias, grid.shape)[inside])
    image, labels = np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.uint8)
    image[inside] = _acquire(signal, bias, variation, rng)
    labels[inside] = _TISSUES[np.argmax(tissues, axis=0)]
    return image, labels


def _acquire(signal: Array, bias: Array, variation: Variation, rng: np.random.Generator) -> Array:
    """Turn a clean signal, 0 to 1, into scanner units: contrast, bias field, Rician noise."""
    real, imaginary = rng.normal(0, variation.noise, (2, signal.size))
    return np.rint(np.hypot(signal**variation.gamma * bias + real, imaginary) * variation.peak)


def sampling_points(template: Template, variation: Variation, grid: Geometry) -> Array:
    """Return where in the template each voxel of the case comes from, in template voxels, [3, x, y, z]."""
    offsets = [(np.arange(n) - (n - 1) / 2) * spacing for n, spacing in zip(grid.shape, grid.spacing_mm, strict=True)]
    from_centre = np.stack(np.meshgrid(*offsets, indexing="ij"))
    rotation = Rotation.from_euler("xyz", variation.rotation_deg, degrees=True).as_matrix()
    moved = np.tensordot(rotation @ np.diag(variation.scale), from_centre, axes=1)
    origin = template.centre_mm + variation.shift_mm - template.geometry.affine[:3, 3]
    return moved + evaluate_spline(variation.displacement_mm, grid.shape) + origin[:, None, None, None]


def evaluate_spline(coefficients: Array, shape: tuple[int, ...]) -> Array:
    """Evaluate a uniform cubic B-spline, coefficients [..., a, b, c], on `shape` points that span it."""
    bases = [_basis(n, m) for n, m in zip(shape, coefficients.shape[-3:], strict=True)]
    return np.einsum("...abc,xa,yb,zc->...xyz", coefficients, *bases, optimize=True)


def _basis(num_points: int, num_coefficients: int) -> Array:
    positions = np.linspace(0, num_coefficients - 3, num_points)
    return BSpline.design_matrix(positions, np.arange(-3.0, num_coefficients + 1), 3).toarray()


def _triple(values: Array) -> Triple:
    x, y, z = (float(value) for value in values)
    return x, y, z
