"""Medical Segmentation Decathlon: `dataset.json` lists the training images and their label maps.

A folder of such folders (3DSeg-8, the whole decathlon) is one dataset each, with its own modality and body part. The
entries of `test` are left out: what is held out for a test is no training data, not even without its label maps.
"""

import re
from pathlib import Path
from typing import Any, Final

from m3di.volumes.cases import Case, LabelMap, body_part_of, modality_of, safe_id, sequence_of
from m3di.volumes.layouts.names import stem_of, subject_of
from m3di.volumes.manifests import inside, read_json
from stores.errors import RefusedError

MANIFEST: Final = "dataset.json"
MAX_NAME: Final = 200
VALUE: Final = re.compile(r"[0-9]{1,3}")
IGNORE: Final = "ignore"


def matches(root: Path) -> bool:
    """Whether there is a manifest, here or in each of several folders below."""
    return bool(datasets(root))


def datasets(root: Path) -> list[Path]:
    """The folders with a manifest: the one given, or those directly below it."""
    folder = root.parent if root.name == MANIFEST else root
    if (folder / MANIFEST).is_file():
        return [folder]
    below = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    return [path for path in below if not path.name.startswith(".")]


def cases(root: Path) -> list[Case]:
    """The training cases of a dataset, or of each dataset below a folder."""
    return [case for folder in datasets(root) for case in _cases(folder)]


def label_names(manifest: dict[str, Any]) -> dict[int, str]:
    """Class name of each label value, background left out.

    Reads MSD's `{"1": "liver"}`, nnU-Net's `{"liver": 1}`, and its regions `{"tumour": [1, 2], "core": [2]}`, where a
    value gets the name of the smallest region that holds it.

    Raises:
        RefusedError: E_MANIFEST, when a name has no whole number from 0 to 255.
    """
    names: dict[int, str] = {}
    size: dict[int, int] = {}
    for key, value in mapping(manifest, "labels").items():
        listed = value if isinstance(value, list) else [value]
        name, values = (value, [key]) if VALUE.fullmatch(key) else (key, listed)
        for number in values:
            if not VALUE.fullmatch(str(number)) or int(number) > 255:
                message = f"label {str(name)[:40]!r} in {MANIFEST} has the value {str(number)[:40]!r}"
                raise RefusedError("E_MANIFEST", message, hint="label values are whole numbers from 0 to 255")
            if int(number) and str(name) != IGNORE and len(values) < size.get(int(number), 256):
                names[int(number)], size[int(number)] = str(name), len(values)
    return dict(sorted(names.items()))


def ignored_values(manifest: dict[str, Any]) -> tuple[int, ...]:
    """The value of voxels that nobody labelled, which nnU-Net names `ignore`; to be asked after `label_names`."""
    labels = mapping(manifest, "labels").items()
    found = {value if key == IGNORE else key for key, value in labels if IGNORE in (key, value)}
    return tuple(sorted(int(value) for value in found if VALUE.fullmatch(str(value))))


def dataset_name(manifest: dict[str, Any], folder: Path) -> str:
    """What the manifest calls the dataset, else the name of its folder.

    Raises:
        RefusedError: E_MANIFEST.
    """
    name = manifest.get("name") or folder.resolve().name
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
        message = f"'name' in {folder.name}/{MANIFEST} is no line of at most {MAX_NAME} characters"
        raise RefusedError("E_MANIFEST", message, hint="give the dataset a short name")
    return name


def mapping(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """An object in the manifest; empty when it is missing.

    Raises:
        RefusedError: E_MANIFEST.
    """
    value = manifest.get(name, {})
    if not isinstance(value, dict):
        raise RefusedError("E_MANIFEST", f"{name!r} in {MANIFEST} is not an object", hint="see the format's pages")
    return value


def _cases(folder: Path) -> list[Case]:
    manifest = read_json(folder / MANIFEST)
    name = dataset_name(manifest, folder)
    channels = " ".join(str(value) for value in mapping(manifest, "modality").values())
    modality, sequence = modality_of(channels), sequence_of(channels)
    names, ignored = label_names(manifest), ignored_values(manifest)
    entries = manifest.get("training")
    if not isinstance(entries, list):
        message = f"{folder.name}/{MANIFEST} has no list 'training'"
        hint = "MSD lists its scans there; nnU-Net names them imagesTr/<case>_0000, in a format that is read"
        raise RefusedError("E_MANIFEST", message, hint=hint)
    found = []
    for entry in entries:
        listed = entry if isinstance(entry, dict) else {"image": entry}
        # Links are `discover`'s affair: it knows whether they may lead out of the folder.
        image = inside(folder, listed.get("image"), links=True)
        path = inside(folder, listed["label"], links=True) if listed.get("label") else None
        label = LabelMap(path, names, ignored=ignored) if path else None
        stem = stem_of(image)
        part = body_part_of(f"{name} {folder.resolve().name}")
        found.append(
            Case(
                safe_id(stem), safe_id(subject_of(stem)), name, modality, part, image, label, folder,
                sequence=sequence,
            )
        )  # fmt: skip
    return found
