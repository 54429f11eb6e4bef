"""Datasets that are refused as a whole, each with its code: a wrong manifest, an unsafe path, nothing to read.

One bad scan never refuses its dataset; it is refused when it is read.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from m3di.volumes import manifests

SCAN = "scan.nii.gz"


def _msd(**manifest: object) -> Callable[[Path], Path]:
    return _file("dataset.json", json.dumps(manifest))


def _file(name: str, content: str | bytes, *scans: str) -> Callable[[Path], Path]:
    """A dataset folder with one file that has content, and scans without; a table is its own root."""

    def write(folder: Path) -> Path:
        for scan in (name, *scans):
            (folder / scan).parent.mkdir(parents=True, exist_ok=True)
            (folder / scan).touch()
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name if name == "scans.csv" else folder

    return write


def _link(name: str, target: str = "scan.nii.gz", *files: str) -> Callable[[Path], Path]:
    """A dataset folder in which one name leads out of it."""

    def write(folder: Path) -> Path:
        outside = folder / "outside"
        root = folder / "set"
        for path in (outside / SCAN, *(root / file for file in files)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(outside / target)
        return root

    return write


def _manifest_link(folder: Path) -> Path:
    root = _link(SCAN)(folder)
    (root / "dataset.json").write_text(json.dumps({"training": [SCAN]}))
    return root


def _large(folder: Path) -> Path:
    with (folder / "dataset.json").open("wb") as file:
        file.truncate(manifests.MAX_BYTES + 1)
    return folder


def _npz(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "set.npz", **arrays)
        return folder / "set.npz"

    return write


def _truncated_npz(folder: Path) -> Path:
    path = _npz(train_images=np.zeros((2, 4, 4, 4), np.uint8))(folder)
    path.write_bytes(path.read_bytes()[:200])
    return folder


T1W = "sub-1/anat/sub-1_T1w.nii.gz"
OASIS = "OAS2_0001_MR1/RAW/mpr-1.nifti.hdr"

# name -> (writes the dataset under a folder and returns its root, code of the refusal)
DATASETS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such place": (lambda folder: folder / "nothing", "E_MISSING"),
    "nothing in it": (lambda folder: folder, "E_FORMAT"),
    "pictures alone": (_file("axial/1.png", b"\x89PNG"), "E_FORMAT"),
    "a label map alone": (_file("scan_seg.nii.gz", b""), "E_FORMAT"),
    "two scans of one id": (_file("a/b.nii.gz", b"", "a_b.nii.gz"), "E_DUPLICATE_ID"),
    "one scan in two formats": (_file("a.nii.gz", b"", "a.nrrd"), "E_DUPLICATE_ID"),
    "a scan that leads out": (_link(SCAN), "E_PATH"),
    "a label map that leads out": (_link("a_seg.nii.gz", SCAN, "a.nii.gz"), "E_PATH"),
    "a slice that leads out": (_link("s/1.dcm", SCAN, "s/2.dcm"), "E_PATH"),
    "a folder that leads out": (_link("more", "", "a.nii.gz"), "E_PATH"),
    "a listed scan that leads out": (_manifest_link, "E_PATH"),
    "a path above": (_msd(training=[{"image": "../other/a.nii.gz"}]), "E_PATH"),
    "a path above in its middle": (_msd(training=["a/../../b.nii.gz"]), "E_PATH"),
    "an absolute path": (_msd(training=["/etc/passwd"]), "E_PATH"),
    "a label map's path above": (_msd(training=[{"image": "a.nii.gz", "label": "../b.nii.gz"}]), "E_PATH"),
    "a scheme": (_msd(training=["https://host/a.nii.gz"]), "E_PATH"),
    "a home folder": (_msd(training=["~/a.nii.gz"]), "E_PATH"),
    "a variable": (_msd(training=["$HOME/a.nii.gz"]), "E_PATH"),
    "a control character": (_msd(training=["a\x00.nii.gz"]), "E_PATH"),
    "a name without letters": (_msd(training=[".nii.gz"]), "E_PATH"),
    "an entry without image": (_msd(training=[{"label": "a.nii.gz"}]), "E_MANIFEST"),
    "an image that is a number": (_msd(training=[{"image": 7}]), "E_MANIFEST"),
    "an image of several files": (_msd(training=[{"image": ["a_0000.nii.gz", "a_0001.nii.gz"]}]), "E_MANIFEST"),
    "no training list": (_msd(name="liver"), "E_MANIFEST"),
    "training that is no list": (_msd(training={"image": "a.nii.gz"}), "E_MANIFEST"),
    "an empty training list": (_msd(training=[]), "E_FORMAT"),
    "one stem twice": (_msd(training=["a.nii.gz", "b/a.nii.gz"]), "E_DUPLICATE_ID"),
    "a modality that is a list": (_msd(modality=["MRI"], training=[]), "E_MANIFEST"),
    "a name of two lines": (_msd(name="liver\nkidney", training=[]), "E_MANIFEST"),
    "a name that is a list": (_msd(name=["liver"], training=[]), "E_MANIFEST"),
    "a label value of 300": (_msd(labels={"300": "liver"}, training=[]), "E_MANIFEST"),
    "a label value of many digits": (_msd(labels={"9" * 5000: "liver"}, training=[]), "E_MANIFEST"),
    "a label value in another script": (_msd(labels={"liver": "\N{SUPERSCRIPT TWO}"}, training=[]), "E_MANIFEST"),
    "a key twice": (_file("dataset.json", '{"training": [], "training": []}'), "E_MANIFEST"),
    "JSON that is no object": (_file("dataset.json", "[1, 2]"), "E_MANIFEST"),
    "JSON cut short": (_file("dataset.json", '{"training": ['), "E_MANIFEST"),
    "JSON of great depth": (_file("dataset.json", "[" * 100_000), "E_MANIFEST"),
    "JSON with NaN": (_file("dataset.json", '{"training": [], "x": NaN}'), "E_MANIFEST"),
    "JSON that is no UTF-8": (_file("dataset.json", b'{"training": ["\xff"]}'), "E_MANIFEST"),
    "a manifest of many bytes": (_large, "E_MANIFEST"),
    "a table without images": (_file("scans.csv", "id,label\na,b.nii.gz\n"), "E_MANIFEST"),
    "a table without lines": (_file("scans.csv", ""), "E_MANIFEST"),
    "a table of a header alone": (_file("scans.csv", "image\n"), "E_FORMAT"),
    "a table with a ragged line": (_file("scans.csv", "image,id\na.nii.gz\n"), "E_MANIFEST"),
    "a table with a column twice": (_file("scans.csv", "image,image\na.nii.gz,b.nii.gz\n"), "E_MANIFEST"),
    "a table with an empty image": (_file("scans.csv", "image,id\n,a\n"), "E_MANIFEST"),
    "a table with an open quote": (_file("scans.csv", 'image\n"a.nii.gz\n'), "E_MANIFEST"),
    "a table with an unknown modality": (_file("scans.csv", "image,modality\na.nii.gz,PET\n"), "E_MANIFEST"),
    "a table with a path above": (_file("scans.csv", "image\n../a.nii.gz\n"), "E_PATH"),
    "a table with a label map above": (_file("scans.csv", "image,label\na.nii.gz,../b.nii.gz\n"), "E_PATH"),
    "a table with an id twice": (_file("scans.csv", "image,id\na.nii.gz,x\nb.nii.gz,x\n"), "E_DUPLICATE_ID"),
    "participants twice": (_file("participants.tsv", "participant_id\nsub-1\nsub-1\n", T1W), "E_MANIFEST"),
    "participants without ids": (_file("participants.tsv", "subject\nsub-1\n", T1W), "E_MANIFEST"),
    "a subject not listed": (_file("participants.tsv", "participant_id\nsub-2\n", T1W), "E_MANIFEST"),
    "a session with two groups": (
        _file("a.csv", "MRI ID,Group\nOAS2_0001_MR1,Demented\nOAS2_0001_MR1,Nondemented\n", OASIS), "E_MANIFEST"
    ),
    "an archive that is none": (_file("set.npz", b"PK\x03\x04 and nothing more"), "E_FORMAT"),
}  # fmt: skip

ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an archive cut short": (_truncated_npz, "E_FORMAT"),
    "an archive of pictures": (_npz(train_images=np.zeros((2, 28, 28), np.uint8)), "E_FORMAT"),
    "an archive of objects": (_npz(train_images=np.array([None])), "E_DTYPE"),
    "an archive of classes that are none": (
        _npz(train_images=np.zeros((1, 4, 4, 4), np.uint8), train_labels=np.array([np.nan])), "E_CORRUPT"
    ),
}  # fmt: skip
DATASETS |= ARCHIVES
