"""OASIS (https://www.oasis-brains.org): OASIS-1 as distributed for registration, and OASIS-2 with its clinical table.

`OASIS_OAS1_xxxx_MR1/aligned_norm.nii.gz` with `aligned_seg4.nii.gz` (Learn2Reg, neurite), whose other files are the
same scan again; `OAS2_xxxx_MR1/RAW/*`, in the folder or in its parts (`OAS2_RAW_PART1`), or files named by session.
Sessions of one person share the subject. Tables in the folder give group and CDR.
"""

import re
from pathlib import Path
from typing import Final

from m3di.volumes.cases import ATTRIBUTES, Case, LabelMap, safe_id
from m3di.volumes.layouts.names import is_scan, labelled_scan, stem_of
from m3di.volumes.manifests import read_table
from stores.errors import RefusedError

SESSION: Final = re.compile(r"(?P<subject>OAS[12]_\d{4})_MR\d")
NAMES: Final = {1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "cerebrospinal fluid"}
ALIGNED: Final = "OASIS_"  # how the folders of the set for registration begin
SCAN, LABELS = "aligned_norm.nii.gz", "aligned_seg4.nii.gz"
ID_COLUMNS: Final = ("MRI ID", "ID")


def matches(root: Path) -> bool:
    """Whether folders or scans are named by OASIS sessions."""
    return bool(_sessions(root))


def cases(root: Path) -> list[Case]:
    """Every scan of every session; the aligned one alone in the set for registration."""
    clinical = _clinical(root)
    found = []
    for entry, session, subject in _sessions(root):
        aligned = entry.is_dir() and (entry.name.startswith(ALIGNED) or (entry / SCAN).exists())
        for path in [entry / SCAN] if aligned else _scans(entry):
            label = path.with_name(LABELS)
            found.append(
                Case(
                    id=safe_id(_id(path, session, aligned=aligned)),
                    subject=subject,
                    dataset="OASIS-1" if subject.startswith("OAS1") else "OASIS-2",
                    modality="MR",
                    body_part="brain",
                    image=path,
                    label=LabelMap(label, NAMES) if aligned and label.exists() else None,
                    root=root,
                    attributes=clinical.get(session, {}),
                )
            )
    return found


def _sessions(root: Path) -> list[tuple[Path, str, str]]:
    """(folder or scan, session, subject) of what a session names: the root, or entries of it or of its parts."""
    if not root.is_dir():
        return []
    for paths in ([root.resolve()], root.glob("*"), root.glob("[!.]*/*")):
        found = [(path, SESSION.search(path.name)) for path in sorted(paths) if path.is_dir() or is_scan(path)]
        named = [(path, match[0], match["subject"]) for path, match in found if match]
        if named:
            return [(root, *named[0][1:])] if named[0][0] == root.resolve() else named
    return []


def _scans(entry: Path) -> list[Path]:
    """The scans of a session as they came from the scanner: those in `RAW`, where there is such a folder."""
    folder = entry / "RAW" if (entry / "RAW").is_dir() else entry
    files = sorted(folder.rglob("*")) if entry.is_dir() else [entry]
    return [path for path in files if is_scan(path) and labelled_scan(stem_of(path)) is None]


def _id(path: Path, session: str, *, aligned: bool) -> str:
    """The session, with the file's name where a session may have several scans."""
    stem = stem_of(path).removesuffix(".nifti")
    if aligned:
        return session
    return stem if session in stem else f"{session}_{stem}"


def _clinical(root: Path) -> dict[str, dict[str, str]]:
    """Group and CDR of each session, from the tables that stand in the folder.

    Raises:
        RefusedError: E_MANIFEST, when tables contradict each other.
    """
    found: dict[str, dict[str, str]] = {}
    for path in sorted(root.glob("*.csv")):
        for row in read_table(path):
            session = next((row[column] for column in ID_COLUMNS if column in row), "")
            if not SESSION.fullmatch(session):
                continue
            facts = {name.lower(): row[name] for name in row if name.lower() in ATTRIBUTES and row[name]}
            if found.setdefault(session, facts) != facts:
                message = f"{path.name} has another row for {session}, with other values"
                raise RefusedError("E_MANIFEST", message, hint="keep one row for each session")
    return found
