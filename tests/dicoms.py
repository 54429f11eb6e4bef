"""Tiny generated DICOM series: one file a slice, positions and orientation from a RAS+ affine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENT = "Doe^Jane"  # no message, store or log may show it


def dicom_slice(pixels, *, position, orientation, spacing_mm, series_uid, modality="CT", number=1, series_number=1):
    """One slice as a data set that can be changed and saved.

    Args:
        pixels: (rows, columns) int16.
        position: ImagePositionPatient, LPS mm.
        orientation: ImageOrientationPatient, six numbers, LPS.
        spacing_mm: (between rows, between columns).
        series_uid: SeriesInstanceUID.
        modality: `CT` or `MR`.
        number: InstanceNumber.
        series_number: SeriesNumber.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.PatientName, one.PatientID, one.PatientBirthDate = PATIENT, "123-SECRET", "19500101"
    one.SeriesInstanceUID, one.SeriesNumber, one.InstanceNumber = series_uid, series_number, number
    one.Modality, one.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.Rows, one.Columns = pixels.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.PixelSpacing = [float(value) for value in spacing_mm]
    one.ImagePositionPatient = [float(value) for value in position]
    one.ImageOrientationPatient = [float(value) for value in orientation]
    one.SliceThickness = 99.0  # a lie: spacing comes from positions
    one.PixelData = np.ascontiguousarray(pixels, "<i2").tobytes()
    return one


def write_series(
    folder: Path,
    array,
    *,
    affine,
    modality="CT",
    series_number=1,
    change: Callable[[Dataset, int], object] = lambda one, k: None,
    prefix="s",
) -> list[Path]:
    """Write an (i, j, k) int16 array with a RAS+ affine as a series; file names and numbers run against space.

    Args:
        folder: Created when it is missing.
        array: i runs along columns, j along rows, k along slices.
        affine: Voxel index to RAS+ mm.
        modality: `CT` or `MR`.
        series_number: SeriesNumber.
        change: Called with each data set and its k before it is saved.
        prefix: Of the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    orientation = (lps[:3, :2] / spacing[:2]).T.ravel()
    uid = generate_uid()
    count = array.shape[2]
    paths = []
    for k in range(count):
        one = dicom_slice(
            np.asarray(array[:, :, k]).T,
            position=lps[:3] @ [0, 0, k, 1],
            orientation=orientation,
            spacing_mm=(spacing[1], spacing[0]),
            series_uid=uid,
            modality=modality,
            number=count - k,
            series_number=series_number,
        )
        change(one, k)
        paths.append(folder / f"{prefix}{count - k:03d}.dcm")
        one.save_as(paths[-1], enforce_file_format=True)
    return paths
