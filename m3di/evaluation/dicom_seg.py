"""Masks as DICOM Segmentation objects (PS3.3, A.51) of the series that they were predicted from.

Made by highdicom (Bridge et al. 2022, MIT licence; extra `dicomseg`).
"""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom

from m3di.volumes.formats import dicom
from stores import atomic
from stores.errors import CaseError, RefusedError

MAX_LABEL: Final = 64  # characters of DICOM's LO
STRUCTURE: Final = ("123037004", "SCT", "Anatomical Structure")
SERIES_NUMBER: Final = 900  # behind the scanner's own


def require_highdicom() -> None:
    """Refuse to go on without highdicom.

    Raises:
        RefusedError: E_CONFIG.
    """
    if find_spec("highdicom") is None:
        message = "predict.format is dicom-seg, and highdicom is not installed"
        raise RefusedError("E_CONFIG", message, hint="pip install 'm3di[dicomseg]'")


def write_segmentation(
    path: Path, mask: npt.NDArray[np.uint8], names: Mapping[int, str], scan: Path, *, member: str = ""
) -> None:
    """Write a mask as a DICOM Segmentation with a segment a structure, atomically.

    Args:
        path: Ends in `.dcm`.
        mask: (columns, rows, slices), along the scan's own axes.
        names: Structure name by label value, background left out; segments are numbered from 1 in this order.
        scan: Folder, or file, of the DICOM series.
        member: Which series; see `Case.member`.

    Raises:
        CaseError: E_NOT_DICOM, for a scan that is no DICOM.
    """
    from highdicom import UID  # noqa: PLC0415
    from highdicom.seg import Segmentation, SegmentationTypeValues  # noqa: PLC0415

    if not scan.is_dir() and not dicom.is_dicom(scan):
        message = f"{scan} is no DICOM series, of which alone there is a DICOM SEG"
        raise CaseError("E_NOT_DICOM", message, hint="leave predict.format=dicom-seg out")
    ordered, _ = dicom.stack(dicom.select(scan, member))
    frames = np.zeros((mask.shape[2], mask.shape[1], mask.shape[0]), np.uint8)
    for number, value in enumerate(names, start=1):
        frames[mask.transpose(2, 1, 0) == value] = number
    files = list(dict.fromkeys(one.file for one in ordered))
    if len(files) < len(ordered):  # the frames of an enhanced object, in the object's own order
        frames = frames[np.argsort([one.frame for one in ordered])]
    made = Segmentation(
        source_images=[pydicom.dcmread(file) for file in files],
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(names),
        series_instance_uid=UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="m3di",
        manufacturer_model_name="m3di",
        software_versions=version("m3di"),
        device_serial_number="0",
        content_description="Predicted by m3di",
        omit_empty_frames=bool(frames.any()),
    )
    atomic.write_file(path, lambda temporary: made.save_as(temporary, enforce_file_format=True))


def _descriptions(names: Mapping[int, str]) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence  # noqa: PLC0415
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription  # noqa: PLC0415
    from highdicom.sr import CodedConcept  # noqa: PLC0415

    structure = CodedConcept(*STRUCTURE)
    algorithm = AlgorithmIdentificationSequence(
        name="m3di", version=version("m3di"), family=CodedConcept("123109", "DCM", "Artificial Intelligence")
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=_label(name),
            segmented_property_category=structure,
            segmented_property_type=structure,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names.values(), start=1)
    ]


def _label(name: str) -> str:
    """A structure's name as DICOM's LO can hold it: short, in ASCII, without backslash or control characters."""
    ascii_name = name.encode("ascii", "replace").decode()
    plain = "".join(letter if letter.isprintable() and letter != "\\" else "?" for letter in ascii_name)
    return plain.strip()[:MAX_LABEL] or "?"
