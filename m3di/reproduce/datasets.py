"""The datasets of the programmes: where to get them, how to lay them out, and what they hold, as a digest."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stores.errors import RefusedError
from stores.recipe import digest_of

ENDS: Final = 1 << 20  # bytes at either end of a file that its digest covers


@dataclass(frozen=True)
class Dataset:
    """A dataset as it is looked for.

    Attributes:
        name: Its name in cells and rows.
        title: Its name for people.
        folders: Folders below the data root that may hold it; the first one is how commands call it.
        source: Where to get it.
        layout: How to lay it out in its folder.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    source: str
    layout: str

    @property
    def place(self) -> str:
        """Its folder as commands write it."""
        return f"$DATA/{self.folders[0]}"

    @property
    def advice(self) -> str:
        """Where to get it and how to lay it out, in one line."""
        return f"{self.title}: get it from {self.source}; lay it out as {self.layout}"


DATASETS: Final = {
    one.name: one
    for one in (
        Dataset(
            "3dseg8", "3DSeg-8", ("3dseg8", "3DSeg-8"),
            "the sets that Med3D (Chen et al. 2019, arXiv 1904.00625) names: http://medicaldecathlon.com and others",
            "3dseg8/TaskNN_NAME/{dataset.json,imagesTr,labelsTr}, one folder a set",
        ),
        Dataset(
            "mmwhs", "MM-WHS", ("mmwhs", "MM-WHS"),
            "https://zmiclab.github.io/zxh/0/mmwhs (request)",
            "mmwhs/ct_train_1001_image.nii.gz with ct_train_1001_label.nii.gz, and so on",
        ),
        Dataset(
            "chaos", "CHAOS", ("chaos", "CHAOS"),
            "https://doi.org/10.5281/zenodo.3431873 (CHAOS_Train_Sets.zip)",
            "chaos/CT/1/{DICOM_anon/*.dcm,Ground/*.png}, and so on",
        ),
        Dataset(
            "oasis", "OASIS-1, segmented", ("oasis", "oasis1", "neurite-oasis"),
            "https://github.com/adalca/medical-datasets (neurite-oasis.v1.0.tar)",
            "oasis/OASIS_OAS1_0001_MR1/{aligned_norm,aligned_seg4}.nii.gz, and so on",
        ),
        Dataset(
            "oasis2", "OASIS-2", ("oasis2", "OASIS-2"),
            "https://sites.wustl.edu/oasisbrains (RAW volumes and clinical table)",
            "oasis2/OAS2_0001_MR1/RAW/mpr-1.nifti.img and .hdr, with oasis_longitudinal_demographics.xlsx as .csv",
        ),
        Dataset(
            "hippocampus", "MSD hippocampus", ("msd_hippocampus", "Task04_Hippocampus"),
            "http://medicaldecathlon.com (Task04_Hippocampus.tar)",
            "msd_hippocampus/{dataset.json,imagesTr,labelsTr}",
        ),
        Dataset(
            "acdc", "ACDC, end-diastole", ("acdc_ed", "acdc"),
            "https://humanheart-project.creatis.insa-lyon.fr/database",
            "acdc_ed/patient001_frame01.nii.gz with patient001_frame01_gt.nii.gz, ..., diagnosis.tsv (file, group)",
        ),
        Dataset(
            "adrenal", "AdrenalMNIST3D", ("adrenalmnist3d_64",),
            "https://zenodo.org/records/10519652 (adrenalmnist3d_64.npz)",
            "adrenalmnist3d_64/ with one .npz file in it",
        ),
    )
}  # fmt: skip


def find_datasets(root: Path | None, names: Iterable[str]) -> dict[str, Path]:
    """Where each dataset lies below a root; those that are not there are left out."""
    if root is None:
        return {}
    candidates = {name: [root / folder for folder in DATASETS[name].folders] for name in names}
    found = {name: next((path for path in paths if path.is_dir()), None) for name, paths in candidates.items()}
    return {name: path.resolve() for name, path in found.items() if path is not None}


def require_some(root: Path | None, found: Mapping[str, Path], wanted: Iterable[str]) -> None:
    """Refuse to begin without any dataset, and say where each can be got.

    Raises:
        RefusedError: E_MISSING.
    """
    if found:
        return
    where = f"below {root}" if root else "as no data root is given"
    missing = ". ".join(DATASETS[name].advice for name in wanted)
    message = f"none of the datasets {', '.join(wanted)} is there, {where}"
    raise RefusedError("E_MISSING", message, hint=f"give --data ROOT (or M3DI_DATA). {missing}")


def digest_dataset(folder: Path) -> str:
    """Digest of a dataset: names and sizes of its files, and the first and last MiB of each.

    The middle of large files is left out, as hundreds of gigabytes would be read at every start.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return digest_of([[path.relative_to(folder).as_posix(), *_ends(path)] for path in files])


def _ends(path: Path) -> tuple[int, str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(ENDS))
        file.seek(max(ENDS, size - ENDS))
        digest.update(file.read(ENDS))
    return size, digest.hexdigest()
