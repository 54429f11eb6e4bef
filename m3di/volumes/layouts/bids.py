"""BIDS (https://bids-specification.readthedocs.io): `sub-X/[ses-Y/]anat`, label maps in `derivatives`."""

import re
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, body_part_of, modality_of, safe_id
from m3di.volumes.layouts.names import is_scan, labelled_scan, stem_of
from m3di.volumes.manifests import read_table
from stores.errors import RefusedError

ATTRIBUTES: Final = ("group", "diagnosis")
PARTICIPANTS: Final = "participants.tsv"


def matches(root: Path) -> bool:
    """Whether there are subject folders with anatomical images."""
    return root.is_dir() and any(True for pattern in _PATTERNS for _ in root.glob(pattern))


def cases(root: Path) -> list[Case]:
    """The anatomical scans of every subject and session."""
    people = _participants(root)
    labels: dict[str, list[Path]] = {}
    for path in sorted((root / "derivatives").rglob("*")):
        owner = labelled_scan(stem_of(path)) if is_scan(path) else None
        if owner is not None:
            labels.setdefault(owner, []).append(path)
    found = []
    for path in sorted(path for pattern in _PATTERNS for path in root.glob(pattern)):
        stem = stem_of(path)
        if not is_scan(path) or labelled_scan(stem):
            continue
        subject = next(part for part in path.relative_to(root).parts if part.startswith("sub-"))
        if people and subject not in people:
            message = f"{subject} has scans and is not listed in {PARTICIPANTS}"
            raise RefusedError("E_MANIFEST", message, hint="add the subject to the table, or move the folder away")
        maps = labels.get(stem, [])
        found.append(
            Case(
                id=safe_id(stem),
                subject=safe_id(subject),
                dataset=root.resolve().name,
                modality=_modality(path, stem),
                body_part=body_part_of(root.resolve().name),
                image=path,
                label=LabelMap(maps[0], rivals=tuple(maps[1:])) if maps else None,
                root=root,
                attributes=people.get(subject, {}),
            )
        )
    return found


_PATTERNS: Final = tuple(
    f"sub-*/{session}{kind}/sub-*" for session in ("", "ses-*/") for kind in ("anat", "ct")
)  # fmt: skip


def _modality(path: Path, stem: str) -> str:
    """`anat` holds MR, unless the suffix says CT."""
    suffix = re.split(r"_", stem)[-1]
    named = modality_of(suffix)
    return named if named != "unknown" else ("MR" if path.parent.name == "anat" else "CT")


def _participants(root: Path) -> dict[str, dict[str, str]]:
    """Clinical columns of each subject; empty without the table."""
    if not (root / PARTICIPANTS).is_file():
        return {}
    rows = read_table(root / PARTICIPANTS)
    people: dict[str, dict[str, str]] = {}
    for row in rows:
        subject = row.get("participant_id", "")
        if not subject or subject in people:
            message = f"{PARTICIPANTS} has a row without participant_id, or one subject twice"
            raise RefusedError("E_MANIFEST", message, hint="give each subject one row")
        people[subject] = {name.lower(): row[name] for name in row if name.lower() in ATTRIBUTES}
    return people
