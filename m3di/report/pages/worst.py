"""Pictures of the test cases that went worst: what a network made of them, beside the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.inference import Predictor, load_predictor
from m3di.evaluation.members import Members
from m3di.evaluation.overview import draw_plane
from m3di.evaluation.scoring import ClassificationCase, SegmentationCase
from m3di.report.page import Block, ColourKey, Legend, Paragraph, Picture, Pictures
from m3di.report.pages.classes import confident_errors, predicted
from m3di.report.pages.masks import mean_dice, worst_first
from m3di.report.pictures import PALETTE
from m3di.volumes import readers
from m3di.volumes.cases import Case
from m3di.volumes.preprocess import window_of
from stores.geometry import NORMAL_AXIS, PLANES, CubeChain
from stores.recipe import Recipe

Labels = npt.NDArray[np.uint8]

MISSED, MADE_UP, CONFUSED = 1, 2, 3  # what is wrong with a voxel
ERRORS: Final = {MISSED: "missed", MADE_UP: "made up", CONFUSED: "another structure"}
ERROR_COLOURS: Final = {MISSED: 6, MADE_UP: 5, CONFUSED: 7}  # rows of the palette that few structures come to


def worst_blocks(
    evaluation: Evaluation, members: Members, *, count: int, device: str, named: str = ""
) -> list[Block]:  # fmt: skip
    """Pictures of the worst cases of a segmentation, or of the most confident errors of a classification.

    Args:
        evaluation: The scores.
        members: The runs that were scored, and their cases.
        count: How many cases are shown at most.
        device: Where masks are predicted anew: scores do not keep them.
        named: As for `load_network`.
    """
    gallery = _Gallery(evaluation.classes, members, device, named)
    if evaluation.kind == "segmentation":
        cases = worst_first(evaluation.summary.cases)[:count]  # type: ignore[arg-type]
        return [gallery.legend, *(gallery.segmented(case) for case in cases)]
    wrong = confident_errors(evaluation.summary.cases)  # type: ignore[arg-type]
    if not wrong:
        return [Paragraph(f"Each of the {len(evaluation.cases)} test cases was given to its own class.")]
    return [gallery.classified(case) for case in wrong[:count]]


class _Gallery:
    """Draws test cases; keeps one network at a time."""

    def __init__(self, classes: Mapping[int, str], members: Members, device: str, named: str) -> None:
        self._classes, self._members, self._device, self._named = classes, members, device, named
        self._numbers = {value: 1 + place % (len(PALETTE) - 1) for place, value in enumerate(classes)}
        self._loaded: tuple[int, Predictor] | None = None

    @property
    def legend(self) -> Legend:
        """Colours of the structures, and of what is wrong."""
        colours = [(name, self._numbers[value]) for value, name in self._classes.items()]
        colours += [(name, ERROR_COLOURS[kind]) for kind, name in ERRORS.items()]
        return Legend([ColourKey(name, PALETTE[number]) for name, number in colours])

    def segmented(self, scored: SegmentationCase) -> Pictures:
        """The slice with most wrong voxels: reference, prediction, and what is wrong."""
        case, number = self._find(scored.case)
        assert case.label is not None
        volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
        reference = readers.read_label(case.label, like=volume.geometry)
        predictor = self._predictor(number)
        masks = [_learnt(labels, self._classes) for labels in (reference, predictor.mask(volume))]
        ignored = self._members.checkpoints[number].facts.get("ignored_values", [])
        masks[1][np.isin(reference, ignored)] = 0  # nobody knows what is there
        view = _view(volume, predictor.recipe, masks)
        items = [
            view.picture(view.masks[0], self._numbers, "reference"),
            view.picture(view.masks[1], self._numbers, "prediction"),
            view.picture(errors_of(*view.masks), ERROR_COLOURS, "what is wrong", style="fill"),
        ]
        title = f"{scored.case}: mean Dice {mean_dice(scored.scanner):.3f}"
        if len(self._classes) > 1:
            title += f" ({', '.join(f'{self._classes[value]} {dice:.3f}' for value, dice in scored.dice.items())})"
        if len(self._members.checkpoints) > 1:
            title += f"; the mask of run {number + 1}"
        return Pictures(items, 3, title=title)

    def classified(self, scored: ClassificationCase) -> Pictures:
        """The middle slices of a scan that was given to another class than its own."""
        case, number = self._find(scored.case)
        volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
        recipe = Recipe.from_dict(self._members.checkpoints[number].facts["recipe"])
        nothing = np.zeros(volume.data.shape, np.uint8)
        views = [_view(volume, recipe, (nothing, nothing), plane=plane) for plane in range(len(PLANES))]
        names, given = list(self._classes.values()), predicted(scored)
        title = (
            f"{scored.case}: {names[given]} with probability {scored.probabilities[given]:.2f}, truly "
            f"{names[scored.target]} ({scored.probabilities[scored.target]:.2f})"
        )
        return Pictures([view.picture(view.masks[0], {}, "middle") for view in views], 3, title=title)

    def _find(self, name: str) -> tuple[Case, int]:
        """A test case and the first run that is tested on it."""
        for number, found in enumerate(self._members.checkpoints):
            if name in found.facts["split"]["test"]:
                return next(case for case in self._members.task.cases if case.id == name), number
        raise KeyError(name)

    def _predictor(self, number: int) -> Predictor:
        if self._loaded is None or self._loaded[0] != number:
            found = self._members.checkpoints[number]
            self._loaded = number, load_predictor(found, device=self._device, named=self._named)
        return self._loaded[1]


@dataclass(frozen=True, eq=False)
class _View:
    """One slice of a scan, along canonical axes.

    Attributes:
        grey: [first, second].
        masks: Reference and prediction.
        step_mm: Distance between voxel centres along both axes.
        place: The slice in words.
    """

    grey: Labels
    masks: tuple[Labels, Labels]
    step_mm: tuple[float, ...]
    place: str

    def picture(
        self, labels: Labels, numbers: Mapping[int, int], name: str, *, style: Literal["fill", "contour"] = "contour"
    ) -> Picture:
        """The slice with labels drawn over it."""
        pixels = draw_plane(self.grey, labels, self.step_mm, numbers, style=style)
        return Picture(pixels, f"{name}, {self.place}", f"{name}: {self.place}")


def errors_of(reference: Labels, prediction: Labels) -> Labels:
    """Where a prediction is wrong, and how: `MISSED`, `MADE_UP` or `CONFUSED`; 0 where it is right."""
    wrong = np.zeros(reference.shape, np.uint8)
    wrong[(reference > 0) & (prediction == 0)] = MISSED
    wrong[(reference == 0) & (prediction > 0)] = MADE_UP
    wrong[(reference > 0) & (prediction > 0) & (reference != prediction)] = CONFUSED
    return wrong


def _view(
    volume: readers.Volume, recipe: Recipe, masks: Sequence[Labels], *, plane: int | None = None
) -> _View:  # fmt: skip
    """The slice with most wrong voxels, or with most labelled ones where none is wrong; or a plane's middle slice."""
    chain, window = CubeChain(volume.geometry, 1), window_of(volume, recipe)
    data, reference, prediction = (chain.to_canonical(array) for array in (volume.data, *masks))
    if plane is None:
        wrong = reference != prediction
        plane, index = _fullest(wrong if wrong.any() else reference > 0)
    else:
        index = data.shape[NORMAL_AXIS[plane]] // 2
    axis = NORMAL_AXIS[plane]
    grey, *labels = (np.take(array, index, axis) for array in (data, reference, prediction))
    shown = np.rint(255 * window.apply(grey)).astype(np.uint8)
    step_mm = tuple(step for other, step in enumerate(chain.canonical_spacing_mm) if other != axis)
    return _View(
        shown, (labels[0], labels[1]), step_mm, f"{PLANES[plane]} slice {index + 1} of {data.shape[axis]}"
    )  # fmt: skip


def _fullest(marked: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Plane and index of the slice with the most marked voxels."""
    counts = [marked.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in NORMAL_AXIS]
    plane = int(np.argmax([count.max() for count in counts]))
    return plane, int(counts[plane].argmax())


def _learnt(labels: Labels, classes: Mapping[int, str]) -> Labels:
    """A label map without the values that are background to the task."""
    return np.where(np.isin(labels, list(classes)), labels, 0).astype(np.uint8)
