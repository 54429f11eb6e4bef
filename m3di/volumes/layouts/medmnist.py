"""MedMNIST 3D files (https://medmnist.com): many volumes and their class in one .npz."""

from pathlib import Path

import numpy as np

from m3di.volumes.cases import Case, body_part_of, safe_id
from m3di.volumes.formats.npy import medmnist_arrays
from stores.errors import CaseError, RefusedError


def matches(root: Path) -> bool:
    """Whether this is a .npz file, or a folder with nothing but such."""
    return bool(_files(root))


def cases(root: Path) -> list[Case]:
    """Each volume of each split, with its class."""
    found = []
    for path in _files(root):
        try:
            shapes = medmnist_arrays(path)
        except CaseError as error:
            raise RefusedError(error.code, error.message, hint=error.hint) from error
        for name in sorted(name for name in shapes if name.endswith("_images") and len(shapes[name]) == 4):
            found += _split_cases(path, name.removesuffix("_images"), shapes)
    return found


def _split_cases(path: Path, split: str, shapes: dict[str, tuple[int, ...]]) -> list[Case]:
    count = shapes[f"{split}_images"][0]
    classes = [""] * count
    if shapes.get(f"{split}_labels", (0,))[0] == count:
        with np.load(path, allow_pickle=False) as arrays:
            classes = [str(int(value)) for value in arrays[f"{split}_labels"].reshape(count, -1)[:, 0]]
    return [
        Case(
            id=safe_id(f"{path.stem}_{split}_{index:04d}"),
            subject=safe_id(f"{path.stem}_{split}_{index:04d}"),
            dataset=path.stem,
            modality="unknown",
            body_part=body_part_of(path.stem),
            image=path,
            label=None,
            root=path.parent,
            member=f"{split}_images:{index}",
            attributes={"diagnosis": classes[index], "split": split},
        )
        for index in range(count)
    ]


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix == ".npz" else []
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    return entries if entries and all(path.suffix == ".npz" for path in entries) else []
