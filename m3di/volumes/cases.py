"""A case is one scan of one person, with or without a label map; `discover` finds the cases of a dataset."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stores.errors import RefusedError
from stores.keys import check_volume_id

MODALITIES = {"ct": "CT", "mr": "MR", "mri": "MR", "t1": "MR", "t2": "MR", "flair": "MR"}
BODY_PARTS = (
    "hippocampus", "brain", "head", "heart", "cardiac", "lung", "chest", "liver", "spleen", "pancreas", "colon",
    "prostate", "kidney", "adrenal", "abdomen", "spine", "knee", "pelvis",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        id: Unique in its dataset, safe as a file name and key.
        subject: The person; splits are by subject.
        dataset: Name of the dataset.
        modality: `CT`, `MR` or `unknown`.
        body_part: A known word of the dataset's name, or empty.
        image: The scan's file.
        label: Its label map's file, if it has one.
        root: The dataset's folder.
    """

    id: str
    subject: str
    dataset: str
    modality: str
    body_part: str
    image: Path
    label: Path | None
    root: Path


def discover(root: Path, *, layout: str = "auto") -> list[Case]:
    """Find the cases of a dataset.

    Args:
        root: A dataset's folder, its `dataset.json`, a folder of scans, or one scan.
        layout: `auto`, or the name of a layout.

    Raises:
        RefusedError: E_MISSING, E_FORMAT, E_MANIFEST, E_PATH or E_DUPLICATE_ID.
    """
    from m3di.volumes.layouts import LAYOUTS, detect

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


def modality_of(text: str) -> str:
    """Modality named by a word of `text`: `CT`, `MR` or `unknown`."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return next((MODALITIES[word] for word in words if word in MODALITIES), "unknown")


def body_part_of(text: str) -> str:
    """Body part that `text` names, empty when it names none."""
    return next((part for part in BODY_PARTS if part in text.lower()), "")


def safe_id(stem: str) -> str:
    """A volume id from a file's stem: characters that an id may not hold become dashes."""
    return check_volume_id(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip(".")[:128])


def _require_unique(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            message = f"two scans have the id {case.id!r}: {seen[case.id].image} and {case.image}"
            raise RefusedError("E_DUPLICATE_ID", message, hint="rename one of them")
        seen[case.id] = case
