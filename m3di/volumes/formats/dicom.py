"""DICOM series: which files belong together, in which order they lie in space, and whether they make a grid.

Slices are ordered by ImagePositionPatient along their normal, and spacing comes from positions: never from file
names, InstanceNumber or SliceThickness (DICOM PS3.3, C.7.6.2). A series that is no regular grid is refused, never
resampled silently. Only the tags below are read; messages name files and series numbers, and no other tag.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from m3di.volumes.formats.dicom_header import guarded, read_header
from m3di.volumes.formats.header import LPS_TO_RAS, MAX_SHEAR, MAX_SIDE, checked_geometry, require_file
from stores.errors import CaseError
from stores.geometry import Geometry

SUFFIXES: Final = (".dcm", ".dicom", ".ima")
SERIES_TAGS: Final = ("SeriesInstanceUID", "SeriesNumber", "Modality", "Rows", "Columns", "NumberOfFrames")
GEOMETRY_TAGS: Final = (
    *SERIES_TAGS, "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImageType",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
MAX_NUMBER: Final = 1e6  # of a position in mm
ALONG_MM: Final = 0.01  # positions along the normal may deviate so much, or
ALONG_SHARE: Final = 0.02  # this share of the slice spacing
BESIDE_SHARE: Final = 0.1  # and positions from their common line this share of the smallest spacing
_MODALITY: Final = re.compile("[A-Z0-9]{1,16}")


@dataclass(frozen=True)
class Series:
    """The files of one series in a folder.

    Attributes:
        uid: SeriesInstanceUID; never shown or stored.
        number: SeriesNumber; -1 when there is none.
        modality: `CT`, `MR` or another code of the standard; `unknown` for what is no code.
        files: In the order of their names.
        has_pixels: Whether its objects are images at all.
    """

    uid: str
    number: int
    modality: str
    files: tuple[Path, ...]
    has_pixels: bool


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice or frame, with where it lies.

    Attributes:
        file: Its file.
        frame: Its number in the file.
        shape: (columns, rows).
        spacing_mm: Between columns, between rows.
        orientation: (2, 3) directions of rows and columns as they run along i and j, LPS.
        position: (3,) centre of its first pixel, LPS mm.
        kind: Values of ImageType.
    """

    file: Path
    frame: int
    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    orientation: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]
    kind: tuple[str, ...]

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Direction that the slices of a stack follow one another in."""
        return np.cross(self.orientation[0], self.orientation[1])


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM, by its name or its magic bytes."""
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def files_in(folder: Path) -> list[Path]:
    """DICOM files of a folder, those below it left out, in the order of their names."""
    regular = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in regular if path.name.upper() != "DICOMDIR" and is_dicom(path)]


def series_in(files: Sequence[Path]) -> list[Series]:
    """Tell the series among files apart, in the order of their numbers.

    Raises:
        CaseError: E_NOT_DICOM, E_HEADER, E_TRUNCATED or E_EMPTY, naming a file that cannot be read.
    """
    stamps = tuple((require_file(path), path.stat().st_mtime_ns) for path in files)
    return list(_series_in(tuple(files), stamps))


@lru_cache(maxsize=2)  # a case is identified, then read
def _series_in(files: tuple[Path, ...], _stamps: tuple[tuple[int, int], ...]) -> tuple[Series, ...]:
    found: dict[tuple[str, bool], Series] = {}
    members: dict[tuple[str, bool], list[Path]] = {}
    for path in files:
        header = read_header(path, SERIES_TAGS)
        with guarded(path):
            uid = str(header.get("SeriesInstanceUID") or "")
            key = uid, "Rows" in header and "Columns" in header
            if key not in found:
                code = str(header.get("Modality") or "")
                modality = code if _MODALITY.fullmatch(code) else "unknown"
                found[key] = Series(uid, _whole(header, "SeriesNumber", -1, path), modality, (), key[1])
            members.setdefault(key, []).append(path)
    series = [replace(one, files=tuple(members[key])) for key, one in found.items()]
    return tuple(sorted(series, key=lambda one: (one.number, one.files[0])))


def select(folder: Path, uid: str) -> Series:
    """The one image series of a folder, or of a single file, or the one with the given UID.

    Raises:
        CaseError: E_NOT_DICOM, E_NO_PIXELS, E_SERIES when there are several and none is named, or none is the named.
    """
    files = files_in(folder) if folder.is_dir() else [folder]
    if not files:
        raise CaseError("E_NOT_DICOM", f"{folder} holds no DICOM file", hint="give the folder of one series")
    images = [one for one in series_in(files) if one.has_pixels]
    if not images:
        raise CaseError("E_NO_PIXELS", f"{folder} holds DICOM objects without pixels", hint="give an image series")
    series = [one for one in images if uid in ("", one.uid)]
    if not series:
        message = f"{folder} holds the series no longer that was found in it"
        raise CaseError("E_SERIES", message, hint="copy it again")
    if len(series) > 1:
        names = ", ".join(f"number {one.number} ({one.modality}, {len(one.files)} files)" for one in series)
        hint = "move each into a folder of its own, or give the folder above so that each becomes a case"
        raise CaseError("E_SERIES", f"{folder} holds {len(series)} series: {names}", hint=hint)
    return series[0]


def stack(series: Series) -> tuple[list[Slice], Geometry]:
    """Order the slices of a series in space.

    Returns:
        The slices along k, and the grid of (columns, rows, slices) in RAS+ mm.

    Raises:
        CaseError: E_GEOMETRY, saying which slices spoil the grid and by how much; E_HEADER, E_SPACING, E_TOO_LARGE.
    """
    slices: list[Slice] = []
    for path in series.files:
        slices += _slices(path)
        if len(slices) > MAX_SIDE:
            message = f"{series.files[0].parent} has over {MAX_SIDE} slices"
            raise CaseError("E_TOO_LARGE", message, hint="give one volume a folder")
    _require_alike(slices)
    ordered = sorted(slices, key=lambda one: float(one.position @ slices[0].normal))
    first, last = ordered[0], ordered[-1]
    if len(ordered) == 1:
        message = f"{_name(first)} is one slice alone, so that no slice spacing is known"
        raise CaseError("E_GEOMETRY", message, hint="give the whole series; a localizer or single image is no volume")
    _require_even(ordered)
    step = (last.position - first.position) / (len(ordered) - 1)
    tilt = np.linalg.norm(step - (step @ first.normal) * first.normal) / np.linalg.norm(step)
    if tilt > MAX_SHEAR:
        degrees = float(np.degrees(np.arcsin(np.minimum(1.0, tilt))))
        message = f"{series.files[0].parent} is tilted: slices shift in plane by {degrees:.2f} degrees (gantry tilt)"
        raise CaseError("E_GEOMETRY", message, hint="correct the tilt first, for example with dcm2niix")
    _require_line(ordered, step)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing_mm[0]
    affine[:3, 1] = first.orientation[1] * first.spacing_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    sizes = (*first.shape, len(ordered))
    return ordered, checked_geometry(sizes, LPS_TO_RAS @ affine, series.files[0].parent)


def _slices(path: Path) -> list[Slice]:
    """The slices of one file: one, or the frames of an enhanced multi-frame object."""
    header = read_header(path, GEOMETRY_TAGS)
    with guarded(path):
        declared = _whole(header, "NumberOfFrames", 1, path)
        frames = header.get("PerFrameFunctionalGroupsSequence")
        if frames is None and declared == 1:
            return [_slice(path, 0, header, [header])]
        if frames is None:
            hint = "give an enhanced object, or a series of single slices"
            raise CaseError("E_GEOMETRY", f"{path} has {declared} frames without positions", hint=hint)
        if len(frames) != declared:
            message = f"{path} declares {declared} frames and describes {len(frames)}"
            raise CaseError("E_HEADER", message, hint="export it again")
        if declared > MAX_SIDE:
            hint = f"at most {MAX_SIDE} are read"
            raise CaseError("E_TOO_LARGE", f"{path} has {declared} frames", hint=hint)
        shared = list(header.get("SharedFunctionalGroupsSequence") or [])
        return [_slice(path, number, header, [frame, *shared, header]) for number, frame in enumerate(frames)]


def _slice(path: Path, frame: int, header: Dataset, places: Sequence[Dataset]) -> Slice:
    position = _values(places, "PlanePositionSequence", "ImagePositionPatient", 3, path)
    orientation = _values(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6, path).reshape(2, 3)
    rows_mm, columns_mm = _values(places, "PixelMeasuresSequence", "PixelSpacing", 2, path).tolist()
    lengths = np.linalg.norm(orientation, axis=1)
    if abs(lengths - 1).max() > 1e-2 or abs(float(orientation[0] @ orientation[1])) > MAX_SHEAR:
        message = f"{path} has an orientation that is no pair of orthogonal unit vectors"
        raise CaseError("E_GEOMETRY", message, hint="export it again")
    if min(rows_mm, columns_mm) <= 0:
        message = f"{path} has pixels of {columns_mm:g} x {rows_mm:g} mm"
        raise CaseError("E_SPACING", message, hint="export it again; no calibration, no volume")
    kind = header.get("ImageType") or ()
    kind = (kind,) if isinstance(kind, str) else tuple(str(value) for value in kind)
    shape = int(header.Columns), int(header.Rows)
    return Slice(path, frame, shape, (columns_mm, rows_mm), orientation / lengths[:, None], position, kind)


def _values(places: Sequence[Dataset], group: str, name: str, count: int, path: Path) -> npt.NDArray[np.float64]:
    """A tag's numbers from the first place that has it: the frame's group, the shared group, or the file."""
    for place in places:
        nested = place.get(group)
        value = (nested[0] if nested else place).get(name)
        numbers = np.atleast_1d(np.array([] if value is None else value, dtype=np.float64))
        if len(numbers) == count and (np.abs(numbers) <= MAX_NUMBER).all():  # NaN is not
            return numbers
    hint = "export the original series; slices without a place in space make no volume"
    raise CaseError("E_GEOMETRY", f"{path} has no {name} of {count} numbers", hint=hint)


def _whole(header: Dataset, name: str, default: int, path: Path) -> int:
    try:
        value = header.get(name)
        return default if value is None or value == "" else int(value)
    except (TypeError, ValueError, OverflowError):
        raise CaseError("E_HEADER", f"{path} has a {name} that is no number", hint="export it again") from None


def _require_alike(slices: Sequence[Slice]) -> None:
    """Same shape, pixel spacing and orientation; a localizer among the slices is what usually differs."""
    reference = _most_common(slices)
    for one in slices:
        turned = float(np.degrees(np.arccos(np.clip(one.normal @ reference.normal, -1, 1))))
        in_plane = float(np.degrees(np.arccos(np.clip(one.orientation[0] @ reference.orientation[0], -1, 1))))
        localizer = "a localizer: " if "LOCALIZER" in one.kind else ""
        if max(turned, in_plane) > 0.1:
            difference = f"it is turned by {max(turned, in_plane):.1f} degrees against the others"
        elif one.shape != reference.shape:
            sizes = [f"{each.shape[0]} x {each.shape[1]}" for each in (one, reference)]
            difference = f"it has {sizes[0]} pixels, the others {sizes[1]}"
        elif not np.allclose(one.spacing_mm, reference.spacing_mm, rtol=1e-3):
            spacings = [f"{each.spacing_mm[0]:g} x {each.spacing_mm[1]:g}" for each in (one, reference)]
            difference = f"its pixels are {spacings[0]} mm, those of the others {spacings[1]} mm"
        elif bool(localizer) != ("LOCALIZER" in reference.kind):
            difference = "it is no part of the stack"
        else:
            continue
        message = f"{_name(one)} does not fit its series; {localizer}{difference}"
        raise CaseError("E_GEOMETRY", message, hint="move it out of the folder")


def _most_common(slices: Sequence[Slice]) -> Slice:
    """A slice of the kind that most slices are of."""
    keys = [(one.shape, tuple(np.round(one.orientation, 2).ravel() + 0.0), "LOCALIZER" in one.kind) for one in slices]
    return slices[keys.index(Counter(keys).most_common(1)[0][0])]


def _require_even(ordered: Sequence[Slice]) -> None:
    """Slices one step apart, none twice and none missing."""
    along = np.array([float(one.position @ ordered[0].normal) for one in ordered])
    gaps = np.diff(along)
    step = float(np.median(gaps))
    tolerance = max(ALONG_MM, ALONG_SHARE * step)
    twice = int((gaps < tolerance).sum())
    if twice:
        at = int(np.argmax(gaps < tolerance))
        message = f"{_name(ordered[at])} and {_name(ordered[at + 1])} lie {gaps[at]:.3g} mm apart"
        message += f": {twice} of {len(ordered)} positions are taken twice"
        hint = "keep one acquisition, phase or echo a folder"
        raise CaseError("E_GEOMETRY", message, hint=hint)
    if (np.abs(gaps - step) > tolerance).any():
        step = float(gaps.min())
        missing = np.round(gaps / step) - 1
        at = int(np.argmax(gaps))
        between = f"between {_name(ordered[at])} and {_name(ordered[at + 1])}"
        if (np.abs(gaps - (missing + 1) * step) <= tolerance * (missing + 1)).all():
            count = int(missing.sum())
            slices = "1 slice is" if count == 1 else f"{count} slices are"
            message = f"{slices} missing, the widest gap {between}: {gaps[at]:.3f} mm instead of {step:.3f} mm"
        else:
            message = (
                f"slices lie {gaps.min():.3f} to {gaps.max():.3f} mm apart, unevenly; the widest gap is {between}"
            )
        raise CaseError("E_GEOMETRY", message, hint="export the whole series again")


def _require_line(ordered: Sequence[Slice], step: npt.NDArray[np.float64]) -> None:
    """Every position on the line from the first to the last, one step after another."""
    positions = np.array([one.position for one in ordered])
    off = np.linalg.norm(positions - positions[0] - np.arange(len(ordered))[:, None] * step, axis=1)
    at = int(np.argmax(off))
    if off[at] > max(ALONG_MM, BESIDE_SHARE * min(*ordered[0].spacing_mm, float(np.linalg.norm(step)))):
        message = f"{_name(ordered[at])} lies {off[at]:.3f} mm beside the line of the other slices"
        raise CaseError("E_GEOMETRY", message, hint="export the whole series again")


def _name(one: Slice) -> str:
    return f"{one.file.name} frame {one.frame + 1}" if one.frame else one.file.name
