"""CHAOS challenge (https://chaos.grand-challenge.org): CT and MR DICOM series, label maps as PNG slices.

`CT/<id>/DICOM_anon/*.dcm` with `Ground/*.png` (liver 255), `MR/<id>/T1DUAL/DICOM_anon/{InPhase,OutPhase}` and
`MR/<id>/T2SPIR/DICOM_anon` with grey values of four organs. CT and MR come from different people.
"""

from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, safe_id, sequence_of

NAMES: Final = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
MR_CODES: Final = ((55, 70, 1), (110, 135, 2), (175, 200, 3), (240, 255, 4))
CT_CODES: Final = ((255, 255, 1),)
IMAGES, LABELS = "DICOM_anon", "Ground"


def matches(root: Path) -> bool:
    """Whether there are patients' folders as the challenge lays them out."""
    return any(True for _, person in _people(root) for _ in _series(person))


def cases(root: Path) -> list[Case]:
    """Every series: CT, T1 in phase, T1 out of phase, T2 SPIR."""
    return [
        _case(root, series, modality, person, suffix)
        for modality, person in _people(root)
        for series, suffix in _series(person)
    ]


def _people(root: Path) -> list[tuple[str, Path]]:
    """(modality, folder) of each person; the root is the challenge's, `Train_Sets`, `Test_Sets`, `CT` or `MR`."""
    folders = [(kind, root / top / kind) for top in ("", "Train_Sets", "Test_Sets") for kind in ("CT", "MR")]
    if root.resolve().name in ("CT", "MR"):
        folders.append((root.resolve().name, root))
    return [(kind, person) for kind, folder in folders for person in sorted(folder.glob("[!.]*")) if person.is_dir()]


def _series(person: Path) -> list[tuple[Path, str]]:
    """(folder, ending of its id) of each series of a person."""
    dual = person / "T1DUAL" / IMAGES
    places = [
        (person / IMAGES, ""),
        (dual / "InPhase", "_t1dual_inphase"),
        (dual / "OutPhase", "_t1dual_outphase"),
        (person / "T2SPIR" / IMAGES, "_t2spir"),
    ]
    return [(folder, ending) for folder, ending in places if folder.is_dir()]


def _case(root: Path, series: Path, modality: str, person: Path, suffix: str) -> Case:
    images = next(path for path in (series, *series.parents) if path.name == IMAGES)
    masks = images.parent / LABELS
    codes = CT_CODES if modality == "CT" else MR_CODES
    names = {value: NAMES[value] for _, _, value in codes}
    subject = safe_id(f"chaos_{modality.lower()}_{person.name}")
    label = LabelMap(masks, names, codes, drawn_on=series) if masks.is_dir() else None
    sequence = sequence_of(suffix)
    name = safe_id(f"{subject}{suffix}")
    return Case(name, subject, "CHAOS", modality, "abdomen", series, label, root, sequence=sequence)
