"""Dense rows: the image tower's patch grid of a slice, reduced by a projection that is kept with the teacher."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from m3di.types import Float, Tensor
from stores.errors import RefusedError
from stores.recipe import digest_of

PROJECTION_FILE: Final = "m3di_projection.safetensors"
_FACTS: Final = "m3di"


@dataclass(frozen=True)
class PatchProjection:
    """Principal components of a teacher's patch features.

    Attributes:
        mean: Of the patch features, (c,).
        components: Orthonormal columns, (c, d), by falling variance; the largest entry of each is positive.
        explained_variance: Share of the variance that the d components keep, 0 to 1.
        grid: Rows and columns of patches of a slice.
    """

    mean: Float[Tensor, " c"]
    components: Float[Tensor, "c d"]
    explained_variance: float
    grid: tuple[int, int]

    @property
    def dim(self) -> int:
        """Width of a projected patch."""
        return self.components.shape[1]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of a dense row's parts, in the order that `__call__` gives them."""
        rows, columns = self.grid
        return tuple(f"patch {row} {column}" for row in range(rows) for column in range(columns))

    def fingerprint(self, teacher: str) -> str:
        """Name of the row set: the teacher and what its patches are reduced by."""
        payload = safetensors.torch.save({"mean": self.mean, "components": self.components})
        return digest_of({"teacher": teacher, "projection": payload.hex(), "grid": list(self.grid)})

    def __call__(self, patches: Float[Tensor, "s h w c"]) -> Float[Tensor, "s p d"]:
        """Project the patches of slices; p counts them row by row."""
        return (patches.flatten(1, 2) - self.mean.to(patches.device)) @ self.components.to(patches.device)

    def save(self, folder: Path) -> None:
        """Write the projection into a teacher's folder."""
        tensors = {"mean": self.mean.contiguous(), "components": self.components.contiguous()}
        facts = {"explained_variance": self.explained_variance, "grid": list(self.grid)}
        # Under one key: safetensors writes several in an order that differs from process to process.
        (folder / PROJECTION_FILE).write_bytes(safetensors.torch.save(tensors, {_FACTS: json.dumps(facts)}))

    @classmethod
    def load(cls, folder: Path) -> "PatchProjection":
        """Read what `save` wrote.

        Raises:
            RefusedError: E_WEIGHTS, when it is missing or is no projection.
        """
        path = folder / PROJECTION_FILE
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata()
                mean, components = file.get_tensor("mean"), file.get_tensor("components")
            facts = json.loads(metadata[_FACTS]) if _FACTS in metadata else _older_facts(metadata)
            rows, columns = (int(size) for size in facts["grid"])
            return cls(mean, components, float(facts["explained_variance"]), (rows, columns))
        except (OSError, KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
            message = f"{path} is no projection of patch features: {error}"
            raise RefusedError("E_WEIGHTS", message, hint="fit the teacher again: m3di teacher fit") from error


def _older_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The facts as they were written before they had one key."""
    return {"explained_variance": metadata["explained_variance"], "grid": metadata["grid"].split()}


class PatchStatistics:
    """Mean and covariance of patch features, summed batch by batch in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._grid = (0, 0)
        self._sum = torch.zeros(0, dtype=torch.float64)
        self._products = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, patches: Float[Tensor, "s h w c"]) -> None:
        """Take the patches of more slices, all of one grid."""
        self._grid = (patches.shape[1], patches.shape[2])
        flat = patches.flatten(0, 2).cpu()
        if not self._count:
            width = flat.shape[1]
            self._sum = torch.zeros(width, dtype=torch.float64)
            self._products = torch.zeros(width, width, dtype=torch.float64)
        self._count += len(flat)
        self._sum += flat.sum(dim=0, dtype=torch.float64)
        self._products += (flat.T @ flat).double()

    def projection(self, dim: int) -> PatchProjection:
        """Keep the `dim` directions of the largest variance.

        Raises:
            RefusedError: E_CONFIG, when a patch has fewer features than that.
        """
        width = len(self._sum)
        if dim > width:
            hint = f"set teacher.dense_dim to {width} at most"
            raise RefusedError("E_CONFIG", f"teacher.dense_dim={dim}, but a patch has {width} features", hint=hint)
        mean = self._sum / self._count
        covariance = self._products / self._count - mean.outer(mean)
        values, vectors = torch.linalg.eigh(covariance)
        components = vectors.flip(1)[:, :dim]
        largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
        explained = float(values.flip(0)[:dim].sum() / values.sum().clamp_min(1e-30))
        return PatchProjection(
            mean.float(), (components * largest.sign()).float().contiguous(), round(explained, 6), self._grid
        )
