"""A case is one scan of one person, with or without a label map."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stores.errors import RefusedError
from stores.keys import check_volume_id

MODALITIES: Final = {
    "ct": "CT", "cta": "CT", "mr": "MR", "mri": "MR", "t1": "MR", "t2": "MR", "t1w": "MR", "t2w": "MR",
    "t2star": "MR", "pd": "MR", "pdw": "MR", "flair": "MR", "adc": "MR", "dwi": "MR", "t1gd": "MR", "t1ce": "MR",
    "t1c": "MR", "t1n": "MR", "t2f": "MR",
}  # fmt: skip
# Words for how an MR scan was weighted, as they are written.
SEQUENCES: Final = {
    word.lower(): word
    for word in ("T1", "T2", "T1w", "T2w", "T2star", "PD", "PDw", "FLAIR", "ADC", "DWI", "T1gd", "T1ce", "T1c", "T1n",
                 "T2f", "T1DUAL", "T2SPIR")
}  # fmt: skip
SEQUENCE: Final = re.compile(r"(?!.*\d{3})[A-Za-z0-9]{1,12}")
# Word -> part; the first word found in a text counts.
BODY_PARTS: Final = {
    "hippocampus": "hippocampus", "brain": "brain", "brats": "brain", "oasis": "brain", "head": "head",
    "heart": "heart", "cardiac": "heart", "atrium": "heart", "lung": "lung", "chest": "chest", "liver": "liver",
    "hepatic": "liver", "spleen": "spleen", "pancreas": "pancreas", "colon": "colon", "prostate": "prostate",
    "kidney": "kidney", "adrenal": "adrenal", "abdom": "abdomen", "spine": "spine", "knee": "knee",
    "pelvis": "pelvis",
}  # fmt: skip
ATTRIBUTES: Final = ("group", "cdr", "diagnosis")  # clinical columns that tasks read
MAX_ID: Final = 128


@dataclass(frozen=True)
class LabelMap:
    """A label map on the grid of its scan.

    Attributes:
        path: Its file; a folder of PNG masks when it was drawn on DICOM slices.
        names: Class name by class value, background left out.
        codes: (first, last, class) ranges of stored values; empty when stored values are class values.
        drawn_on: Folder of the DICOM series that the PNG masks belong to.
        rivals: Other files that could be the label map just as well; with any, the label map is refused.
        ignored: Class values of voxels that nobody labelled.
    """

    path: Path
    names: Mapping[int, str] = field(default_factory=dict)
    codes: tuple[tuple[int, int, int], ...] = ()
    drawn_on: Path | None = None
    rivals: tuple[Path, ...] = ()
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        id: Unique in its dataset, safe as a file name and key.
        subject: The person; splits are by subject.
        dataset: Name of the dataset.
        modality: `CT`, `MR` or `unknown`.
        body_part: What the dataset's name or its table says, or empty.
        image: The scan's file, or the folder of its DICOM series.
        label: Its label map, if it has one.
        root: The dataset's folder.
        member: Which scan in `image`, where that holds several: a series, or a volume of an array.
        attributes: Clinical columns (`ATTRIBUTES`) and the set's own split; never stored.
        sequence: How an MR scan was weighted, for example `T1w`; empty when not known.
    """

    id: str
    subject: str
    dataset: str
    modality: str
    body_part: str
    image: Path
    label: LabelMap | None
    root: Path
    member: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    sequence: str = ""

    @property
    def source(self) -> str:
        """The scan's path below the dataset's folder."""
        return self.image.relative_to(self.root).as_posix() if self.image != self.root else self.image.name


def modality_of(*texts: str) -> str:
    """Modality named by the first of the texts that names one: `CT`, `MR`, or `unknown` when it names both."""
    for text in texts:
        words = re.findall(r"[a-z0-9]+", text.lower())
        named = {MODALITIES[word] for word in words if word in MODALITIES}
        if named:
            return named.pop() if len(named) == 1 else "unknown"
    return "unknown"


def sequence_of(text: str) -> str:
    """MR sequence that `text` names, as it is written (`SEQUENCES`); empty when it names none, or several."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    named = {SEQUENCES[word] for word in words if word in SEQUENCES}
    return named.pop() if len(named) == 1 else ""


def body_part_of(text: str) -> str:
    """Body part that `text` names, empty when it names none."""
    return next((part for word, part in BODY_PARTS.items() if word in text.lower()), "")


def safe_id(stem: str) -> str:
    """A volume id from a file's stem: characters that an id may not hold become dashes.

    A stem that is too long, or that loses letters of another script, gets a digest at its end, so that different
    stems stay different ids.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip(".")
    if len(name) > MAX_ID or not stem.isascii():
        digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = f"{name[: MAX_ID - 13]}-{digest}"
    return check_volume_id(name)


def require_unique_ids(cases: Sequence[Case]) -> None:
    """Refuse cases of which two have the same id.

    Raises:
        RefusedError: E_DUPLICATE_ID, naming both scans.
    """
    counts = Counter(case.id for case in cases)
    for case in cases:
        if counts[case.id] > 1:
            places = " and ".join(f"{one.root.name}/{one.source}" for one in cases if one.id == case.id)
            message = f"{counts[case.id]} scans have the id {case.id!r}: {places}"
            raise RefusedError("E_DUPLICATE_ID", message, hint="rename them, or give ids in a CSV manifest")
