"""Reading one CT of 512 x 512 x 200 from each format into an array: m3di against SimpleITK, nibabel and MONAI.

python benchmarks/reading.py [--slices N]

One thread, files in the page cache, best of three. m3di checks sizes and checksums and counts non-finite and padding
voxels meanwhile. The scan is noise over an ellipsoid, which compresses to about half, as real scans do.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from monai.transforms import LoadImage
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from threadpoolctl import threadpool_limits

from m3di.volumes.readers import read_volume

SPACING_MM = (0.7, 0.7, 1.5)


def main(num_slices: int) -> None:
    """Print the seconds of each reader for each format, and their ratio to m3di's."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    scan = _scan(num_slices)
    monai = LoadImage(image_only=True)
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1):
        folder = Path(name)
        files = {end: _write(folder / f"scan{end}", scan) for end in (".nii", ".nii.gz", ".nrrd", ".mha")}
        series = _write_series(folder / "series", scan)
        print(f"{'format':10} {'m3di':>8} {'SimpleITK':>16} {'nibabel':>16} {'MONAI':>16}")
        for end, path in files.items():
            readers: list[Callable[[], object] | None] = [
                lambda path=path: read_volume(path, modality="CT"),
                lambda path=path: sitk.GetArrayFromImage(sitk.ReadImage(str(path))),
                (lambda path=path: nibabel.load(path).get_fdata()) if ".nii" in end else None,
                (lambda path=path: monai(path)) if ".nii" in end else None,
            ]
            _show(end, readers)
        _show("DICOM", [lambda: read_volume(series, modality="CT"), lambda: _itk_series(series), None,
                        lambda: monai(series)])  # fmt: skip


def _scan(num_slices: int) -> np.ndarray:
    grid = np.meshgrid(
        np.linspace(-1, 1, 512), np.linspace(-1, 1, 512), np.linspace(-1, 1, num_slices), indexing="ij"
    )
    inside = sum(g**2 for g in grid) < 0.7
    noise = np.random.default_rng(0).normal(0, 15, inside.shape)
    return np.where(inside, 40 + noise, -1000).astype(np.int16)


def _write(path: Path, scan: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan.T))
    image.SetSpacing(SPACING_MM)
    sitk.WriteImage(image, str(path), useCompression=path.suffix in (".gz", ".nrrd", ".mha"))
    return path


def _write_series(folder: Path, scan: np.ndarray) -> Path:
    folder.mkdir()
    uid = generate_uid()
    for k in range(scan.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality, one.InstanceNumber = uid, uid, "CT", k + 1
        one.Rows, one.Columns, one.SamplesPerPixel = scan.shape[1], scan.shape[0], 1
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 1
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelSpacing, one.RescaleSlope, one.RescaleIntercept = [0.7, 0.7], 1, 0
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 1.5 * k], [1, 0, 0, 0, 1, 0]
        one.PixelData = np.ascontiguousarray(scan[:, :, k].T).tobytes()
        one.save_as(folder / f"{k:04d}.dcm", enforce_file_format=True)
    return folder


def _itk_series(folder: Path) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def _show(name: str, readers: list[Callable[[], object] | None]) -> None:
    seconds = [None if read is None else min(_timed(read) for _ in range(3)) for read in readers]
    own = seconds[0] or 0.0
    cells = [f"{'-':>16}" if s is None else f"{s:8.3f} ({s / own:4.1f})" for s in seconds[1:]]
    print(f"{name:10} {own:8.3f} {' '.join(f'{cell:>16}' for cell in cells)}", flush=True)


def _timed(read: Callable[[], object]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=200)
    main(parser.parse_args().slices)
