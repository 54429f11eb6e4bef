"""DICOM series: which files belong together, in which order they lie in space, and whether they make a grid.

Slices are ordered by ImagePositionPatient along their normal, and spacing comes from positions: never from file
names, InstanceNumber or SliceThickness (DICOM PS3.3, C.7.6.2). A series that is no regular grid is refused, never
resampled silently. Only the tags below are read; messages name files and series numbers, and no other tag.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from m3di.volumes.formats.header import LPS_TO_RAS, MAX_SHEAR, checked_geometry, require_file
from stores.errors import CaseError
from stores.geometry import Geometry

SUFFIXES: Final = (".dcm", ".dicom", ".ima")
SERIES_TAGS: Final = ("SeriesInstanceUID", "SeriesNumber", "Modality", "Rows", "Columns", "NumberOfFrames")
GEOMETRY_TAGS: Final = (
    *SERIES_TAGS, "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImageType",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
MAX_FILE_BYTES: Final = 1 << 30
MAX_DEFLATED_BYTES: Final = 1 << 28  # of one deflated file, expanded: pydicom holds it whole
ALONG_MM: Final = 0.01  # positions along the normal may deviate so much, or
ALONG_SHARE: Final = 0.02  # this share of the slice spacing
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Series:
    """The files of one series in a folder.

    Attributes:
        uid: SeriesInstanceUID; never shown or stored.
        number: SeriesNumber; -1 when there is none.
        modality: `CT`, `MR` or another code of the standard.
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
    return [path for path in regular if path.name != "DICOMDIR" and is_dicom(path)]


def series_in(files: Sequence[Path]) -> list[Series]:
    """Tell the series among files apart, in the order of their numbers.

    Raises:
        CaseError: E_NOT_DICOM, E_HEADER, E_TRUNCATED or E_EMPTY, naming a file that cannot be read.
    """
    found: dict[str, Series] = {}
    for path in files:
        header = read_header(path, SERIES_TAGS)
        uid = str(header.get("SeriesInstanceUID", "") or "")
        if uid in found:
            found[uid] = replace(found[uid], files=(*found[uid].files, path))
        else:
            has_pixels = "Rows" in header and "Columns" in header
            number = int(_number(header, "SeriesNumber", -1, path))
            found[uid] = Series(uid, number, str(header.get("Modality", "") or ""), (path,), has_pixels)
    return sorted(found.values(), key=lambda series: (series.number, series.files[0]))


def select(folder: Path, uid: str) -> Series:
    """The one image series of a folder, or of a single file, or the one with the given UID.

    Raises:
        CaseError: E_NOT_DICOM, E_NO_PIXELS, E_SERIES when there are several and none is named.
    """
    files = files_in(folder) if folder.is_dir() else [folder]
    if not files:
        raise CaseError("E_NOT_DICOM", f"{folder} holds no DICOM file", hint="give the folder of one series")
    series = [one for one in series_in(files) if one.has_pixels and uid in ("", one.uid)]
    if not series:
        raise CaseError("E_NO_PIXELS", f"{folder} holds DICOM objects without pixels", hint="give an image series")
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
    slices = [one for path in series.files for one in _slices(path)]
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
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing_mm[0]
    affine[:3, 1] = first.orientation[1] * first.spacing_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    sizes = (*first.shape, len(ordered))
    return ordered, checked_geometry(sizes, LPS_TO_RAS @ affine, series.files[0].parent)


def read_header(path: Path, tags: Sequence[str] | None, *, pixels: bool = False) -> Dataset:
    """Read a DICOM file's named tags, or all of it.

    Raises:
        CaseError: E_NOT_DICOM, E_HEADER, E_TRUNCATED, E_TOO_LARGE, E_EMPTY, E_MISSING or E_NOT_FILE.
    """
    size = require_file(path)
    if size > MAX_FILE_BYTES:
        raise CaseError("E_TOO_LARGE", f"{path} has {size} bytes", hint=f"at most {MAX_FILE_BYTES} are read")
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            raise CaseError("E_NOT_DICOM", f"{path} is not a DICOM file", hint="remove it from the folder")
    with quiet():
        try:
            meta = pydicom.filereader.read_file_meta_info(path)
            if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
                _require_small_when_inflated(path)
            return pydicom.dcmread(path, specific_tags=list(tags) if tags else None, stop_before_pixels=not pixels)
        except EOFError as error:
            raise CaseError("E_TRUNCATED", f"{path} ends within its header", hint="copy it again") from error
        except CaseError:
            raise
        except Exception as error:  # a parser of hostile bytes: whatever it stumbles over, the file is at fault
            message = f"{path} has a header that cannot be read ({type(error).__name__})"
            raise CaseError("E_HEADER", message, hint="export it again") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what pydicom says of a file's values, which may name the patient, out of logs and warnings."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)


def _require_small_when_inflated(path: Path) -> None:
    """Bound what a deflated file expands to before pydicom expands it whole."""
    import zlib  # noqa: PLC0415

    content = path.read_bytes()
    inflate = zlib.decompressobj(wbits=-15)
    total = 0
    data = content[_data_set_start(content) :]
    while data and not inflate.eof:
        total += len(inflate.decompress(data, 1 << 20))
        data = inflate.unconsumed_tail
        if total > MAX_DEFLATED_BYTES:
            message = f"{path} expands to over {MAX_DEFLATED_BYTES} bytes"
            raise CaseError("E_TOO_LARGE", message, hint="save it with another transfer syntax")


def _data_set_start(content: bytes) -> int:
    """Where the data set begins: the file meta group says its own length in its first element."""
    return 144 + int.from_bytes(content[140:144], "little")


def _slices(path: Path) -> Iterator[Slice]:
    """The slices of one file: one, or the frames of an enhanced multi-frame object."""
    header = read_header(path, GEOMETRY_TAGS)
    with quiet():
        try:
            frames = header.get("PerFrameFunctionalGroupsSequence")
            if frames is None:
                if int(_number(header, "NumberOfFrames", 1, path)) > 1:
                    hint = "give an enhanced object, or a series of single slices"
                    raise CaseError("E_GEOMETRY", f"{path} has frames without positions", hint=hint)
                yield _slice(path, 0, header, [header])
                return
            shared = list(header.get("SharedFunctionalGroupsSequence") or [])
            for number, frame in enumerate(frames):
                yield _slice(path, number, header, [frame, *shared, header])
        except CaseError:
            raise
        except Exception as error:  # see `read_header`: values are converted when they are looked at
            message = f"{path} has tags that cannot be read ({type(error).__name__})"
            raise CaseError("E_HEADER", message, hint="export it again") from error


def _slice(path: Path, frame: int, header: Dataset, places: Sequence[Dataset]) -> Slice:
    position = _values(places, "PlanePositionSequence", "ImagePositionPatient", 3, path)
    orientation = _values(places, "PlaneOrientationSequence", "ImageOrientationPatient", 6, path).reshape(2, 3)
    rows_mm, columns_mm = _values(places, "PixelMeasuresSequence", "PixelSpacing", 2, path)
    lengths = np.linalg.norm(orientation, axis=1)
    if abs(lengths - 1).max() > 1e-2 or abs(float(orientation[0] @ orientation[1])) > MAX_SHEAR:
        message = f"{path} has an orientation that is no pair of orthogonal unit vectors"
        raise CaseError("E_GEOMETRY", message, hint="export it again")
    kind = tuple(str(value) for value in header.get("ImageType") or ())
    shape = int(header.Columns), int(header.Rows)
    return Slice(path, frame, shape, (columns_mm, rows_mm), orientation / lengths[:, None], position, kind)


def _values(places: Sequence[Dataset], group: str, name: str, count: int, path: Path) -> npt.NDArray[np.float64]:
    """A tag's numbers from the first place that has it: the frame's group, the shared group, or the file."""
    for place in places:
        nested = place.get(group)
        holder = nested[0] if nested else place
        value = holder.get(name)
        if value is not None and len(value) == count and np.isfinite(np.array(value, float)).all():
            return np.array(value, dtype=np.float64)
    hint = "export the original series; slices without a place in space make no volume"
    raise CaseError("E_GEOMETRY", f"{path} has no {name} of {count} numbers", hint=hint)


def _number(header: Dataset, name: str, default: float, path: Path) -> float:
    with quiet():
        try:
            value = header.get(name)
            return default if value is None or value == "" else float(value)
        except (TypeError, ValueError) as error:
            raise CaseError("E_HEADER", f"{path} has a {name} that is no number", hint="export it again") from error


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
            difference = f"it has {one.shape[0]} x {one.shape[1]} pixels, the others {reference.shape}"
        elif not np.allclose(one.spacing_mm, reference.spacing_mm, rtol=1e-3):
            difference = f"its pixels are {one.spacing_mm} mm, those of the others {reference.spacing_mm} mm"
        elif bool(localizer) != ("LOCALIZER" in reference.kind):
            difference = "it is no part of the stack"
        else:
            continue
        message = f"{_name(one)} does not fit its series; {localizer}{difference}"
        raise CaseError("E_GEOMETRY", message, hint="move it out of the folder")


def _most_common(slices: Sequence[Slice]) -> Slice:
    """A slice of the kind that most slices are of."""
    keys = [(one.shape, tuple(np.round(one.orientation, 2).ravel() + 0.0), "LOCALIZER" in one.kind) for one in slices]
    return slices[keys.index(max(keys, key=keys.count))]


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
    off = np.abs(gaps - step) > tolerance
    if off.any():
        at = int(np.argmax(np.abs(gaps - step)))
        missing = round(gaps[at] / step) - 1
        between = f"between {_name(ordered[at])} and {_name(ordered[at + 1])}"
        if missing > 0 and abs(gaps[at] - (missing + 1) * step) <= tolerance * (missing + 1):
            message = f"{missing} slices are missing {between}: {gaps[at]:.3f} mm instead of {step:.3f} mm"
        else:
            message = (
                f"slices lie {gaps.min():.3f} to {gaps.max():.3f} mm apart, unevenly; the worst gap is {between}"
            )
        raise CaseError("E_GEOMETRY", message, hint="export the whole series again")


def _name(one: Slice) -> str:
    return f"{one.file.name} frame {one.frame + 1}" if one.frame else one.file.name


def rescale_of(header: Dataset, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame: value = slope * stored + intercept."""
    places: list[Any] = [header]
    if frames := header.get("PerFrameFunctionalGroupsSequence"):
        places = [frames[frame], *(header.get("SharedFunctionalGroupsSequence") or []), header]
    for place in places:
        nested = place.get("PixelValueTransformationSequence")
        holder = nested[0] if nested else place
        if holder.get("RescaleSlope") is not None:
            return float(holder.RescaleSlope), float(holder.get("RescaleIntercept") or 0.0)
    return 1.0, 0.0
