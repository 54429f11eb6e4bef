"""Tiny generated DICOM series: one file a slice, positions and orientation from a RAS+ affine."""

from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
PATIENT = "Doe^Jane"  # no message, store or log may show it
ENCODERS = {JPEG2000Lossless: "pylibjpeg", RLELossless: "pydicom"}


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


def write_enhanced(
    path: Path, array, *, affine, order, change: Callable[[Dataset], object] = lambda one: None, slopes=None
) -> Path:
    """Write an (i, j, k) int16 array as one enhanced multi-frame object.

    Args:
        path: The file.
        array: As in `write_series`.
        affine: Voxel index to RAS+ mm.
        order: The k of each frame.
        change: Called with the data set before it is saved.
        slopes: RescaleSlope of each k, in its frame's group; the intercept is k.
    """
    lps = RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    one = dicom_slice(np.zeros(array.shape[1::-1], "<i2"), position=[0, 0, 0], orientation=[1, 0, 0, 0, 1, 0],
                      spacing_mm=(1, 1), series_uid=generate_uid())  # fmt: skip
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    del one.PixelSpacing, one.ImagePositionPatient, one.ImageOrientationPatient
    one.SharedFunctionalGroupsSequence = [Dataset()]
    measures, turned = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], 99.0
    turned.ImageOrientationPatient = (lps[:3, :2] / spacing[:2]).T.ravel().tolist()
    one.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [measures]
    one.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence = [turned]
    frames = []
    for k in order:
        frame, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = (lps[:3] @ [0, 0, k, 1]).tolist()
        frame.PlanePositionSequence = [place]
        if slopes is not None:
            values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slopes[k], float(k), "HU"
            frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    one.PerFrameFunctionalGroupsSequence, one.NumberOfFrames = frames, len(frames)
    one.PixelData = np.ascontiguousarray(array[:, :, list(order)].T, "<i2").tobytes()
    change(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def write_report(path: Path) -> Path:
    """A structured report: an object without pixels."""
    one = dicom_slice(np.zeros((2, 2), "<i2"), position=[0, 0, 0], orientation=[1, 0, 0, 0, 1, 0], spacing_mm=(1, 1),
                      series_uid=generate_uid())  # fmt: skip
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    one.Modality = "SR"
    del one.Rows, one.Columns, one.PixelData
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def store_values(one: Dataset, values, *, stored: int = 16, signed: bool = True, allocated: int = 16) -> None:
    """Put (rows, columns) numbers into a data set with another pixel type."""
    one.BitsAllocated, one.BitsStored, one.HighBit = allocated, stored, stored - 1
    one.PixelRepresentation = int(signed)
    one["PixelData"].VR = "OB" if allocated == 8 else "OW"
    one.PixelData = np.ascontiguousarray(values, f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()


def compress(path: Path, syntax: UID) -> Path:
    """Encode a file's pixels anew, with GDCM where pydicom cannot; every other tag stays as it is.

    Both sides must be at least 32 pixels long for JPEG 2000. (GDCM's encoder of it writes beyond its buffer.)
    """
    if syntax in (JPEG2000Lossless, RLELossless):
        one = pydicom.dcmread(path)
        one.compress(syntax, generate_instance_uid=False, encoding_plugin=ENCODERS[syntax])
        return put_encoded(one, one.PixelData, syntax, path)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    encoded = path.with_suffix(".encoded")
    writer.SetFileName(str(encoded))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    one, other = pydicom.dcmread(path), pydicom.dcmread(encoded)
    encoded.unlink()
    return put_encoded(one, other.PixelData, syntax, path)


def put_encoded(one: Dataset, encapsulated: bytes, syntax: UID, path: Path) -> Path:
    """Save a data set with encapsulated pixels that were encoded elsewhere."""
    one.file_meta.TransferSyntaxUID = syntax
    one.PixelData = encapsulated
    one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
    one.save_as(path, enforce_file_format=True)
    return path


def patch(path: Path, tag: int, value: bytes) -> Path:
    """Overwrite a top-level element's value, of a short VR in explicit little endian, with whatever bytes."""
    content = path.read_bytes()
    at = content.index((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little"), 132)
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    head = content[: at + 6] + len(value).to_bytes(2, "little")
    path.write_bytes(head + value + content[at + 8 + length :])
    return path
