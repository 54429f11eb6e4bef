"""What file names tell: the stem of a scan, its subject, and whether it is a label map of another."""

import re
from pathlib import Path
from typing import Final

SCAN_SUFFIXES: Final = (
    ".nii.gz", ".nii", ".hdr", ".hdr.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".npy"
)  # fmt: skip
SUBJECT: Final = re.compile(r"(?:^|[/_-])(sub-[A-Za-z0-9]+|patient[_-]?\d+|OAS[12]_\d{4})")
LABEL_WORD: Final = re.compile(
    r"^(?P<scan>.+?)[_.-](?:seg|dseg|aseg|segmentation|labels?|gt|mask|roi|onehot)\d*(?:[_.-].*)?$", re.IGNORECASE
)
IMAGE_WORD: Final = re.compile(r"[_.-](?:image|img|scan)$", re.IGNORECASE)


def is_scan(path: Path) -> bool:
    """Whether a name is that of a scan's file."""
    return path.name.lower().endswith(SCAN_SUFFIXES) and not path.name.startswith(".")


def stem_of(path: Path) -> str:
    """A file's name without the suffixes of its format."""
    name = path.name
    suffix = max((end for end in SCAN_SUFFIXES if name.lower().endswith(end)), key=len, default=path.suffix)
    return name[: len(name) - len(suffix)]


def subject_of(text: str) -> str:
    """The person that a path stands for: its `sub-`, `patient` or OASIS part, else the whole."""
    match = SUBJECT.search(text)
    return match[1] if match else text


def labelled_scan(stem: str) -> str | None:
    """Stem of the scan that a label map's name names, without a trailing `_image`; None for a scan's own name."""
    match = LABEL_WORD.match(stem)
    return bare(match["scan"]) if match else None


def bare(stem: str) -> str:
    """A scan's stem without a trailing `_image`."""
    return IMAGE_WORD.sub("", stem)
