"""Where voxels are: scanner grids, canonical axes and the exact chain from a scan to its cube and back.

Coordinates are RAS+ in mm: x grows to the patient's right, y to anterior, z to superior. Voxel index (i, j, k)
is the centre of a voxel; a grid of n voxels of s mm therefore extends over n * s mm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]

PLANES: Final = ("axial", "coronal", "sagittal")
SAME_SIZE: Final = 1e-4  # voxels whose edges differ by a smaller share are of one size
NORMAL_AXIS: Final = (2, 1, 0)  # canonical axis that a plane's slices are stacked along, by plane number


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid in space.

    Attributes:
        shape: Number of voxels along each array axis.
        affine: 4 x 4, voxel index to RAS+ mm.
    """

    shape: tuple[int, int, int]
    affine: Affine

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along each array axis, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @cached_property
    def orientation(self) -> str:
        """Three letters: where each array axis points to, for example `LPS`."""
        axes, signs = _nearest_axes(self.affine)
        letters = ["LR", "PA", "IS"]
        return "".join(letters[axis][sign > 0] for axis, sign in zip(axes, signs, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return shape and affine as JSON-ready values."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Geometry":
        """Rebuild a geometry from `to_dict`."""
        x, y, z = fields["shape"]
        return cls((int(x), int(y), int(z)), np.asarray(fields["affine"], dtype=np.float64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))


@dataclass(frozen=True)
class CubeChain:
    """The recorded way from a scan's grid to its cube: axes permuted and flipped, then one resampling.

    The cube is centred on the scan and as wide as its longest side; what lies outside the scan is padding. Along an
    axis on which scan and cube have voxels of one size, an aligned cube is centred up to half a voxel, so that its
    voxels are the scan's: half a voxel off, each would be the mean of two, and a border of a label map a tie. In two
    steps, as the paper has it, the scan is first brought to 1 mm, its sides rounded to whole voxels and padded by
    whole voxels; the cube is then as wide as the longest rounded side, and centred up to half a millimetre.

    Attributes:
        source: The scanner's grid.
        cube_size: Edge of the cube in voxels.
        two_step: Whether the way goes over a 1 mm grid.
        aligned: Whether the cube lies on the scan's voxels where these are as large as its own.
    """

    source: Geometry
    cube_size: int
    two_step: bool = False
    aligned: bool = False

    @cached_property
    def axes(self) -> tuple[int, int, int]:
        """Source axis that becomes canonical axis 0, 1, 2 (right, anterior, superior)."""
        points_to, _ = _nearest_axes(self.source.affine)
        return points_to.index(0), points_to.index(1), points_to.index(2)

    @cached_property
    def flips(self) -> tuple[bool, bool, bool]:
        """Whether canonical axis 0, 1, 2 runs against its source axis."""
        _, signs = _nearest_axes(self.source.affine)
        x, y, z = (signs[axis] < 0 for axis in self.axes)
        return x, y, z

    @cached_property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of the scan along the canonical axes."""
        x, y, z = (self.source.shape[axis] for axis in self.axes)
        return x, y, z

    @cached_property
    def canonical_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing of the scan along the canonical axes, mm."""
        x, y, z = (self.source.spacing_mm[axis] for axis in self.axes)
        return x, y, z

    @cached_property
    def extent_mm(self) -> tuple[float, float, float]:
        """Length of the scan along the canonical axes, mm."""
        x, y, z = (n * s for n, s in zip(self.canonical_shape, self.canonical_spacing_mm, strict=True))
        return x, y, z

    @cached_property
    def steps(self) -> tuple[int, int, int]:
        """Voxels of the 1 mm grid along the canonical axes, before padding."""
        x, y, z = (max(1, round(extent)) for extent in self.extent_mm)
        return x, y, z

    @property
    def num_steps(self) -> int:
        """Edge of the padded 1 mm grid in voxels."""
        return max(self.steps)

    @property
    def edge_mm(self) -> float:
        """Edge of the cube, mm: the longest side of the scan."""
        return float(self.num_steps) if self.two_step else max(self.extent_mm)

    @cached_property
    def start_mm(self) -> tuple[float, float, float]:
        """Where the cube begins along the canonical axes, mm from the scan's own edge; 0 or less."""
        if self.two_step:
            x, y, z = (-float((self.num_steps - n) // 2) for n in self.steps)
        else:
            x, y, z = (self._centred_mm(axis) for axis in range(3))
        return x, y, z

    def _centred_mm(self, axis: int) -> float:
        """Where a cube that is centred on the scan begins along an axis, mm from the scan's own edge."""
        spacing_mm = self.canonical_spacing_mm[axis]
        if self.aligned and abs(self.voxel_mm - spacing_mm) < SAME_SIZE * spacing_mm:
            return -float((self.cube_size - self.canonical_shape[axis]) // 2) * spacing_mm
        return (self.extent_mm[axis] - self.edge_mm) / 2

    @property
    def voxel_mm(self) -> float:
        """Edge of one voxel of the cube, mm."""
        return self.edge_mm / self.cube_size

    @cached_property
    def inside(self) -> tuple[tuple[int, int], ...]:
        """Range [start, stop) of cube indices whose centres lie within the scan, along each canonical axis."""
        ranges = []
        for extent, start_mm in zip(self.extent_mm, self.start_mm, strict=True):
            centres = (np.arange(self.cube_size) + 0.5) * self.voxel_mm + start_mm
            (within,) = np.nonzero((centres >= -1e-9 * extent) & (centres <= extent * (1 + 1e-9)))
            # A scan thinner than a cube voxel may fall between two centres; it then owns the nearest one.
            start, stop = (within[0], within[-1] + 1) if within.size else (self.cube_size // 2,) * 2
            ranges.append((int(start), max(int(stop), int(start) + 1)))
        return tuple(ranges)

    @cached_property
    def thick_planes(self) -> tuple[int, ...]:
        """Numbers of the planes whose slices lie over twice as far apart as the scan's finest voxels.

        Cube positions between such slices show interpolated data.
        """
        limit_mm = 2 * min(self.canonical_spacing_mm)
        return tuple(p for p, normal in enumerate(NORMAL_AXIS) if self.canonical_spacing_mm[normal] > limit_mm)

    @cached_property
    def cube_to_source(self) -> Affine:
        """4 x 4, cube index to source voxel index (not rounded)."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for axis in range(3):
            size, spacing = self.canonical_shape[axis], self.canonical_spacing_mm[axis]
            scale = self.voxel_mm / spacing
            offset = (0.5 * self.voxel_mm + self.start_mm[axis]) / spacing - 0.5
            if self.flips[axis]:
                scale, offset = -scale, size - 1 - offset
            matrix[self.axes[axis], axis] = scale
            matrix[self.axes[axis], 3] = offset
        return matrix

    @property
    def cube(self) -> Geometry:
        """The cube's own grid in space."""
        return Geometry((self.cube_size,) * 3, self.source.affine @ self.cube_to_source)

    def to_canonical(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """View an array on the source grid along the canonical axes (no copy)."""
        view = array.transpose(self.axes)
        return view[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def from_canonical(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undo `to_canonical` (no copy)."""
        view = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return view.transpose(np.argsort(self.axes))


def place_within(slices: npt.ArrayLike, start: npt.ArrayLike, stop: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Where slices lie within `CubeChain.inside` along their plane's normal.

    Args:
        slices: Positions in the cube.
        start: Start of the range of cube indices within the scan, of each slice.
        stop: Its stop.

    Returns:
        0 for the inferior, posterior or left end, 1 for the other.
    """
    first, last = np.asarray(start, np.float64), np.asarray(stop, np.float64)
    return np.clip((np.asarray(slices) - first + 0.5) / (last - first), 0, 1)


def _nearest_axes(affine: Affine) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Match each array axis with the RAS axis it runs along, jointly, and give its sign."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(permutations(range(3)), key=lambda axes: sum(abs(directions[a, i]) for i, a in enumerate(axes)))
    return best, tuple(float(np.sign(directions[a, i])) for i, a in enumerate(best))
