"""BIDS (https://bids-specification.readthedocs.io): `sub-X/[ses-Y/]anat`, label maps beside or in `derivatives`.

A label map belongs to the scan whose whole name it begins with (`sub-X_T1w_seg-manual`), or, as the standard names
derivatives, to the scan of its subject, session and run, the T1w where there are several (`sub-X_desc-aseg_dseg`).
What lies in another `space` belongs to none.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from m3di.volumes.cases import ATTRIBUTES, Case, LabelMap, body_part_of, modality_of, safe_id, sequence_of
from m3di.volumes.layouts.names import is_scan, labelled_scan, stem_of
from m3di.volumes.manifests import read_table
from stores.errors import RefusedError

PARTICIPANTS: Final = "participants.tsv"
# Entities that a label map has and its scan has not; a scan that was worked on has `desc`, too.
OWN_ENTITIES: Final = ("desc-", "label-", "res-", "den-", "seg-", "atlas-", "hemi-")
NATIVE_SPACES: Final = ("space-orig", "space-individual", "space-T1w")
_PATTERNS: Final = tuple(f"sub-*/{session}{kind}/sub-*" for session in ("", "ses-*/") for kind in ("anat", "ct"))


def matches(root: Path) -> bool:
    """Whether there are subject folders with anatomical images."""
    return root.is_dir() and any(is_scan(path) for pattern in _PATTERNS for path in root.glob(pattern))


def cases(root: Path) -> list[Case]:
    """The anatomical scans of every subject and session."""
    people = _participants(root)
    files = sorted(path for pattern in _PATTERNS for path in root.glob(pattern) if is_scan(path))
    scans = [path for path in files if not _is_derived(stem_of(path))]
    others = (path for path in (root / "derivatives").rglob("sub-*") if is_scan(path))
    labels = _labels(scans, sorted({*others, *files}))
    found = []
    for path in scans:
        stem = stem_of(path)
        subject = path.relative_to(root).parts[0]
        if people and subject not in people:
            message = f"{subject} has scans and is not listed in {PARTICIPANTS}"
            raise RefusedError("E_MANIFEST", message, hint="add the subject to the table, or move the folder away")
        maps = labels.get(path, [])
        found.append(
            Case(
                id=safe_id(stem),
                subject=safe_id(subject),
                dataset=root.resolve().name,
                modality=modality_of(_suffix(stem), "mr" if path.parent.name == "anat" else "ct"),
                body_part=body_part_of(root.resolve().name),
                image=path,
                label=LabelMap(maps[0], rivals=tuple(maps[1:])) if maps else None,
                root=root,
                attributes=people.get(subject, {}),
                sequence=sequence_of(_suffix(stem)),
            )
        )
    return found


def _is_derived(stem: str) -> bool:
    """Whether a name is that of a label map or mask."""
    suffix = _suffix(stem)
    return labelled_scan(suffix) is not None or suffix.endswith(("mask", "seg", "label"))


def _suffix(stem: str) -> str:
    return stem.rpartition("_")[2]


def _labels(scans: Iterable[Path], derived: Iterable[Path]) -> dict[Path, list[Path]]:
    """The label maps of each scan: segmentations, or masks where there is none."""
    stems = {stem_of(path): path for path in scans}
    keys: dict[frozenset[str], Path] = {}
    for stem, path in stems.items():
        keys.setdefault(_key(stem), path)
        if stem.endswith("_T1w"):
            keys[_key(stem)] = path
    found: dict[Path, list[Path]] = {}
    for path in derived:
        *entities, suffix = stem_of(path).split("_")
        starts = ("_".join(entities[:count]) for count in range(len(entities), 0, -1))
        scan = next((stems[start] for start in starts if start in stems), None)
        if scan is None and suffix in ("dseg", "mask"):
            scan = keys.get(_key(stem_of(path)))
        if scan is not None and _is_derived(stem_of(path)) and suffix not in ("probseg", "defacemask"):
            found.setdefault(scan, []).append(path)
    return {scan: [path for path in paths if "seg" in _suffix(stem_of(path))] or paths
            for scan, paths in found.items()}  # fmt: skip


def _key(stem: str) -> frozenset[str]:
    """What a scan's and its label map's names have in common: subject, session, run, acquisition, space."""
    entities = stem.split("_")[:-1]
    return frozenset(one for one in entities if not one.startswith(OWN_ENTITIES) and one not in NATIVE_SPACES)


def _participants(root: Path) -> dict[str, dict[str, str]]:
    """Clinical columns of each subject; empty without the table."""
    if not (root / PARTICIPANTS).is_file():
        return {}
    people: dict[str, dict[str, str]] = {}
    for row in read_table(root / PARTICIPANTS):
        subject = row.get("participant_id", "")
        if not subject or subject in people:
            message = f"{PARTICIPANTS} has a row without participant_id, or one subject twice"
            raise RefusedError("E_MANIFEST", message, hint="give each subject one row")
        facts = {name.lower(): value for name, value in row.items() if value not in ("", "n/a")}
        people[subject] = {name: facts[name] for name in ATTRIBUTES if name in facts}
    return people
