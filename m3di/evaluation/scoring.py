"""Scores of one case by one run, on the scanner's own grid in mm and on the cube."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.evaluation.inference import Predictor
from m3di.evaluation.segmentation import METRICS, MaskScores, score_masks
from m3di.tasks.task import Task
from m3di.volumes import preprocess, readers
from m3di.volumes.cases import Case
from m3di.volumes.resample import restore
from stores.errors import CaseError

Labels = npt.NDArray[np.uint8]
ByClass = dict[int, MaskScores]


@dataclass(frozen=True)
class SegmentationCase:
    """Scores of one test case, of several seeds their means.

    Attributes:
        case: Its id.
        subject: The person.
        dataset: Of the person.
        spacing_mm: Of the scanner's grid.
        voxel_mm: Of the cube.
        windows: How many windows it was predicted by; 0 as a whole.
        scanner: By label value, on the scanner's grid.
        cube: On the cube, of the whole scan.
    """

    case: str
    subject: str
    dataset: str
    spacing_mm: tuple[float, float, float]
    voxel_mm: float
    windows: int
    scanner: ByClass
    cube: ByClass

    @property
    def dice(self) -> dict[int, float]:
        """Dice by label value, on the scanner's grid; NaN where neither mask has the class."""
        return {value: scores.dice for value, scores in self.scanner.items()}


@dataclass(frozen=True)
class ClassificationCase:
    """Probabilities of one test case, and its true class.

    Attributes:
        case: Its id.
        subject: The person.
        dataset: Of the person.
        target: Index of its class.
        probabilities: Of each class; of several seeds their means.
        by_seed: Of each class, by each seed; empty with one.
    """

    case: str
    subject: str
    dataset: str
    target: int
    probabilities: tuple[float, ...]
    by_seed: tuple[tuple[float, ...], ...] = ()


def score_segmentation(
    case: Case, predictor: Predictor, facts: Mapping[str, Any], *, tolerance_mm: float
) -> SegmentationCase:
    """Segment one case and score the mask.

    Args:
        case: With a label map.
        predictor: The network.
        facts: Of its checkpoint: which label values count as background, and which are ignored.
        tolerance_mm: Of surface Dice.

    Raises:
        CaseError: When scan or label map cannot be used, or the label map holds a value that the task does not name.
    """
    assert case.label is not None
    volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
    reference = readers.read_label(case.label, like=volume.geometry)
    values, ignored = predictor.class_values[1:], facts.get("ignored_values", [])
    _require_named(reference, {0, *values, *ignored, *facts.get("background_values", [])}, case)

    cube = preprocess.make_cube(volume, predictor.recipe)
    whole = predictor.scores(cube.data)
    windows = predictor.windows(volume)
    mask = predictor.mask_of(volume, predictor.slabs(volume) if windows else restore(whole, cube.chain))
    of_cube = preprocess.make_label_cube(reference, cube.chain)
    voxel_mm = cube.chain.voxel_mm
    return SegmentationCase(
        case.id, case.subject, case.dataset, volume.geometry.spacing_mm, voxel_mm, len(windows),
        scanner=_scores(mask, reference, values, volume.geometry.spacing_mm, ignored, tolerance_mm),
        cube=_scores(predictor.labels(whole), of_cube, values, (voxel_mm,) * 3, ignored, tolerance_mm),
    )  # fmt: skip


def score_classification(case: Case, predictor: Predictor, task: Task) -> ClassificationCase:
    """Classify one case.

    Raises:
        CaseError: When the scan cannot be used.
    """
    volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
    found = predictor.scores(preprocess.make_cube(volume, predictor.recipe).data)
    probabilities = tuple(float(value) for value in found)
    return ClassificationCase(case.id, case.subject, case.dataset, task.targets[case.id], probabilities)


def mean_case(cases: Sequence[SegmentationCase]) -> SegmentationCase:
    """The scores of one case by several seeds, averaged; a seed that cannot score it is left out."""
    first = cases[0]
    return SegmentationCase(
        first.case, first.subject, first.dataset, first.spacing_mm, first.voxel_mm, first.windows,
        scanner=_mean([one.scanner for one in cases]), cube=_mean([one.cube for one in cases]),
    )  # fmt: skip


def _mean(scores: Sequence[ByClass]) -> ByClass:
    def one(value: int, metric: str) -> float:
        known = [found for by_class in scores if not math.isnan(found := getattr(by_class[value], metric))]
        return sum(known) / len(known) if known else math.nan

    return {value: MaskScores(*(one(value, metric) for metric in METRICS)) for value in scores[0]}


def _scores(  # noqa: PLR0917
    mask: Labels, reference: Labels, values: Sequence[int], spacing_mm: tuple[float, float, float],
    ignored: Sequence[int], tolerance_mm: float,
) -> ByClass:  # fmt: skip
    known = ~np.isin(reference, ignored) if ignored else None
    return score_masks(mask, reference, values, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm, known=known)


def _require_named(reference: Labels, named: set[int], case: Case) -> None:
    strange = set(np.unique(reference).tolist()) - named
    if strange:
        message = f"the label map of {case.id} has the value {min(strange)}, which the task does not name"
        raise CaseError("E_LABEL_VALUES", message, hint="name it in dataset.json, or correct the label map")
