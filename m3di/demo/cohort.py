"""The demo's cohort: real MRI, multiplied by known deformations.

The source is the ICBM 152 non-linear symmetric 2009a template (Fonov et al., NeuroImage 47, 2009, S102) that
the package `nilearn` ships: a skull-stripped T1 average of 152 adults with its grey- and white-matter maps.
Each case samples it through its own smooth displacement, with its own contrast, bias field and noise. All cases
share one anatomy, so the cohort shows that the software works; it proves nothing about generalisation.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import SimpleITK as sitk

from m3di.demo.variation import Array, Template, draw, render
from stores.atomic import write_folder
from stores.errors import RefusedError
from stores.geometry import Geometry

LABELS: Final = {"0": "background", "1": "grey matter", "2": "white matter", "3": "cerebrospinal fluid"}

_SCHEMA = "m3di.cohort/1"
_VERSION = 1  # raise whenever the same parameters would give other bytes
_FACTS = "cohort.json"
_MAPS = ("t1", "gm", "wm")
_LPS = np.array([-1.0, -1.0, 1.0])  # SimpleITK counts mm to the left and to posterior, we to right and anterior
_STORED_AS = ("RAS", "RAS", "RAS", "LPS", "RAS", "RAS", "RAS", "PIR")  # array orientation, by case, repeating
_REFERENCE = "Fonov et al., Unbiased nonlinear average age-appropriate brain templates, NeuroImage 47 (2009) S102"
_LICENCE = (
    "ICBM 152 template, copyright 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal "
    "Neurological Institute, McGill University: use, copying, modification and distribution permitted with "
    "this notice"
)


@dataclass(frozen=True)
class _Parameters:
    """Everything that determines the cohort's bytes."""

    num_cases: int
    seed: int
    spacing_mm: float
    version: int = _VERSION


def make_cohort(root: Path, *, num_cases: int = 24, seed: int = 0, spacing_mm: float = 2.0) -> Path:
    """Write the demo's brains in the layout of the Medical Segmentation Decathlon, or reuse them.

    A case depends on `seed`, `spacing_mm` and its number only, so a larger cohort starts with the smaller one.
    Of eight cases one is stored with axes that point to LPS and one to PIR, the others to RAS.

    Args:
        root: Folder of the dataset; new, empty, or an earlier cohort of the same parameters.
        num_cases: Number of cases, 1 to 999.
        seed: Non-negative seed of all variation.
        spacing_mm: Edge of the isotropic voxels, 1 to 8 mm.

    Returns:
        `root`, complete: dataset.json, imagesTr, labelsTr and the facts in cohort.json.

    Raises:
        RefusedError: E_CONFIG for parameters out of range, E_PATH when `root` holds something else, E_MISSING
            when nilearn is not installed.
    """
    parameters = _Parameters(num_cases, seed, float(spacing_mm))
    _check_parameters(parameters)
    if not _is_written(root, parameters):
        write_folder(root, partial(_write_dataset, parameters=parameters))
    return root


def _check_parameters(parameters: _Parameters) -> None:
    ranges = {"num_cases": (1, 999), "seed": (0, 2**63 - 1), "spacing_mm": (1.0, 8.0)}
    for name, (low, high) in ranges.items():
        value = getattr(parameters, name)
        if not low <= value <= high:
            raise RefusedError(
                "E_CONFIG",
                f"{name} of the demo cohort is {value}",
                hint=f"choose {name} from {low} to {high}",
            )


def _is_written(root: Path, parameters: _Parameters) -> bool:
    """Whether `root` is the complete cohort of these parameters; refuse to overwrite anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    facts = _read_facts(root / _FACTS)
    if facts.get("parameters") == asdict(parameters) and all((root / name).is_file() for name in facts["files"]):
        return True
    raise RefusedError(
        "E_PATH",
        f"{root} is not empty and is not the complete demo cohort of {asdict(parameters)}",
        hint="choose another folder, or remove this one",
    )


def _read_facts(path: Path) -> Mapping[str, Any]:
    """Read cohort.json; a file that is absent or not ours has no facts."""
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) and facts.get("schema") == _SCHEMA else {}


def _write_dataset(root: Path, parameters: _Parameters) -> None:
    sources = _template_files()
    template = _read_template(sources).smoothed(parameters.spacing_mm)
    cases = {}
    for number in range(1, parameters.num_cases + 1):
        cases[f"brain_{number:03d}"] = _write_case(root, number, template, parameters)
    pairs = [{part: f"./{part}sTr/{name}.nii.gz" for part in ("image", "label")} for name in cases]
    _write_json(root / "dataset.json", _dataset_facts(pairs))
    files = ["dataset.json", *(path.removeprefix("./") for pair in pairs for path in pair.values())]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources.values()}
    facts = {"schema": _SCHEMA, "parameters": asdict(parameters), "files": files, "cases": cases}
    _write_json(root / _FACTS, {**facts, "template_sha256": digests})


def _dataset_facts(pairs: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "name": "m3di demo brains",
        "description": "Deformed copies of one MNI152 template, to show that the software works",
        "reference": _REFERENCE,
        "licence": _LICENCE,
        "release": f"{_VERSION}.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": len(pairs),
        "numTest": 0,
        "training": pairs,
        "test": [],
    }


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _template_files() -> dict[str, Path]:
    """Find nilearn's template without importing nilearn, which takes seconds."""
    spec = importlib.util.find_spec("nilearn")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    names = {part: f"datasets/data/mni_icbm152_{part}_tal_nlin_sym_09a_converted.nii.gz" for part in _MAPS}
    for location in locations:
        files = {part: Path(location) / name for part, name in names.items()}
        if all(path.is_file() for path in files.values()):
            return files
    raise RefusedError(
        "E_MISSING",
        "the package nilearn with its MNI152 template is not installed",
        hint='pip install "m3di[demo]"',
    )


def _read_template(files: Mapping[str, Path]) -> Template:
    images = {part: sitk.DICOMOrient(sitk.ReadImage(str(path)), "RAS") for part, path in files.items()}
    t1, grey, white = (sitk.GetArrayFromImage(images[part]).T.astype(np.float32) / 255 for part in _MAPS)
    brain = t1 > 0  # the template is skull-stripped
    # What is brain and neither grey nor white is CSF. The T1 agrees: the median of such voxels is 102 of 255
    # (grey matter 169, white matter 215), at the brain's rim as much as in the ventricles.
    channels = np.stack([t1, np.clip(1 - grey - white, 0, 1), grey, white]) * brain
    affine = np.eye(4)
    affine[:3, 3] = np.multiply(images["t1"].GetOrigin(), _LPS)
    return Template(channels, Geometry(t1.shape, affine))


def _write_case(root: Path, number: int, template: Template, parameters: _Parameters) -> dict[str, Any]:
    """Write one case's image and labels and return its facts."""
    rng = np.random.default_rng([parameters.seed, number])
    variation = draw(rng)
    grid = template.grid(parameters.spacing_mm)
    orientation = _STORED_AS[(number - 1) % len(_STORED_AS)]
    image, labels = render(template, variation, grid, rng)
    for folder, array in (("imagesTr", image), ("labelsTr", labels)):
        path = root / folder / f"brain_{number:03d}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        _write_nifti(path, array, grid, orientation)
    return {"orientation": orientation, **variation.to_dict()}


def _write_nifti(path: Path, array: Array, grid: Geometry, orientation: str) -> None:
    """Write an array of RAS axes so that the file's own axes point to `orientation`."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin((grid.affine[:3, 3] * _LPS).tolist())
    image.SetDirection(np.diag(_LPS).ravel().tolist())
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(path), useCompression=True)
