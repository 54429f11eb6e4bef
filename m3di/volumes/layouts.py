"""How datasets lie on disk: `discover` finds the cases, one function a layout gives them in a fixed order."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from m3di.volumes.cases import Case, body_part_of, modality_of, safe_id
from stores.errors import RefusedError

SCAN_SUFFIXES: Final = (".nii.gz", ".nii")
LABEL_STEM: Final = re.compile(r"(?P<scan>.+)[_-](seg|label|labels|gt|mask)", re.IGNORECASE)
SUBJECT: Final = re.compile(r"(sub-[A-Za-z0-9]+|patient\d+)")
MANIFEST: Final = "dataset.json"


def detect(root: Path) -> str:
    """Name of the layout of `root`."""
    is_msd = root.name == MANIFEST or (root / MANIFEST).is_file()
    return "msd" if is_msd else "folder"


def msd(root: Path) -> list[Case]:
    """Medical Segmentation Decathlon: `dataset.json` lists the training images and their label maps."""
    folder = root.parent if root.name == MANIFEST else root
    manifest = _manifest(folder)
    name = str(manifest.get("name", folder.name))
    modality = modality_of(" ".join(str(value) for value in _mapping(manifest, "modality").values()))
    cases = []
    for entry in manifest.get("training", []):
        listed = entry if isinstance(entry, dict) else {"image": entry}
        image = _inside(folder, listed.get("image"))
        label = _inside(folder, listed["label"]) if listed.get("label") else None
        stem = _stem(image)
        cases.append(Case(safe_id(stem), _subject(stem), name, modality, body_part_of(name), image, label, folder))
    return cases


def folder(root: Path) -> list[Case]:
    """Every NIfTI file below a folder, or one file; `X_seg`, `X_label`, `X_gt` and `X_mask` are label maps of `X`."""
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if _is_scan(path))
    base = root.parent if root.is_file() else root
    labels = {}
    for path in files:
        match = LABEL_STEM.fullmatch(_stem(path))
        if match and len(files) > 1:
            labels[path.parent, match["scan"]] = path
    scans = [path for path in files if path not in labels.values()]
    name = base.resolve().name
    return [
        Case(
            id=safe_id(_stem(path)),
            subject=_subject(_stem(path)),
            dataset=name,
            modality=modality_of(f"{name} {_stem(path)}"),
            body_part=body_part_of(f"{name} {_stem(path)}"),
            image=path,
            label=labels.get((path.parent, _stem(path))),
            root=base,
        )
        for path in scans
    ]


LAYOUTS: Final[dict[str, Callable[[Path], list[Case]]]] = {"msd": msd, "folder": folder}


def discover(root: Path, *, layout: str = "auto") -> list[Case]:
    """Find the cases of a dataset.

    Args:
        root: A dataset's folder, its `dataset.json`, a folder of scans, or one scan.
        layout: `auto`, or the name of a layout.

    Raises:
        RefusedError: E_MISSING, E_FORMAT, E_MANIFEST, E_PATH or E_DUPLICATE_ID.
    """
    if not root.exists():
        raise RefusedError("E_MISSING", f"{root} does not exist", hint="check the path of the dataset or scan")
    name = detect(root) if layout == "auto" else layout
    if name not in LAYOUTS:
        hint = f"this version knows auto, {', '.join(LAYOUTS)}"
        raise RefusedError("E_CONFIG", f"no layout is called {name!r}", hint=hint)
    cases = LAYOUTS[name](root)
    if not cases:
        hint = "NIfTI files (.nii, .nii.gz) are looked for, in a folder or as an MSD dataset.json lists them"
        raise RefusedError("E_FORMAT", f"no scan found in {root}", hint=hint)
    _require_unique(cases)
    return cases


def label_names(root: Path) -> dict[int, str]:
    """Class name of each label value that `dataset.json` names, background included; empty without the file.

    Reads both forms: MSD's `{"1": "liver"}` and nnU-Net's `{"liver": 1}`.

    Raises:
        RefusedError: E_MANIFEST, when a name has no whole number.
    """
    if not (root / MANIFEST).is_file():
        return {}
    names = {}
    for key, value in _mapping(_manifest(root), "labels").items():
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if not str(number).isdigit():
            message = f"{root / MANIFEST}: label {name!r} has the value {number!r}"
            raise RefusedError("E_MANIFEST", message, hint="label values are whole numbers from 0 to 255")
        names[int(number)] = str(name)
    return names


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: _unique_keys(pairs, path))
    except FileNotFoundError as error:
        raise RefusedError("E_MISSING", f"{path} is missing", hint="an MSD dataset has a dataset.json") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError("E_MANIFEST", f"{path} is not valid JSON: {error}", hint="correct the file") from error
    if not isinstance(manifest, dict):
        raise RefusedError("E_MANIFEST", f"{path} does not hold a JSON object", hint="see the MSD format")
    return manifest


def _unique_keys(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError("E_MANIFEST", f"{path} has the key {twice!r} twice", hint="remove one of the two")
    return unique


def _mapping(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    value = manifest.get(name, {})
    if not isinstance(value, dict):
        raise RefusedError("E_MANIFEST", f"{name!r} in {MANIFEST} is not an object", hint="see the MSD format")
    return value


def _inside(folder: Path, name: object) -> Path:
    """The file that a manifest names, which must lie inside the dataset's folder."""
    if not isinstance(name, str) or not name:
        raise RefusedError("E_MANIFEST", f"a training entry names {name!r}", hint="entries have an image path")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RefusedError("E_PATH", f"{name!r} leads out of the dataset's folder", hint="use paths below it")
    return path


def _is_scan(path: Path) -> bool:
    return path.name.lower().endswith(SCAN_SUFFIXES) and not path.name.startswith(".") and path.is_file()


def _stem(path: Path) -> str:
    name = path.name
    for suffix in SCAN_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def _subject(stem: str) -> str:
    """The person that a file name stands for: its `sub-` or `patient` part, else the whole stem."""
    match = SUBJECT.match(stem)
    return match[1] if match else stem


def _require_unique(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            message = f"two scans have the id {case.id!r}: {seen[case.id].image} and {case.image}"
            raise RefusedError("E_DUPLICATE_ID", message, hint="rename one of them")
        seen[case.id] = case
