"""What file names tell: the stem of a scan, its subject, and whether it is a label map, and of which scan."""

import re
from pathlib import Path
from typing import Final

from m3di.volumes.cases import MODALITIES

SCAN_SUFFIXES: Final = (
    ".nii.gz", ".nii", ".hdr", ".hdr.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".npy"
)  # fmt: skip
SUBJECT: Final = re.compile(r"(?:^|[/_-])(sub-[A-Za-z0-9]+|patient[_-]?\d+|OAS[12]_\d{4})", re.IGNORECASE)
MODALITY_LAST: Final = re.compile(rf"(?<=[^/_.-])[/_.-](?:{'|'.join(MODALITIES)})$", re.IGNORECASE)

# Label maps: `X_seg`, `X_gt_2`, `segmentation-10`, `label0001`, `mask_liver`, `seg`. Images: `X_image`, `volume-10`.
_LABEL: Final = r"(?:seg|dseg|aseg|segmentation|labels?|gt|mask|roi|onehot)"
_IMAGE: Final = r"(?:image|imaging|img|scan|volume|vol)"
LABEL_LAST: Final = re.compile(rf"(?P<scan>.+?)[_.-]{_LABEL}\d*(?:[_.-].*)?", re.IGNORECASE)
LABEL_FIRST: Final = re.compile(rf"{_LABEL}(?:[_.-]?(?P<scan>\d+))?(?:[_.-].*)?", re.IGNORECASE)
IMAGE_LAST: Final = re.compile(rf"[_.-]{_IMAGE}$", re.IGNORECASE)
IMAGE_FIRST: Final = re.compile(rf"{_IMAGE}[_.-]?(?P<scan>\d*)", re.IGNORECASE)


def is_scan(path: Path) -> bool:
    """Whether a name is that of a scan's file."""
    return path.name.lower().endswith(SCAN_SUFFIXES) and not path.name.startswith(".")


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of its format."""
    name = path.name
    suffix = max((end for end in SCAN_SUFFIXES if name.lower().endswith(end)), key=len, default=path.suffix)
    return name[: len(name) - len(suffix)]


def subject_of(text: str) -> str:
    """The person that a path stands for: its `sub-`, `patient` or OASIS part, else all but a modality at its end."""
    match = SUBJECT.search(text)
    return match[1] if match else MODALITY_LAST.sub("", text)


def labelled_scan(stem: str) -> str | None:
    """What a label map's name says of its scan, as `bare` says it; None for a scan's own name."""
    if match := LABEL_LAST.fullmatch(stem):
        return bare(match["scan"])
    match = LABEL_FIRST.fullmatch(stem)
    return match["scan"] or "" if match else None


def bare(stem: str) -> str:
    """A scan's stem without the word for an image: `1001` of `1001_image` and `volume-1001`, nothing of `image`."""
    match = IMAGE_FIRST.fullmatch(stem)
    return match["scan"] if match else IMAGE_LAST.sub("", stem)
