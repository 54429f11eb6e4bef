"""Find the layout of a dataset and its cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m3di.volumes.cases import Case, require_unique_ids
from m3di.volumes.formats import dicom
from m3di.volumes.formats.png import masks_in
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

NO_SCAN_HINT: Final = "NIfTI, NRRD, MetaImage, MGH, npy and DICOM are looked for; 2-D pictures are no scans"


def detect(root: Path) -> str:
    """Name of the layout of `root`."""
    return next(name for name, (matches, _) in LAYOUTS.items() if matches(root))


@dataclass(frozen=True)
class Dataset:
    """What was found in one place.

    Attributes:
        root: The place.
        layout: Name of its layout.
        cases: Its cases; empty when it holds no scan.
    """

    root: Path
    layout: str
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """The name of its folder or file."""
        return self.root.resolve().name


def discover(root: Path, *, layout: str = "auto", follow_links: bool = False) -> list[Case]:
    """Find the cases of a dataset.

    Args:
        root: A dataset's folder, its `dataset.json`, a CSV manifest, a folder of scans, a DICOM folder, or one scan.
        layout: `auto`, or the name of a layout.
        follow_links: Whether symbolic links may lead out of the dataset's folder.

    Raises:
        RefusedError: E_MISSING, E_FORMAT, E_MANIFEST, E_PATH, E_CONFIG or E_DUPLICATE_ID.
    """
    return list(survey([root], layout=layout, follow_links=follow_links)[0].cases)


def survey(roots: Sequence[Path], *, layout: str = "auto", follow_links: bool = False) -> list[Dataset]:
    """Find the layout and the cases of each of several datasets.

    A place without a scan among others is an empty dataset; when all are empty, that is an error.

    Raises:
        RefusedError: As `discover`; E_DUPLICATE_ID also when two datasets hold the same id.
    """
    datasets = [_survey(root, layout=layout, follow_links=follow_links) for root in roots]
    cases = [case for dataset in datasets for case in dataset.cases]
    if not cases:
        found = ", ".join(f"{dataset.root} (layout {dataset.layout})" for dataset in datasets)
        raise RefusedError("E_FORMAT", f"no scan found in {found}", hint=NO_SCAN_HINT)
    require_unique_ids(cases)
    return datasets


def _survey(root: Path, *, layout: str, follow_links: bool) -> Dataset:
    if not root.exists():
        raise RefusedError("E_MISSING", f"{root} does not exist", hint="check the path of the dataset or scan")
    if layout != "auto" and layout not in LAYOUTS:
        hint = f"use auto, {', '.join(LAYOUTS)}"
        raise RefusedError("E_CONFIG", f"no layout is called {layout!r}", hint=hint)
    name = detect(root) if layout == "auto" else layout
    if layout != "auto" and not LAYOUTS[name][0](root):
        raise RefusedError("E_FORMAT", f"{root} is not laid out as {name}", hint="see README, or use --layout auto")
    cases = LAYOUTS[name][1](root)
    folder = root if root.is_dir() else root.parent
    for path in (path for case in cases for path in _files(case)):
        contained(folder, path, links=follow_links)
    return Dataset(root, name, tuple(cases))


def _files(case: Case) -> list[Path]:
    """What is read for a case, as far as it lies in the file system by name."""
    files = [case.image]
    if case.image.is_dir():
        files += dicom.files_in(case.image)
    if case.label is not None:
        files += [case.label.path, *case.label.rivals]
        if case.label.path.is_dir():
            files += masks_in(case.label.path)
    return files
