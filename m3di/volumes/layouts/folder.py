"""A folder of scans, however deep: files, and folders of DICOM slices; or one scan.

Ids are paths below the folder, so that they stay as they are when other scans come. `X_seg`, `X_label`, `X_gt` and
`X_mask` (with or without more words after them) are label maps of `X` or `X_image` in the same folder.
"""

from pathlib import Path

from m3di.volumes.cases import Case, LabelMap, body_part_of, modality_of, safe_id
from m3di.volumes.formats import dicom
from m3di.volumes.layouts.names import bare, is_scan, labelled_scan, stem_of, subject_of
from stores.errors import CaseError


def cases(root: Path) -> list[Case]:
    """Every scan below a folder, or the one scan."""
    if root.is_file():
        if is_scan(root):
            return [_case(root, stem_of(root), None, root.parent)]
        return dicom_cases(root, root.parent) if dicom.is_dicom(root) else []
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    scans = [path for path in files if is_scan(path)]
    found = file_cases(scans, root)
    folders = sorted({path.parent for path in files if not is_scan(path) and dicom.is_dicom(path)})
    for folder in folders:
        found += dicom_cases(folder, root)
    return found


def file_cases(scans: list[Path], root: Path) -> list[Case]:
    """Cases of scan files, label maps paired with them by name."""
    labels: dict[tuple[Path, str], list[Path]] = {}
    for path in scans:
        owner = labelled_scan(stem_of(path))
        if owner is not None and len(scans) > 1:
            labels.setdefault((path.parent, owner), []).append(path)
    label_files = {path for paths in labels.values() for path in paths}
    return [
        _case(path, _relative(path, root), _label(labels.get((path.parent, bare(stem_of(path))), [])), root)
        for path in scans
        if path not in label_files
    ]


def dicom_cases(folder: Path, root: Path) -> list[Case]:
    """One case for each image series in a folder of DICOM slices."""
    files = dicom.files_in(folder) if folder.is_dir() else [folder]
    try:
        series = [one for one in dicom.series_in(files) if one.has_pixels]
    except CaseError:
        series = []  # which series the unreadable file belongs to is unknown: reading refuses the case by name
    name = _relative(folder, root) if folder.is_dir() and folder != root else folder.name.removesuffix(".dcm")
    if len(series) <= 1:
        return [_case(folder, name, None, root)]
    numbers = [one.number for one in series]
    return [
        _case(folder, f"{name}-series{_label_of(numbers, index)}", None, root, member=one.uid)
        for index, one in enumerate(series)
    ]


def _label_of(numbers: list[int], index: int) -> str:
    """A series' number, with a letter where two series have the same."""
    number = numbers[index]
    same = [position for position, other in enumerate(numbers) if other == number]
    return f"{number}" if len(same) == 1 else f"{number}-{same.index(index) + 1}"


def _case(path: Path, name: str, label: LabelMap | None, root: Path, *, member: str = "") -> Case:
    words = f"{root.resolve().name} {name}"
    return Case(
        id=safe_id(name.replace("/", "_")),
        subject=safe_id(subject_of(name).replace("/", "_")),
        dataset=root.resolve().name,
        modality=modality_of(words),
        body_part=body_part_of(words),
        image=path,
        label=label,
        root=root,
        member=member,
    )


def _relative(path: Path, root: Path) -> str:
    """Path below the root, without the suffixes of a scan's format."""
    relative = path.relative_to(root)
    return (relative.parent / stem_of(path)).as_posix() if path.is_file() else relative.as_posix()


def _label(paths: list[Path]) -> LabelMap | None:
    return LabelMap(paths[0], rivals=tuple(paths[1:])) if paths else None
