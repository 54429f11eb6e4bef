"""Find the layout of a dataset and its cases."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, require_unique_ids
from m3di.volumes.formats import dicom
from m3di.volumes.layouts import bids, chaos, folder, medmnist, mmwhs, msd, nnunet, oasis, table
from m3di.volumes.manifests import contained
from stores.errors import RefusedError

# In the order in which `auto` asks them; the last one takes whatever is left.
LAYOUTS: Final[dict[str, tuple[Callable[[Path], bool], Callable[[Path], list[Case]]]]] = {
    "csv": (table.matches, table.cases),
    "medmnist": (medmnist.matches, medmnist.cases),
    "nnunet": (nnunet.matches, nnunet.cases),
    "msd": (msd.matches, msd.cases),
    "chaos": (chaos.matches, chaos.cases),
    "mmwhs": (mmwhs.matches, mmwhs.cases),
    "oasis": (oasis.matches, oasis.cases),
    "bids": (bids.matches, bids.cases),
    "folder": (lambda root: True, folder.cases),
}


def detect(root: Path) -> str:
    """Name of the layout of `root`."""
    return next(name for name, (matches, _) in LAYOUTS.items() if matches(root))


def discover(root: Path, *, layout: str = "auto", follow_links: bool = False) -> list[Case]:
    """Find the cases of a dataset.

    Args:
        root: A dataset's folder, its `dataset.json`, a CSV manifest, a folder of scans, a DICOM folder, or one scan.
        layout: `auto`, or the name of a layout.
        follow_links: Whether symbolic links may lead out of the dataset's folder.

    Raises:
        RefusedError: E_MISSING, E_FORMAT, E_MANIFEST, E_PATH, E_CONFIG or E_DUPLICATE_ID.
    """
    if not root.exists():
        raise RefusedError("E_MISSING", f"{root} does not exist", hint="check the path of the dataset or scan")
    if layout != "auto" and layout not in LAYOUTS:
        hint = f"use auto, {', '.join(LAYOUTS)}"
        raise RefusedError("E_CONFIG", f"no layout is called {layout!r}", hint=hint)
    name = detect(root) if layout == "auto" else layout
    if layout != "auto" and not LAYOUTS[name][0](root):
        raise RefusedError("E_FORMAT", f"{root} is not laid out as {name}", hint="see README, or use --layout auto")
    cases = LAYOUTS[name][1](root)
    if not cases:
        hint = "NIfTI, NRRD, MetaImage, MGH, npy and DICOM are looked for; 2-D pictures are no scans"
        raise RefusedError("E_FORMAT", f"no scan found in {root} (layout {name})", hint=hint)
    require_unique_ids(cases)
    for case in cases:
        _require_contained(case, follow_links=follow_links)
    return cases


def discover_all(roots: Sequence[Path], *, layout: str = "auto", follow_links: bool = False) -> list[Case]:
    """Find the cases of several datasets.

    Raises:
        RefusedError: As `discover`; E_DUPLICATE_ID also when two datasets hold the same id.
    """
    cases = [case for root in roots for case in discover(root, layout=layout, follow_links=follow_links)]
    require_unique_ids(cases)
    return cases


def _require_contained(case: Case, *, follow_links: bool) -> None:
    paths = [case.image, *([case.label.path] if case.label else [])]
    if case.image.is_dir():
        paths += dicom.files_in(case.image)
    for path in paths:
        contained(case.root, path, links=follow_links)
