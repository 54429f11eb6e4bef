"""Scores of masks against masks, without a run: two folders of NIfTI files, or of PNG masks as CHAOS has them.

NIfTI files are paired by the stems of their names. PNG masks are one folder a scan (`CT/1/Ground` beside
`CT/1/DICOM_anon`), paired by the path of the folder, the last part left out where it says only what the folder holds
(`Ground`, `Results`, `Segmentation`); or NIfTI predictions, as `m3di predict` writes them, stand against a CHAOS
tree. A prediction must lie on its reference's grid, which NIfTI says in its header; of PNG masks it is that of the
DICOM series beside the reference, slice spacing from ImagePositionPatient. In CT any grey value is liver, as the
organisers' own code reads it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m3di.evaluation.results import Refusal, jsonable
from m3di.evaluation.segmentation import METRICS, TOLERANCE_MM, MaskScores, score_masks
from m3di.evaluation.statistics import Interval, bootstrap_mean
from m3di.events import Report
from m3di.tasks.registry import declared
from m3di.volumes.cases import LabelMap
from m3di.volumes.formats import dicom, nifti
from m3di.volumes.formats.png import masks_in
from m3di.volumes.layouts import chaos, discover, mmwhs, oasis
from m3di.volumes.layouts.names import stem_of, subject_of
from m3di.volumes.readers import read_label
from stores.errors import CaseError, RefusedError
from stores.geometry import Geometry

Codes = tuple[tuple[int, int, int], ...]
Labels = npt.NDArray[np.uint8]

NIFTI: Final = (".nii", ".nii.gz")
CONTENTS: Final = frozenset({"ground", "results", "segmentation"})  # names that say what a folder of masks is
SEQUENCES: Final = frozenset({"T1DUAL", "T2SPIR"})  # folders of one person's series
ANY_GREY: Final = ((1, 255, 1),)
NO_LEAK_CHECK: Final = "masks alone do not say what was trained on: nobody looked for leaks"
LAYOUT_NAMES: Final[dict[str, Mapping[int, str]]] = {
    "chaos": chaos.NAMES, "mmwhs": mmwhs.NAMES, "oasis": oasis.NAMES
}  # fmt: skip
LAYOUT_CODES: Final[dict[str, Codes]] = {"mmwhs": mmwhs.CODES}


@dataclass(frozen=True)
class Pair:
    """Two label maps of one scan.

    Attributes:
        case: What both are called.
        subject: The person.
        prediction: A NIfTI file, or a folder of PNG masks.
        reference: The same.
        series: Folder of the DICOM series that the reference was drawn on; None for NIfTI.
    """

    case: str
    subject: str
    prediction: Path
    reference: Path
    series: Path | None = None


@dataclass(frozen=True)
class PairScores:
    """Scores of a pair by label value, and its grid's spacing."""

    case: str
    subject: str
    spacing_mm: tuple[float, float, float]
    scores: dict[int, MaskScores]


@dataclass(frozen=True)
class PairsEvaluation:
    """Scores of all pairs.

    Attributes:
        classes: Class name by label value.
        cases: Scores of each pair.
        mean: Of each class by its name, and of `all`, the mean over a case's classes: each metric's mean over cases
            with its 95% bootstrap interval over subjects.
        refused: Cases that were not scored.
        tolerance_mm: Of surface Dice.
        leaks: What is known of leaks.
    """

    classes: dict[int, str]
    cases: tuple[PairScores, ...]
    mean: dict[str, dict[str, Interval]]
    refused: tuple[Refusal, ...]
    tolerance_mm: float
    leaks: str

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON-ready values: what is not known is null."""
        return jsonable(asdict(self))


def evaluate_pairs(
    prediction: Path, reference: Path, *, task: str | None = None, tolerance_mm: float = TOLERANCE_MM, report: Report
) -> PairsEvaluation:
    """Score every prediction against the reference of the same name.

    Args:
        prediction: Folder of predicted masks.
        reference: Folder of true ones.
        task: Whose names the label values have, and whose structures are scored; by default every value is.
        tolerance_mm: Of surface Dice.
        report: Receives the events.

    Raises:
        RefusedError: E_MISSING or E_FORMAT, when nothing can be paired; the first pair's error, when none could be
            scored; E_CONFIG for an unknown task.
    """
    names, codes = _naming(task)
    pairs, refused = find_pairs(prediction, reference)
    report("begin", stage="evaluate", cases=len(pairs))
    for one in refused:
        report("quarantined", volume=one.case, code=one.code, message=one.message)
    scored: list[PairScores] = []
    errors: list[CaseError] = []
    for pair in pairs:
        try:
            scored.append(_score(pair, names, codes, tolerance_mm))
            report("committed", volume=pair.case, stage="evaluate")
        except CaseError as error:
            errors.append(error)
            refused.append(Refusal(pair.case, error.code, error.message))
            report("quarantined", volume=pair.case, code=error.code, message=error.message)
    if not scored:
        raise RefusedError(errors[0].code, f"no pair could be scored: {errors[0].message}", hint=errors[0].hint)
    values = sorted({value for one in scored for value in one.scores})
    if names is None and all(pair.series is not None for pair in pairs):
        names = chaos.NAMES
    classes = {value: (names or {}).get(value, str(value)) for value in values}
    return PairsEvaluation(
        classes, tuple(scored), summarise(scored, classes), tuple(refused), tolerance_mm, NO_LEAK_CHECK
    )


def summarise(cases: Sequence[PairScores], classes: Mapping[int, str]) -> dict[str, dict[str, Interval]]:
    """Means over cases, with intervals over subjects, by class name and metric; `all` is the mean of the classes."""
    nothing = MaskScores(*[math.nan] * len(METRICS))
    subjects = [case.subject for case in cases]
    found: dict[str, dict[str, Interval]] = {name: {} for name in (*classes.values(), "all")}
    for metric in METRICS:
        rows = [[getattr(case.scores.get(value, nothing), metric) for value in classes] for case in cases]
        table = np.array(rows, np.float64)
        for name, column in zip(classes.values(), table.T, strict=True):
            found[name][metric] = bootstrap_mean(column, subjects)
        known = ~np.isnan(table)
        sums, counts = np.nansum(table, axis=1), known.sum(axis=1)
        means = np.divide(sums, counts, out=np.full(len(table), np.nan), where=counts > 0)
        found["all"][metric] = bootstrap_mean(means, subjects)
    return found


def find_pairs(prediction: Path, reference: Path) -> tuple[list[Pair], list[Refusal]]:
    """Pair masks by name; what has no other half is refused, by name.

    Raises:
        RefusedError: E_MISSING, E_FORMAT or E_DUPLICATE_ID.
    """
    predicted, true = _files(prediction), _files(reference)
    drawn, drawn_true = _folders(prediction), _folders(reference)
    if predicted and true:
        return _paired(predicted, {name: Pair(name, subject_of(name), path, path) for name, path in true.items()})
    if drawn and drawn_true:
        return _paired(drawn, {name: _drawn_pair(name, folder) for name, folder in drawn_true.items()})
    if predicted and chaos.matches(reference):
        cases = [case for case in discover(reference, layout="chaos") if case.label is not None]
        return _paired(
            predicted,
            {c.id: Pair(c.id, c.subject, c.image, c.label.path, c.image) for c in cases if c.label is not None},
        )
    for folder, files, folders in ((prediction, predicted, drawn), (reference, true, drawn_true)):
        if not folder.is_dir():
            raise RefusedError("E_MISSING", f"{folder} is no folder", hint="give the folder that holds the masks")
        if not files and not folders:
            hint = "NIfTI files, or folders of PNG masks, are looked for"
            raise RefusedError("E_MISSING", f"{folder} holds no mask", hint=hint)
    message = f"{prediction} and {reference} hold masks of different kinds"
    raise RefusedError("E_FORMAT", message, hint="give NIfTI beside NIfTI or beside a CHAOS tree, or PNG beside PNG")


def _paired(predicted: Mapping[str, Path], true: Mapping[str, Pair]) -> tuple[list[Pair], list[Refusal]]:
    both = [replace(pair, prediction=predicted[name]) for name, pair in true.items() if name in predicted]
    alone = [
        Refusal(name, "E_MISSING", f"reference {true[name].reference} has no prediction")
        for name in true.keys() - predicted.keys()
    ]
    alone += [
        Refusal(name, "E_MISSING", f"prediction {predicted[name]} has no reference")
        for name in predicted.keys() - true.keys()
    ]
    if not both:
        message = f"no prediction is called as a reference, such as {next(iter(true))}"
        raise RefusedError("E_MISSING", message, hint="give both masks of a scan the same name")
    return both, sorted(alone, key=lambda one: one.case)


def _files(folder: Path) -> dict[str, Path]:
    """NIfTI files of a folder, those below it left out, by stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not path.name.lower().endswith(NIFTI):
            continue
        name = stem_of(path)
        if name in found:
            message = f"{found[name]} and {path} have the same name"
            raise RefusedError("E_DUPLICATE_ID", message, hint="remove one of them")
        found[name] = path
    return found


def _folders(root: Path) -> dict[str, Path]:
    """Folders of PNG masks at or below a folder, by their paths; `.` for the folder's own masks."""
    found: dict[str, Path] = {}
    for folder in sorted({path.parent for path in root.rglob("*.png")}) if root.is_dir() else []:
        if not masks_in(folder):
            continue
        place = folder.relative_to(root)
        name = (place.parent if place.name.lower() in CONTENTS else place).as_posix()
        if name in found:
            message = f"{found[name]} and {folder} hold masks of one scan"
            raise RefusedError("E_DUPLICATE_ID", message, hint="move one of them away")
        found[name] = folder
    return found


def _drawn_pair(name: str, folder: Path) -> Pair:
    scan = folder.resolve().parent
    phase = scan / chaos.IMAGES / "InPhase"
    series = phase if phase.is_dir() else scan / chaos.IMAGES
    case = scan.name if name == "." else name
    subject = "/".join(part for part in Path(case).parts if part not in SEQUENCES)
    return Pair(case, subject, folder, folder, series)


def _score(pair: Pair, names: Mapping[int, str] | None, codes: Codes, tolerance_mm: float) -> PairScores:
    geometry, codes = _grid(pair, codes)
    reference = _read(pair.reference, pair, geometry, codes)
    try:
        prediction = _read(pair.prediction, pair, geometry, codes)
    except CaseError as error:
        if error.code != "E_LABEL_GEOMETRY":
            raise
        message = f"prediction {pair.prediction} does not fit reference {pair.reference}: {error.message}"
        raise CaseError(error.code, message, hint="resample the prediction to the reference's grid") from error
    values = _values(pair, {int(value) for labels in (prediction, reference) for value in np.unique(labels)}, names)
    spacing_mm = geometry.spacing_mm
    scores = score_masks(prediction, reference, values, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    return PairScores(pair.case, pair.subject, spacing_mm, scores)


def _values(pair: Pair, held: set[int], names: Mapping[int, str] | None) -> list[int]:
    """The values that are scored: those that the task names, or all that one of the maps holds."""
    if names is None:
        return sorted(held - {0})
    if strange := held - {0, *names}:
        message = f"{pair.case} holds the value {min(strange)}, which the task does not name"
        raise CaseError("E_LABEL_VALUES", message, hint="give another --task, or none")
    return [value for value, name in names.items() if name]


def _grid(pair: Pair, codes: Codes) -> tuple[Geometry, Codes]:
    """The grid of a pair's reference, and what its stored values mean."""
    if pair.series is None:
        return nifti.parse(pair.reference).geometry, codes
    if not pair.series.is_dir():
        message = f"{pair.reference} has no {chaos.IMAGES} beside it, which says how far its slices lie apart"
        raise CaseError("E_MISSING", message, hint="put the DICOM series there")
    series = dicom.select(pair.series, "")
    return dicom.stack(series)[1], ANY_GREY if series.modality == "CT" else chaos.MR_CODES


def _read(path: Path, pair: Pair, geometry: Geometry, codes: Codes) -> Labels:
    """A label map in class values; NIfTI may hold these, or the codes that its challenge has for them."""
    if path.is_dir():
        return read_label(LabelMap(path, codes=codes, drawn_on=pair.series), like=geometry)
    if codes and pair.series is None:
        try:
            return read_label(LabelMap(path, codes=codes), like=geometry)
        except CaseError as error:
            if error.code != "E_LABEL_VALUES":
                raise
    return read_label(LabelMap(path), like=geometry)


def _naming(task: str | None) -> tuple[dict[int, str] | None, Codes]:
    """Class names of a task, empty for what counts as background in it, and codes of its files; None for any."""
    if task is None:
        return None, ()
    declaration = declared(task)
    layout = declaration.layouts[0]
    if declaration.kind != "segmentation":
        raise RefusedError("E_CONFIG", f"task {task} has no masks", hint="give the task of the masks, or none")
    if layout not in LAYOUT_NAMES:
        return None, ()
    scored = declaration.structures
    names = {value: name if not scored or name in scored else "" for value, name in LAYOUT_NAMES[layout].items()}
    return names, LAYOUT_CODES.get(layout, ())
