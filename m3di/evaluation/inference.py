"""Fine-tuned networks, ready for scans: scan -> cube -> probabilities -> back to the scanner's own grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from m3di.evaluation.windows import Box, blend, boxes_of
from m3di.tasks.task import Kind
from m3di.training import checkpoint, runtime
from m3di.training.start import load_network, weights_used
from m3di.types import Tensor
from m3di.volumes import preprocess, readers
from m3di.volumes.resample import Floats, restore
from stores.errors import RefusedError
from stores.recipe import Recipe

AXES: Final = {"x": 0, "y": 1, "z": 2}
MEMORY_HINT: Final = "use --device cpu, or a network of fewer classes or a smaller cube"
NARROW: Final = 1.5  # a scan so many times narrower than the narrowest in training is unlike them
BITS: Final = 1 / float(np.log(2))


@dataclass(frozen=True)
class Weights:
    """Which weights of a run are used.

    Attributes:
        run: Its folder.
        network: Name of the network.
        seed: Of its training.
        part: `best` in validation, `ema`, the moving average, or `network`, the last ones.
        samples_seen: The clock of these weights.
        sha256: Of the file.
    """

    run: str
    network: str
    seed: int
    part: str
    samples_seen: int
    sha256: str

    def __str__(self) -> str:
        told = {"best": "best in validation", "ema": "moving average", "network": "last"}[self.part]
        return f"{self.network} of {self.run}, {told}, after {self.samples_seen} volumes seen"


@dataclass(frozen=True, eq=False)
class Predictor:
    """One fine-tuned network, or several that are averaged, ready for scans.

    Attributes:
        networks: In evaluation mode, on their device.
        kind: What they predict.
        recipe: How scans become cubes.
        classes: Class name by value, in the order of class indices.
        modality: Of the scans that they were trained on.
        device: Where they run.
        weights: Which weights they have.
        edges_mm: `smallest`, `median` and `largest` edge of the training cubes; empty when not known.
        mirrors: Sets of cube axes (0 to 2); a scan is mirrored along each, what comes of it back, and all averaged.
        measures_uncertainty: Whether scores have one channel more, how far networks and mirrors disagree: the mutual
            information of class and member, in bits (Houlsby et al. 2011), 0 where all agree.
        windows_beyond: Scans whose edge is over this many times the largest are predicted by windows.
        overlap: Of windows.
    """

    networks: tuple[torch.nn.Module, ...]
    kind: Kind
    recipe: Recipe
    classes: Mapping[int, str]
    modality: str
    device: torch.device
    weights: tuple[Weights, ...] = ()
    edges_mm: Mapping[str, float] = field(default_factory=dict)
    mirrors: tuple[tuple[int, ...], ...] = ((),)
    measures_uncertainty: bool = False
    windows_beyond: float = 1.5
    overlap: float = 0.5

    @cached_property
    def class_values(self) -> tuple[int, ...]:
        """Label value of each class index."""
        return tuple(self.classes)

    @torch.no_grad()
    def scores(self, cube: Floats) -> Floats:
        """Probabilities of a cube (J, J, J): (c, J, J, J) of a segmentation, (c,) of a classification.

        Uncertainty, where it is measured, is one channel more.
        """
        image = torch.from_numpy(cube.astype(np.float16).astype(np.float32))[None, None]  # as the store rounds it
        total: Any = 0
        entropy: Any = 0
        members = [(network, mirror) for network in self.networks for mirror in self.mirrors]
        for network, mirror in members:
            found = self._member(network, image, mirror)
            total = total + found / len(members)
            if self.measures_uncertainty:
                entropy = entropy + torch.special.entr(found).sum(dim=0) / len(members)
        if self.measures_uncertainty:
            disagreement = (torch.special.entr(total).sum(dim=0) - entropy).clamp(min=0) * BITS
            total = torch.cat([total, disagreement[None]])
        return total.cpu().numpy()

    def slabs(self, volume: readers.Volume) -> Iterator[tuple[slice, Floats]]:
        """Scores on the scanner's grid: a range of canonical z, and (c, x, y, s) of those slices.

        Raises:
            CaseError: E_NO_SIGNAL.
        """
        if boxes := self.windows(volume):
            return blend(volume, self.recipe, boxes, self.scores)
        cube = preprocess.make_cube(volume, self.recipe)
        return restore(self.scores(cube.data), cube.chain)

    def mask(self, volume: readers.Volume) -> npt.NDArray[np.uint8]:
        """Label map of a scan along the scan's own axes."""
        return self.mask_of(volume, self.slabs(volume))

    def mask_of(self, volume: readers.Volume, slabs: Iterator[tuple[slice, Floats]]) -> npt.NDArray[np.uint8]:
        """Label map along the scan's own axes: in each voxel the class with the highest probability."""
        chain = preprocess.chain_of(volume, self.recipe)
        mask = np.empty(chain.canonical_shape, np.uint8)
        for rows, scores in slabs:
            mask[:, :, rows] = self.labels(scores)
        return chain.from_canonical(mask)

    def labels(self, scores: Floats) -> npt.NDArray[np.uint8]:
        """Label value of the most probable class, from scores (c, ...)."""
        values = np.asarray(self.class_values, np.uint8)
        return values[scores[: len(values)].argmax(axis=0)]

    def windows(self, volume: readers.Volume) -> list[Box]:
        """The windows that a scan is predicted by; empty when it is predicted as a whole."""
        chain = preprocess.chain_of(volume, self.recipe)
        if self.kind == "classification" or not self.edges_mm:
            return []
        if chain.edge_mm <= self.windows_beyond * self.edges_mm["largest"]:
            return []
        return boxes_of(chain, self.edges_mm["median"], overlap=self.overlap)

    def doubts(self, volume: readers.Volume) -> list[str]:
        """What makes a scan unlike those that the network was trained on, in words."""
        found = []
        if "unknown" not in (self.modality, volume.modality) and volume.modality != self.modality:
            found.append(f"it is {volume.modality}, the network was trained on {self.modality}")
        edge = preprocess.chain_of(volume, self.recipe).edge_mm
        if self.edges_mm:
            low, high = self.edges_mm["smallest"], self.edges_mm["largest"]
            if not low / NARROW <= edge <= high * self.windows_beyond:
                found.append(f"it is {edge:.0f} mm wide, those in training were {low:.0f} to {high:.0f} mm")
        return found

    def _member(self, network: torch.nn.Module, image: Tensor, mirror: tuple[int, ...]) -> Tensor:
        """Probabilities by one network of one mirror image, mirrored back; on the device."""
        axes = [axis + 2 for axis in mirror]
        with runtime.memory_named(MEMORY_HINT):
            output = network(image.flip(axes).to(self.device))
            if self.kind == "classification":
                return output.float().softmax(dim=1)[0]
            return output.logits.float().softmax(dim=1).flip(axes)[0]


def load_predictor(found: checkpoint.Checkpoint, *, device: str, named: str = "") -> Predictor:
    """Rebuild the network of a fine-tuning checkpoint.

    Args:
        found: The checkpoint.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        named: As for `load_network`.

    Raises:
        DamagedError: E_WEIGHTS, when the weights are damaged.
    """
    runtime.prepare_process()
    place, facts = runtime.pick_device(device), found.facts
    return Predictor(
        networks=(load_network(found, named=named).to(place),),
        kind=facts.get("task_kind", "segmentation"),
        recipe=Recipe.from_dict(facts["recipe"]),
        classes={int(value): name for value, name in facts["classes"].items()},
        modality=facts["modality"],
        device=place,
        weights=(weights_of(found),),
        edges_mm=facts.get("edges_mm", {}),
    )


def weights_of(found: checkpoint.Checkpoint) -> Weights:
    """Which weights of a checkpoint are used."""
    part, facts = weights_used(found), found.facts
    clock = facts["progress"]["best_samples_seen"] if part == "best" else found.samples_seen
    digest = facts["files"][f"{part}.safetensors"]
    run = run_folder(found)
    return Weights(str(run), facts["network"], facts["config"]["seed"], part, clock, digest)


def same_task(checkpoints: Sequence[checkpoint.Checkpoint]) -> None:
    """Refuse runs whose predictions cannot be put together.

    Raises:
        RefusedError: E_CONFIG, naming the first that differs.
    """
    first = checkpoints[0].facts
    for other in checkpoints[1:]:
        for name in ("task", "classes", "recipe"):
            if other.facts[name] != first[name]:
                runs = " and ".join(str(run_folder(one)) for one in (checkpoints[0], other))
                raise RefusedError("E_CONFIG", f"{runs} differ in their {name}", hint="give runs of one task")


def allowed_mirrors(found: checkpoint.Checkpoint) -> tuple[tuple[int, ...], ...]:
    """Every set of axes that a network was trained to be mirrored along, the empty one first.

    Raises:
        RefusedError: E_CONFIG, when there is none but the empty one.
    """
    axes = [AXES[name] for name in found.facts["config"]["finetune"].get("flip_axes", ())]
    if not axes:
        message = f"{run_folder(found)} was trained without mirror images (finetune.flip_axes)"
        hint = "leave predict.uncertainty=flips out, or use predict.uncertainty=runs with several runs or repeats"
        raise RefusedError("E_CONFIG", message, hint=hint)
    return tuple(chosen for count in range(len(axes) + 1) for chosen in combinations(sorted(axes), count))


def run_folder(found: checkpoint.Checkpoint) -> Path:
    """The folder of a checkpoint's run."""
    return found.run
