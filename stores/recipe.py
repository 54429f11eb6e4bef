"""The recipe: everything that determines the bytes of a volume in the store, as canonical JSON with a digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

RENDERING_VERSION = 3  # raise whenever the same recipe and source would give other cube or slice bytes


@dataclass(frozen=True)
class Recipe:
    """How scans become cubes and slice images.

    Attributes:
        cube_size: Edge of the canonical cube in voxels (J: also the number of slice positions of a plane).
        slice_size: Edge of a stored slice image in pixels.
        slice_stride: Every how many positions of the cube a slice is rendered, captioned and embedded.
        ct_window_hu: CT intensities mapped to [0, 1], in HU.
        mr_percentiles: Percentiles mapped to [0, 1]: the lower over voxels that are not background, the upper over
            the body.
        resampling: `direct`, or `two_step` over 1 mm as the paper words it.
        labels: Whether label maps are resampled and stored with the volumes.
        rendering_version: Version of the resampling and rendering code; 3 laid cubes on the scan's own voxels.
    """

    cube_size: int = 128
    slice_size: int = 224
    slice_stride: int = 1
    ct_window_hu: tuple[float, float] = (-1000.0, 1000.0)
    mr_percentiles: tuple[float, float] = (0.5, 99.5)
    resampling: Literal["direct", "two_step"] = "direct"
    labels: bool = False
    rendering_version: int = RENDERING_VERSION

    @property
    def positions(self) -> range:
        """Positions of the cube at which slices are rendered: the middle of each stride."""
        return range(self.slice_stride // 2, self.cube_size, self.slice_stride)

    @property
    def aligned(self) -> bool:
        """Whether cubes lie on the scan's own voxels where these are as large (`CubeChain.aligned`)."""
        return self.resampling == "direct" and self.rendering_version >= 3

    @cached_property
    def digest(self) -> str:
        """Hex digest of the canonical JSON."""
        return digest_of(asdict(self))

    @cached_property
    def slices_digest(self) -> str:
        """Hex digest of what determines the slice images: everything but whether label maps are kept."""
        return digest_of({name: value for name, value in asdict(self).items() if name != "labels"})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return json.loads(canonical_json(asdict(self)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Recipe":
        """Rebuild a recipe from `to_dict`; JSON lists become tuples again."""
        return cls(**tuples_of(fields))

    def differences(self, other: "Recipe") -> list[str]:
        """Name every field in which two recipes differ, with both values."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{name}: {mine[name]} != {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def tuples_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists among JSON fields into the tuples of a frozen dataclass."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def canonical_json(value: object) -> bytes:
    """Encode JSON in the one form that digests are taken of: sorted keys, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(value: object) -> str:
    """Return the sha256 hex digest of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
