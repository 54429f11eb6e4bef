"""CHAOS challenge (https://chaos.grand-challenge.org): CT and MR DICOM series, label maps as PNG slices.

`CT/<id>/DICOM_anon/*.dcm` with `Ground/*.png` (liver 255), `MR/<id>/T1DUAL/DICOM_anon/{InPhase,OutPhase}` and
`MR/<id>/T2SPIR/DICOM_anon` with grey values of four organs. CT and MR come from different people.
"""

from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, safe_id

NAMES: Final = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
MR_CODES: Final = ((55, 70, 1), (110, 135, 2), (175, 200, 3), (240, 255, 4))
CT_CODES: Final = ((255, 255, 1),)
IMAGES, LABELS = "DICOM_anon", "Ground"


def matches(root: Path) -> bool:
    """Whether there are patients' folders as the challenge lays them out."""
    return root.is_dir() and any(True for top in _tops(root) for _ in top.glob(f"*/*/**/{IMAGES}"))


def cases(root: Path) -> list[Case]:
    """Every series: CT, T1 in phase, T1 out of phase, T2 SPIR."""
    found = []
    for top in _tops(root):
        for person in sorted((top / "CT").glob("*")):
            if (person / IMAGES).is_dir():
                found.append(_case(root, person / IMAGES, "CT", person, ""))
        for person in sorted((top / "MR").glob("*")):
            for phase in ("InPhase", "OutPhase"):
                if (series := person / "T1DUAL" / IMAGES / phase).is_dir():
                    found.append(_case(root, series, "MR", person, f"_t1dual_{phase.lower()}"))
            if (series := person / "T2SPIR" / IMAGES).is_dir():
                found.append(_case(root, series, "MR", person, "_t2spir"))
    return found


def _tops(root: Path) -> list[Path]:
    """Folders that hold `CT` and `MR`: the root, `Train_Sets`, `Test_Sets`."""
    tops = [root, root / "Train_Sets", root / "Test_Sets"]
    return [top for top in tops if (top / "CT").is_dir() or (top / "MR").is_dir()]


def _case(root: Path, series: Path, modality: str, person: Path, suffix: str) -> Case:
    images = next(path for path in (series, *series.parents) if path.name == IMAGES)
    masks = images.parent / LABELS
    codes = CT_CODES if modality == "CT" else MR_CODES
    names = {value: NAMES[value] for _, _, value in codes}
    subject = safe_id(f"chaos_{modality.lower()}_{person.name}")
    label = LabelMap(masks, names, codes, drawn_on=series) if masks.is_dir() else None
    return Case(safe_id(f"{subject}{suffix}"), subject, "CHAOS", modality, "abdomen", series, label, root)
