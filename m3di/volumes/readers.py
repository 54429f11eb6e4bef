"""Scan files to arrays in scanner units with their geometry in RAS+ mm, and masks back to files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from m3di.volumes.nifti import read_nifti
from stores import atomic
from stores.errors import CaseError
from stores.geometry import Affine, Geometry

Array = npt.NDArray[Any]
LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_LABEL: Final = 255
MAX_SHEAR: Final = 1e-3  # largest cosine between two axes


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan in memory.

    Attributes:
        data: Voxels along the file's own axes (i, j, k), in scanner units; finite.
        geometry: Where they are.
        modality: `CT`, `MR` or `unknown`.
        num_non_finite: Voxels that were NaN or infinite; they hold the smallest finite value now.
    """

    data: Array
    geometry: Geometry
    modality: str
    num_non_finite: int = 0


def content_digest(path: Path) -> str:
    """The sha256 hex digest of a file's bytes.

    Raises:
        CaseError: E_MISSING or E_NOT_FILE.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CaseError("E_MISSING", f"{path} does not exist", hint="check the manifest") from error
    except IsADirectoryError as error:
        raise CaseError("E_NOT_FILE", f"{path} is not a regular file", hint="give a scan's file") from error


def read_volume(path: Path, *, modality: str) -> Volume:
    """Read a scan.

    Raises:
        CaseError: Saying what is wrong with the file; see `m3di.volumes.nifti`, and E_AFFINE, E_NO_SIGNAL.
    """
    voxels = read_nifti(path)
    geometry = read_geometry(path)
    data, num_non_finite = _finite(voxels, path)
    if data.min() == data.max():
        message = f"{path} has the value {data.flat[0]} in every voxel"
        raise CaseError("E_NO_SIGNAL", message, hint="leave it out, or export it again")
    return Volume(data, geometry, modality, num_non_finite)


def read_label(path: Path, *, like: Geometry) -> npt.NDArray[np.uint8]:
    """Read a label map that lies on the grid `like`.

    Raises:
        CaseError: As `read_volume`; E_LABEL_GEOMETRY for another grid; E_LABEL_VALUES for values other than whole
            numbers from 0 to 255.
    """
    data = read_nifti(path)
    geometry = read_geometry(path)
    tolerance = 0.05 * min(like.spacing_mm)
    if geometry.shape != like.shape or not np.allclose(geometry.affine, like.affine, rtol=1e-4, atol=tolerance):
        message = f"label map {path} ({geometry.shape}) lies on another grid than its scan ({like.shape})"
        raise CaseError("E_LABEL_GEOMETRY", message, hint="resample the label map to the scan's grid")
    with np.errstate(invalid="ignore"):  # NaN has no whole number: the comparison finds it
        label = data.astype(np.uint8)
    if not np.array_equal(label, data):
        message = f"label map {path} holds fractions, or values from {data.min()} to {data.max()}"
        raise CaseError("E_LABEL_VALUES", message, hint=f"use whole numbers from 0 to {MAX_LABEL}")
    return label


def write_mask(path: Path, mask: npt.NDArray[np.uint8], *, like: Path) -> None:
    """Write a label map as NIfTI on exactly the grid of the scan `like`, atomically.

    Args:
        path: Ends in `.nii.gz` or `.nii`.
        mask: Along the scan's own axes (i, j, k).
        like: The scan.
    """
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.T))  # SimpleITK's arrays are (k, j, i)
    reader = _reader(like)
    if image.GetSize() != reader.GetSize()[:3]:
        raise ValueError(f"mask {mask.shape} does not fit the scan {reader.GetSize()}")
    image.SetSpacing(reader.GetSpacing()[:3])
    image.SetOrigin(reader.GetOrigin()[:3])
    rank = reader.GetDimension()
    image.SetDirection(np.array(reader.GetDirection()).reshape(rank, rank)[:3, :3].ravel().tolist())
    atomic.write_file(path, lambda temporary: sitk.WriteImage(image, str(temporary), useCompression=True))


def read_geometry(path: Path) -> Geometry:
    """Geometry of a NIfTI file as ITK understands its header; ITK's LPS world becomes RAS+.

    Raises:
        CaseError: E_AFFINE, when the axes are not orthogonal.
    """
    reader = _reader(path)
    direction = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:3, :3]
    cosines = np.abs(direction.T @ direction - np.eye(3))
    if not np.isfinite(cosines).all() or cosines.max() > MAX_SHEAR:
        message = f"{path} has axes that are not orthogonal (cosine {cosines.max():.3g})"
        raise CaseError("E_AFFINE", message, hint="resample it to a grid with orthogonal axes")
    affine: Affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    x, y, z = reader.GetSize()[:3]
    return Geometry((x, y, z), LPS_TO_RAS @ affine)


def _reader(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of `path`."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NiftiImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        code = "E_AFFINE" if "orthonormal" in reason or "irection" in reason else "E_HEADER"
        raise CaseError(code, f"{path} cannot be read: {reason}", hint="write the file anew") from error
    return reader


def _finite(data: Array, path: Path) -> tuple[Array, int]:
    """Replace NaN and infinities by the smallest finite value, and count them."""
    if data.dtype.kind != "f":
        return data, 0
    finite = np.isfinite(data)
    count = data.size - int(finite.sum())
    if count == data.size:
        raise CaseError("E_NO_SIGNAL", f"{path} has no finite voxel", hint="export it again")
    return (np.where(finite, data, data[finite].min()), count) if count else (data, 0)
