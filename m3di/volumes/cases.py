"""A case is one scan of one person, with or without a label map."""

import re
from dataclasses import dataclass
from pathlib import Path

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
