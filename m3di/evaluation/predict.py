"""Predictions of scans: masks on the scanner's own grid, or class probabilities, each scan by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from m3di.config import PredictConfig
from m3di.evaluation.dicom_seg import require_highdicom
from m3di.evaluation.inference import Predictor, allowed_mirrors, load_predictor, same_task
from m3di.evaluation.mask_files import SUFFIXES, MaskFiles
from m3di.evaluation.outputs import Outputs, write_note, write_table
from m3di.events import Report
from m3di.training import checkpoint
from m3di.training.repeats import runs_of
from m3di.volumes import preprocess, readers
from m3di.volumes.cases import Case
from m3di.volumes.layouts import survey
from stores.errors import CaseError, RefusedError
from stores.recipe import digest_of

VERSION: Final = 1  # raise when the same scan, weights and settings would give other files


@dataclass(frozen=True)
class Predictions:
    """What was predicted.

    Attributes:
        written: The masks, or the one table of a classification.
        notes: What is known of each scan that was predicted; see `m3di.evaluation.outputs`.
        refused: Why each other scan was refused: case, code, message.
    """

    written: tuple[Path, ...]
    notes: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, str], ...]


def predict_scans(
    scans: Sequence[Path],
    runs: Sequence[Path],
    out: Path,
    *,
    settings: PredictConfig | None = None,
    device: str = "auto",
    named: str = "",
    report: Report,
) -> Predictions:
    """Predict every scan; what is there already, of the same scan, weights and settings, is left alone.

    Args:
        scans: Files, folders of scans, DICOM series.
        runs: Fine-tuning runs of one task; several, or the repeats in one, are averaged.
        out: A folder; for a classification also a `.csv` or `.tsv` file.
        settings: See `PredictConfig`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        named: As for `load_network`.
        report: Receives the events.

    Raises:
        RefusedError: Before anything is written, when a path or a run is wrong, or two ids are equal.
    """
    settings = settings or PredictConfig()
    cases = [case for found in survey(scans) for case in found.cases]
    predictor = load_ensemble(runs, settings, device=device, named=named)
    outputs = _outputs(out, predictor, cases)
    if settings.format == "dicom-seg":
        require_highdicom()
    if outputs.folder is not None:
        outputs.folder.mkdir(parents=True, exist_ok=True)
    report("begin", stage="predict", cases=len(cases))
    for weights in predictor.weights:
        report("weights", used=str(weights))
    notes, refused = [], []
    for case in cases:
        try:
            notes.append(_predict(case, predictor, outputs, settings, report))
        except CaseError as error:
            refused.append({"case": case.id, "code": error.code, "message": error.message})
            report("quarantined", volume=case.id, code=error.code, message=error.message)
    if predictor.kind == "classification" and notes:
        write_table(outputs.table, list(predictor.classes.values()), notes)
        return Predictions((outputs.table,), tuple(notes), tuple(refused))
    masks = tuple(outputs.mask(note["case"], suffix=SUFFIXES[settings.format]) for note in notes)
    return Predictions(masks, tuple(notes), tuple(refused))


def load_ensemble(runs: Sequence[Path], settings: PredictConfig, *, device: str, named: str = "") -> Predictor:
    """The networks of several runs, or of one, as the settings want them.

    Raises:
        RefusedError: E_CONFIG, when the runs do not fit together, or uncertainty needs more of them.
        DamagedError: E_WEIGHTS, when weights are damaged.
    """
    found = [checkpoint.load(path, kind="finetune") for run in runs for path in runs_of(run)]
    same_task(found)
    if settings.uncertainty == "runs" and len(found) < 2:
        message = f"predict.uncertainty=runs needs several runs, and {runs[0]} is one"
        raise RefusedError("E_CONFIG", message, hint="give more by --run, or train with --repeats")
    every = [load_predictor(one, device=device, named=named) for one in found]
    return replace(
        every[0],
        networks=tuple(network for one in every for network in one.networks),
        weights=tuple(weights for one in every for weights in one.weights),
        mirrors=allowed_mirrors(found[0]) if settings.uncertainty == "flips" else ((),),
        measures_uncertainty=settings.uncertainty != "none",
        windows_beyond=settings.windows_beyond,
        overlap=settings.overlap,
    )


def _outputs(out: Path, predictor: Predictor, cases: Sequence[Case]) -> Outputs:
    outputs = Outputs.at(out)
    if outputs.folder is None and predictor.kind == "segmentation":
        raise RefusedError("E_PATH", f"--out {out} is a table, and the run makes masks", hint="give a folder")
    if outputs.folder is not None and out.exists() and not out.is_dir():
        raise RefusedError("E_PATH", f"--out {out} is a file", hint="give a folder")
    inputs = [case.image for case in cases] + [case.label.path for case in cases if case.label is not None]
    outputs.require_free(inputs, [case.id for case in cases])
    return outputs


def _predict(
    case: Case, predictor: Predictor, outputs: Outputs, settings: PredictConfig, report: Report
) -> dict[str, Any]:  # fmt: skip
    """Predict one scan; returns its note."""
    key = _key(case, predictor, settings)
    if (note := outputs.done(case.id, key)) is not None:
        report("up to date", volume=case.id, stage="predict")
        return note
    modality = predictor.modality if case.modality == "unknown" else case.modality
    volume = readers.read_volume(case.image, modality=modality, member=case.member)
    doubts = predictor.doubts(volume)
    for doubt in doubts:
        report("warning", volume=case.id, message=f"unlike the training data: {doubt}")
    common = {
        "key": key, "case": case.id, "scan": case.source, "task": predictor.kind, "warnings": doubts,
        "weights": [asdict(one) for one in predictor.weights],
    }  # fmt: skip
    if predictor.kind == "classification":
        note = {**common, **_classify(volume, predictor), "files": {}}
    else:
        if windows := predictor.windows(volume):
            width_mm = round(predictor.edges_mm["median"], 1)
            report("windows", volume=case.id, windows=len(windows), width_mm=width_mm)
        note = {**common, **MaskFiles(predictor, outputs, settings).write(case, volume)}
    if outputs.folder is not None:
        write_note(outputs.note(case.id), note)
    report("committed", volume=case.id, stage="predict")
    return note


def _classify(volume: readers.Volume, predictor: Predictor) -> dict[str, Any]:
    scores = predictor.scores(preprocess.make_cube(volume, predictor.recipe).data)
    names = list(predictor.classes.values())
    probabilities = scores[: len(names)]
    return {
        "classes": names,
        "class": names[int(probabilities.argmax())],
        "probabilities": [float(value) for value in probabilities],
        "uncertainty": float(scores[-1]) if predictor.measures_uncertainty else None,
    }


def _key(case: Case, predictor: Predictor, settings: PredictConfig) -> str:
    """Digest of everything that a scan's files are made of."""
    parts: Mapping[str, Any] = {
        "version": VERSION,
        "scan": readers.content_digest(case.image, case.member),
        "modality": case.modality,
        "weights": [one.sha256 for one in predictor.weights],
        "classes": {str(value): name for value, name in predictor.classes.items()},
        "recipe": predictor.recipe.to_dict(),
        "settings": asdict(settings),
    }
    return digest_of(parts)
