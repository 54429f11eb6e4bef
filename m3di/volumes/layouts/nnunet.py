"""nnU-Net v2 (and v1) raw datasets: `imagesTr/<case>_0000`, one file a channel, and `labelsTr/<case>`.

A store keeps one channel a volume: with several channels each becomes a case of the same subject, label map included.
"""

import re
from pathlib import Path
from typing import Any, Final

from m3di.volumes.cases import Case, LabelMap, body_part_of, modality_of, safe_id
from m3di.volumes.layouts.msd import MANIFEST, datasets, label_names, mapping
from m3di.volumes.layouts.names import is_scan, stem_of, subject_of
from m3di.volumes.manifests import read_json

CHANNEL: Final = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def matches(root: Path) -> bool:
    """Whether each manifest stands beside images with channel numbers."""
    found = datasets(root)
    return bool(found) and all(_images(folder) for folder in found)


def cases(root: Path) -> list[Case]:
    """The training cases of a dataset, or of each dataset below a folder."""
    return [case for folder in datasets(root) for case in _cases(folder)]


def _images(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, case, channel) of each training image."""
    images = folder / "imagesTr"
    files = sorted(path for path in images.iterdir() if is_scan(path)) if images.is_dir() else []
    found = [(path, CHANNEL.fullmatch(stem_of(path))) for path in files]
    return [(path, match["case"], match["channel"]) for path, match in found if match]


def _cases(folder: Path) -> list[Case]:
    manifest = read_json(folder / MANIFEST)
    channels = mapping(manifest, "channel_names") or mapping(manifest, "modality")
    names = label_names(manifest)
    dataset = str(manifest.get("name", folder.name))
    images = _images(folder)
    several = len({channel for _, _, channel in images}) > 1
    labels = {stem_of(path): path for path in sorted((folder / "labelsTr").glob("*")) if is_scan(path)}
    return [
        Case(
            id=safe_id(f"{case}_{channel}" if several else case),
            subject=safe_id(subject_of(case)),
            dataset=dataset,
            modality=_modality(channels, channel),
            body_part=body_part_of(f"{dataset} {folder.name}"),
            image=path,
            label=LabelMap(labels[case], names) if case in labels else None,
            root=folder,
        )
        for path, case, channel in images
    ]


def _modality(channels: dict[str, Any], channel: str) -> str:
    return modality_of(str(channels.get(str(int(channel)), "")))
