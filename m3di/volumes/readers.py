"""Scan files to arrays in scanner units with their geometry in RAS+ mm, and masks back to files.

Headers are read strictly by `m3di.volumes.formats`, voxels by one reader for all file formats: ITK's readers pad a
truncated file with zeros and turn NaN into 0, both silently. DICOM pixels are decoded by pydicom and its plugins.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from m3di.volumes.cases import LabelMap
from m3di.volumes.formats import dicom, metaimage, mgh, nifti, npy, nrrd
from m3di.volumes.formats.dicom_pixels import read_series
from m3di.volumes.formats.header import LPS_TO_RAS, Header, require_file
from m3di.volumes.formats.png import masks_in, read_masks
from m3di.volumes.formats.voxels import read_voxels
from stores import atomic
from stores.errors import CaseError
from stores.geometry import CubeChain, Geometry
from stores.recipe import digest_of

Array = npt.NDArray[Any]
FORMATS: Final[dict[str, Callable[[Path], Header]]] = {
    ".nii": nifti.parse, ".nii.gz": nifti.parse, ".hdr": nifti.parse, ".hdr.gz": nifti.parse, ".img": nifti.parse,
    ".img.gz": nifti.parse, ".nrrd": nrrd.parse, ".nhdr": nrrd.parse, ".mha": metaimage.parse,
    ".mhd": metaimage.parse, ".mgh": mgh.parse, ".mgz": mgh.parse, ".npy": npy.parse,
}  # fmt: skip
MAX_LABEL: Final = 255
SAME_GRID: Final = 0.1  # largest distance between two grids' corners, in voxels
AIR_HU: Final = -1024  # CT values below are no tissue and no air, but padding of the scanner's software


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan in memory.

    Attributes:
        data: Voxels along the file's own axes (i, j, k), in scanner units; finite.
        geometry: Where they are.
        modality: `CT`, `MR` or `unknown`.
        num_non_finite: Voxels that were NaN or infinite; they hold the smallest finite value now.
        num_padding: Voxels outside the scanner's field of view: marked so in DICOM, or under -1024 in CT.
    """

    data: Array
    geometry: Geometry
    modality: str
    num_non_finite: int = 0
    num_padding: int = 0


def content_digest(path: Path, member: str = "") -> str:
    """The sha256 hex digest of a scan's bytes: of its file, or of all its files in an order that names cannot change.

    Raises:
        CaseError: E_MISSING, E_NOT_FILE, or what reading the header finds.
    """
    digests = sorted(_file_digest(file) for file in _files_of(path, member))
    if len(digests) == 1 and not member:
        return digests[0]
    return digest_of({"files": digests, "member": "" if path.is_dir() else member})


def label_digest(label: LabelMap) -> str:
    """Digest of a label map's bytes; of PNG masks with their names, which say where each belongs.

    Raises:
        CaseError: As `content_digest` and `settle_label`.
    """
    label, _ = settle_label(label)
    if label.path.is_dir():
        return digest_of({path.name: _file_digest(path) for path in masks_in(label.path)})
    return content_digest(label.path)


def read_volume(path: Path, *, modality: str, member: str = "") -> Volume:
    """Read a scan.

    Args:
        path: A file, or the folder of a DICOM series.
        modality: `CT`, `MR` or `unknown`; what DICOM says of itself wins.
        member: Which scan in it; see `Case.member`.

    Raises:
        CaseError: Saying what is wrong with it; see `m3di.volumes.formats`, and E_FORMAT, E_NO_SIGNAL.
    """
    num_padding = 0
    if path.suffix == ".npz":
        voxels, geometry = npy.read_medmnist(path, member)
    elif (parse := _parser(path)) is not None:
        header = parse(path)
        voxels, geometry = read_voxels(header), header.geometry
    else:
        series = dicom.select(path, member)
        voxels, geometry, num_padding = read_series(series)
        modality = series.modality if series.modality in ("CT", "MR") else modality
    data, num_non_finite = _finite(voxels, path)
    low, high = data.min(), data.max()
    if low == high:
        raise CaseError("E_NO_SIGNAL", f"{path} has the value {low} in every voxel", hint="leave it out")
    if modality == "CT" and low < AIR_HU:
        num_padding = max(num_padding, int((data < AIR_HU).sum()))
    return Volume(data, geometry, modality, num_non_finite, num_padding)


def read_label(label: LabelMap, *, like: Geometry) -> npt.NDArray[np.uint8]:
    """Read a label map that lies on the grid `like`, or on that grid with its axes permuted or flipped.

    Raises:
        CaseError: As `read_volume` and `settle_label`; E_LABEL_GEOMETRY for another grid; E_LABEL_VALUES for values
            other than whole numbers from 0 to 255, or without a class.
    """
    label, _ = settle_label(label)
    if label.drawn_on is not None:
        stored = read_masks(label.path, label.drawn_on, like.shape)
    else:
        parse = _parser(label.path)
        if parse is None:
            raise CaseError(
                "E_FORMAT", f"{label.path} is no label map that can be read", hint="convert it to .nii.gz"
            )
        header = parse(label.path)
        stored = _on_grid(read_voxels(header), header.geometry, like, label.path)
    return _classes(stored, label)


def settle_label(label: LabelMap) -> tuple[LabelMap, list[CaseError]]:
    """The one label map among rivals whose header is that of one, and why the others are passed over.

    Raises:
        CaseError: E_FORMAT when several files could be the label map; when none can, what is wrong with the first.
    """
    if not label.rivals:
        return label, []
    usable, refused = [], []
    for path in (label.path, *label.rivals):
        try:
            if (parse := _parser(path)) is not None:
                parse(path)
            usable.append(path)
        except CaseError as error:
            refused.append(error)
    if not usable:
        raise refused[0]
    if len(usable) > 1:
        message = f"several files could be the label map: {', '.join(path.name for path in usable)}"
        raise CaseError("E_FORMAT", message, hint="name one of them in a CSV manifest")
    return replace(label, path=usable[0], rivals=()), refused


def write_mask(path: Path, mask: npt.NDArray[np.uint8], *, like: Geometry) -> None:
    """Write a label map as NIfTI on exactly the grid of its scan, atomically.

    Args:
        path: Ends in `.nii.gz` or `.nii`.
        mask: Along the scan's own axes (i, j, k).
        like: The scan's grid.
    """
    _write_nifti(path, mask, like)


def write_map(path: Path, values: npt.NDArray[np.float32], *, like: Geometry) -> None:
    """Write numbers, for example probabilities, as `write_mask` does a label map."""
    _write_nifti(path, values, like)


def _write_nifti(path: Path, array: Array, like: Geometry) -> None:
    if array.shape != like.shape:
        raise ValueError(f"an array {array.shape} does not fit the scan {like.shape}")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))  # SimpleITK's arrays are (k, j, i)
    affine = LPS_TO_RAS @ like.affine
    image.SetSpacing(like.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(like.spacing_mm)).ravel().tolist())
    atomic.write_file(path, lambda temporary: sitk.WriteImage(image, str(temporary), useCompression=True))


def _parser(path: Path) -> Callable[[Path], Header] | None:
    """The header reader for a file's name; None for what must be DICOM.

    Raises:
        CaseError: E_MISSING, or E_FORMAT for a file of no known format.
    """
    suffix = max((end for end in FORMATS if path.name.lower().endswith(end)), key=len, default="")
    if suffix:
        return FORMATS[suffix]
    if not path.exists():
        raise CaseError("E_MISSING", f"{path} does not exist", hint="check the manifest, or copy the file again")
    if path.is_dir() or dicom.is_dicom(path):
        return None
    hint = f"known are {', '.join(FORMATS)} and DICOM"
    raise CaseError("E_FORMAT", f"{path} is of no format that is read", hint=hint)


def _files_of(path: Path, member: str) -> list[Path]:
    """Every file that a scan is made of."""
    if path.suffix == ".npz":
        return [path]
    parse = _parser(path)
    if parse is None:
        return list(dicom.select(path, member).files)
    if path.suffix == ".npy":
        return [path, npy.sidecar(path)] if npy.sidecar(path).is_file() else [path]
    header = parse(path)
    return sorted({header.header_file or path, header.file})


def _file_digest(path: Path) -> str:
    return _digest_of_file(path, require_file(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=1)  # the thousand volumes of one MedMNIST file come one after the other
def _digest_of_file(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _on_grid(stored: Array, geometry: Geometry, like: Geometry, path: Path) -> Array:
    """The label map along the axes of the scan."""
    mine, scans = CubeChain(geometry, 1), CubeChain(like, 1)
    distance = np.inf
    if mine.canonical_shape == scans.canonical_shape:
        corners = _corners(mine) - _corners(scans)
        distance = float(np.linalg.norm(corners, axis=1).max()) / min(like.spacing_mm)
    if not distance <= SAME_GRID:
        by = f"they lie {distance:.3g} voxels apart" if np.isfinite(distance) else f"its scan has {like.shape}"
        message = f"label map {path} ({geometry.shape}) lies on another grid than its scan: {by}"
        raise CaseError("E_LABEL_GEOMETRY", message, hint="resample the label map to the scan's grid")
    return scans.from_canonical(mine.to_canonical(stored))


def _corners(chain: CubeChain) -> npt.NDArray[np.float64]:
    """(8, 3) RAS+ mm of a grid's corner voxels, in canonical order."""
    steps = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(chain.canonical_shape) - 1)
    indices = np.where(chain.flips, np.array(chain.canonical_shape) - 1 - steps, steps)
    source = np.empty_like(indices)
    source[:, chain.axes] = indices
    return source @ chain.source.affine[:3, :3].T + chain.source.affine[:3, 3]


def _classes(stored: Array, label: LabelMap) -> npt.NDArray[np.uint8]:
    """Class values, from stored ones."""
    if label.codes:
        return _decoded(stored, label)
    if stored.dtype == np.uint8:
        return stored
    with np.errstate(invalid="ignore"):  # NaN has no whole number: the comparison finds it
        classes = stored.astype(np.uint8)
    if not np.array_equal(classes, stored):
        message = f"label map {label.path} holds fractions, or values from {stored.min()} to {stored.max()}"
        raise CaseError("E_LABEL_VALUES", message, hint=f"use whole numbers from 0 to {MAX_LABEL}")
    return classes


def _decoded(stored: Array, label: LabelMap) -> npt.NDArray[np.uint8]:
    classes = np.zeros(stored.shape, np.uint8)
    known = stored == 0
    for first, last, value in label.codes:
        within = (stored >= first) & (stored <= last)
        classes[within] = value
        known |= within
    if not known.all():
        strange = stored[~known].flat[0]
        message = f"label map {label.path} holds {strange} in {int((~known).sum())} voxels, which means no structure"
        ranges = ", ".join(f"{first}-{last}" if first != last else f"{first}" for first, last, _ in label.codes)
        raise CaseError("E_LABEL_VALUES", message, hint=f"its values are 0, {ranges}")
    return classes


def _finite(data: Array, path: Path) -> tuple[Array, int]:
    """Replace NaN and infinities, in place, by the smallest finite value, and count them."""
    if data.dtype.kind != "f":
        return data, 0
    finite = np.isfinite(data)
    count = data.size - int(finite.sum())
    if count == data.size:
        raise CaseError("E_NO_SIGNAL", f"{path} has no finite voxel", hint="export it again")
    if count:
        np.copyto(data, data.min(initial=np.inf, where=finite), where=~finite)
    return data, count
