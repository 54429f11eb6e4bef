"""MedMNIST 3D files (https://medmnist.com): many volumes and their class in one .npz."""

import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np

from m3di.volumes.cases import Case, safe_id
from m3di.volumes.formats import dicom
from m3di.volumes.formats.npy import medmnist_arrays
from m3di.volumes.layouts.names import is_scan
from stores.errors import CaseError, RefusedError

MAX_CASES: Final = 100_000
BODY_PARTS: Final = {
    "adrenal": "adrenal", "organ": "abdomen", "nodule": "lung", "fracture": "chest", "vessel": "brain"
}  # fmt: skip


def matches(root: Path) -> bool:
    """Whether this is a .npz file, or a folder with such and no other scans."""
    return bool(_files(root))


def cases(root: Path) -> list[Case]:
    """Each volume of each split, with its class."""
    found = []
    for path in _files(root):
        try:
            shapes = medmnist_arrays(path)
        except CaseError as error:
            raise RefusedError(error.code, error.message, hint=error.hint) from error
        for name in sorted(name for name in shapes if name.endswith("_images")):
            shape = shapes[name]
            if len(shape) != 4 or len(set(shape[1:])) != 1:
                continue  # pictures: MedMNIST's volumes are cubes
            if shape[0] > MAX_CASES:
                message = f"{path.name} declares {shape[0]} volumes in {name}"
                raise RefusedError("E_TOO_LARGE", message, hint=f"at most {MAX_CASES} are read")
            found += _split_cases(path, name.removesuffix("_images"), shapes)
    return found


def _split_cases(path: Path, split: str, shapes: dict[str, tuple[int, ...]]) -> list[Case]:
    count = shapes[f"{split}_images"][0]
    labelled = shapes.get(f"{split}_labels") in ((count,), (count, 1))
    classes = _classes(path, f"{split}_labels", count) if labelled else []
    return [
        Case(
            id=safe_id(f"{path.stem}_{split}_{index:04d}"),
            subject=safe_id(f"{path.stem}_{split}_{index:04d}"),
            dataset=path.stem,
            modality="unknown",
            body_part=next((part for word, part in BODY_PARTS.items() if word in path.stem), ""),
            image=path,
            label=None,
            root=path.parent,
            member=f"{split}_images:{index}",
            attributes={"split": split, **({"diagnosis": str(classes[index])} if classes else {})},
        )
        for index in range(count)
    ]


def _classes(path: Path, name: str, count: int) -> list[int]:
    """The class of each volume.

    Raises:
        RefusedError: E_CORRUPT.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [int(value) for value in arrays[name].reshape(count)]
    except (ValueError, OverflowError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        message = f"{path.name} has an array {name} that cannot be read"
        raise RefusedError("E_CORRUPT", message, hint="download it again") from error


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix == ".npz" else []
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    found = [path for path in entries if path.suffix == ".npz"]
    if found and any(path.is_dir() or is_scan(path) or dicom.is_dicom(path) for path in entries if path not in found):
        return []
    return found
