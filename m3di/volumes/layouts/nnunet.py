"""nnU-Net v2 (and v1) raw datasets: `imagesTr/<case>_0000`, one file a channel, and `labelsTr/<case>`.

A store keeps one channel a volume: with several channels each becomes a case of the same subject, label map included.
`imagesTs` is left out: what is held out for a test is no training data, not even without its label maps.
"""

import re
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, LabelMap, body_part_of, modality_of, safe_id, sequence_of
from m3di.volumes.layouts.msd import MANIFEST, dataset_name, datasets, ignored_values, label_names, mapping
from m3di.volumes.layouts.names import is_scan, stem_of, subject_of
from m3di.volumes.manifests import read_json

CHANNEL: Final = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def matches(root: Path) -> bool:
    """Whether each manifest stands beside images with channel numbers, which their label maps do not have."""
    found = datasets(root)
    return bool(found) and all(_images(folder, "") and not _same_names(folder) for folder in found)


def cases(root: Path) -> list[Case]:
    """The training cases of a dataset, or of each dataset below a folder."""
    return [case for folder in datasets(root) for case in _cases(folder)]


def _cases(folder: Path) -> list[Case]:
    manifest = read_json(folder / MANIFEST)
    channels = mapping(manifest, "channel_names") or mapping(manifest, "modality")
    names, ignored = label_names(manifest), ignored_values(manifest)
    ending = str(manifest.get("file_ending", ""))
    dataset = dataset_name(manifest, folder)
    labelled = any(is_scan(path) for path in (folder / "labelsTr").glob("*"))
    return [
        Case(
            id=safe_id(case if len(channels) == 1 else f"{case}_{channel}"),
            subject=safe_id(subject_of(case)),
            dataset=dataset,
            modality=modality_of(str(channels.get(str(int(channel)), ""))),
            body_part=body_part_of(f"{dataset} {folder.resolve().name}"),
            image=path,
            label=LabelMap(_label(path, case), names, ignored=ignored) if labelled else None,
            root=folder,
            sequence=sequence_of(str(channels.get(str(int(channel)), ""))),
        )
        for path, case, channel in _images(folder, ending)
    ]


def _images(folder: Path, ending: str) -> list[tuple[Path, str, str]]:
    """(file, case, channel) of each training image."""
    files = [path for path in sorted((folder / "imagesTr").glob("*")) if is_scan(path)]
    found = [(path, CHANNEL.fullmatch(stem_of(path))) for path in files if path.name.endswith(ending)]
    return [(path, match["case"], match["channel"]) for path, match in found if match]


def _label(image: Path, case: str) -> Path:
    """The label map of a case: in the format of its image, as nnU-Net wants it; reading says if it is missing."""
    return image.parent.parent / "labelsTr" / f"{case}{image.name.removeprefix(stem_of(image))}"


def _same_names(folder: Path) -> bool:
    """Whether an image and its label map have one name, as in MSD: then the number at its end is no channel."""
    return any((folder / "labelsTr" / path.name).exists() for path, _, _ in _images(folder, ""))
