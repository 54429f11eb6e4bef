"""A folder of scans, however deep: files, and folders of DICOM slices; or one scan.

Ids are paths below the folder, so that they stay as they are when other scans come. Label maps are told by name, and
never taken as scans: `X_seg`, `X_label`, `X_gt`, `X_mask` (with or without more words after them) of `X` or `X_image`
in the same folder, `segmentation-7` of `volume-7`, `seg` of the only scan beside it, and all in a folder called
`labels`, `masks` or `segmentations`, which belong to their namesakes in `images` or above.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, body_part_of, modality_of, safe_id, sequence_of
from m3di.volumes.formats import dicom
from m3di.volumes.layouts.names import bare, is_scan, labelled_scan, stem_of, subject_of
from stores.errors import CaseError, RefusedError

_PART: Final = r"[_-]?(?P<part>tr|ts|train|test|val)?"
LABEL_FOLDER: Final = re.compile(rf"(?:labels?|masks?|segmentations?|segs?|gts?|ground[_-]?truths?){_PART}", re.I)
IMAGE_FOLDER: Final = re.compile(rf"(?:images?|imgs?|scans?|volumes?){_PART}", re.I)
NO_FOLDERS: Final = ("__MACOSX",)  # and hidden ones


def cases(root: Path) -> list[Case]:
    """Every scan below a folder, or the one scan.

    Raises:
        RefusedError: E_PATH, for a linked folder outside the root.
    """
    if root.is_file():
        if is_scan(root):
            return [_case(root, stem_of(root), None, root.parent)]
        return dicom_cases(root, root.parent) if dicom.is_dicom(root) else []
    files = _files(root)
    found = file_cases([path for path in files if is_scan(path)], root)
    others = [path for path in files if path.is_file() and not is_scan(path) and path.name != "DICOMDIR"]
    for folder in sorted({path.parent for path in others if dicom.is_dicom(path)}):
        found += dicom_cases(folder, root)
    return found


def file_cases(files: list[Path], root: Path) -> list[Case]:
    """Cases of scan files, label maps paired with them by name."""
    labels: dict[tuple[Path | str, str], list[Path]] = {}
    scans: list[tuple[Path, str]] = []
    for path in files:
        place, is_label = _place(path.relative_to(root).parent)
        owner = labelled_scan(stem_of(path))
        if is_label:
            labels.setdefault((place, bare(stem_of(path)) if owner is None else owner), []).append(path)
        elif owner is not None:
            labels.setdefault((path.parent, owner), []).append(path)
        else:
            scans.append((path, place))
    together = Counter(path.parent for path, _ in scans)
    found = []
    for path, place in scans:
        stem = bare(stem_of(path))
        maps = labels.get((path.parent, stem), []) + labels.get((place, stem), [])
        if not maps and together[path.parent] == 1:
            maps = labels.get((path.parent, ""), [])
        found.append(_case(path, _relative(path, root), _label(maps), root))
    return found


def dicom_cases(folder: Path, root: Path) -> list[Case]:
    """One case for each image series in a folder of DICOM slices; segmentations are none."""
    files = dicom.files_in(folder) if folder.is_dir() else [folder]
    try:
        series = [one for one in dicom.series_in(files) if one.has_pixels]
    except CaseError:
        series = []  # which series the unreadable file belongs to is unknown: reading refuses the case by name
    name = _relative(folder, root) if folder.is_dir() and folder != root else folder.name.removesuffix(".dcm")
    images = [one for one in series if one.modality != "SEG"]
    if len(series) <= 1:
        return [_case(folder, name, None, root)] if images or not series else []
    numbers = [one.number for one in images]
    return [
        _case(folder, f"{name}-series{_label_of(numbers, index)}", None, root, member=one.uid, person=name)
        for index, one in enumerate(images)
    ]


def _files(root: Path) -> list[Path]:
    """Regular files, and links to none, below a folder in the order of their paths; hidden ones left out."""
    found: list[Path] = []
    for entry, folders, names in os.walk(root):
        place = Path(entry)
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NO_FOLDERS]
        for name in folders:
            if (place / name).is_symlink() and not (place / name).resolve().is_relative_to(root.resolve()):
                message = f"{name!r} is a link to a folder outside the dataset's folder"
                raise RefusedError("E_PATH", message, hint="give the folder that it leads to as a source of its own")
        found += [place / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def _place(folder: Path) -> tuple[str, bool]:
    """A folder's path, alike for images and for their label maps, and whether it holds label maps."""
    place: list[str] = []
    is_label = False
    for part in folder.parts:
        label, image = LABEL_FOLDER.fullmatch(part), IMAGE_FOLDER.fullmatch(part)
        is_label = is_label or label is not None
        match = label or image
        place.append((match["part"] or "").lower() if match else part)
    return "/".join(part for part in place if part), is_label


def _label_of(numbers: list[int], index: int) -> str:
    """A series' number, with a letter where two series have the same."""
    number = numbers[index]
    same = [position for position, other in enumerate(numbers) if other == number]
    return f"{number}" if len(same) == 1 else f"{number}-{same.index(index) + 1}"


def _case(path: Path, name: str, label: LabelMap | None, root: Path, *, member: str = "", person: str = "") -> Case:
    dataset = root.resolve().name
    return Case(
        id=safe_id(name.replace("/", "_")),
        subject=safe_id(subject_of(person or name).replace("/", "_")),
        dataset=dataset,
        modality=modality_of(*reversed(name.split("/")), dataset),
        body_part=body_part_of(name) or body_part_of(dataset),
        image=path,
        label=label,
        root=root,
        member=member,
        sequence=sequence_of(name.rpartition("/")[2]),
    )


def _relative(path: Path, root: Path) -> str:
    """Path below the root, without the suffixes of a scan's format."""
    file = is_scan(path) and not path.is_dir()
    return (path.with_name(stem_of(path)) if file else path).relative_to(root).as_posix()


def _label(paths: list[Path]) -> LabelMap | None:
    return LabelMap(paths[0], rivals=tuple(paths[1:])) if paths else None
