"""OASIS (https://www.oasis-brains.org): OASIS-1 as distributed for registration, and OASIS-2 with its clinical table.

`OASIS_OAS1_xxxx_MR1/aligned_norm.nii.gz` with `aligned_seg4.nii.gz` (Learn2Reg, neurite); `OAS2_xxxx_MR1/RAW/*` or
files named by session. Sessions of one person share the subject. A table in the folder gives group and CDR.
"""

import re
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, safe_id
from m3di.volumes.layouts.names import is_scan, labelled_scan, stem_of
from m3di.volumes.manifests import read_table

SESSION: Final = re.compile(r"(OAS[12]_\d{4})_MR\d")
NAMES: Final = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "cerebrospinal fluid"}
SCAN, LABELS = "aligned_norm", "aligned_seg4"
ID_COLUMNS: Final = ("MRI ID", "ID")


def matches(root: Path) -> bool:
    """Whether folders or scans are named by OASIS sessions."""
    named = (path for path in root.glob("*") if SESSION.search(path.name)) if root.is_dir() else ()
    return any(path.is_dir() or is_scan(path) for path in named)


def cases(root: Path) -> list[Case]:
    """Every scan of every session; where there is an aligned one, that one alone."""
    clinical = _clinical(root)
    found = []
    for entry in sorted(path for path in root.glob("*") if SESSION.search(path.name)):
        session, subject = (SESSION.search(entry.name) or [""])[0], (SESSION.search(entry.name) or ["", ""])[1]
        files = sorted(path for path in entry.rglob("*") if is_scan(path)) if entry.is_dir() else [entry]
        files = [path for path in files if is_scan(path)]
        aligned = [path for path in files if stem_of(path) == SCAN]
        labels = [path for path in files if stem_of(path) == LABELS]
        scans = aligned or [path for path in files if labelled_scan(stem_of(path)) is None]
        for path in scans:
            suffix = "" if len(scans) == 1 else f"_{stem_of(path)}"
            found.append(
                Case(
                    id=safe_id(f"{session}{suffix}"),
                    subject=subject,
                    dataset="OASIS-1" if subject.startswith("OAS1") else "OASIS-2",
                    modality="MR",
                    body_part="brain",
                    image=path,
                    label=LabelMap(labels[0], NAMES) if aligned and labels else None,
                    root=root,
                    attributes=clinical.get(session, {}),
                )
            )
    return found


def _clinical(root: Path) -> dict[str, dict[str, str]]:
    """Group and CDR of each session, from the tables that stand in the folder."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(root.glob("*.csv")):
        for row in read_table(path):
            session = next((row[column] for column in ID_COLUMNS if column in row), "")
            if SESSION.fullmatch(session):
                found[session] = {name.lower(): row[name] for name in ("Group", "CDR") if row.get(name)}
    return found
