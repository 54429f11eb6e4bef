"""The seam between the store and whoever writes captions: what they are shown, and what they give back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from m3di.events import Check, Report
from stores.errors import CaseError
from stores.geometry import PLANES
from stores.records import VolumeRecord

MODALITIES: Final = ("CT", "MR", "unknown")
DESCRIBED, MODEL, NEIGHBOUR, TABLE = "d", "m", "n", "t"
SOURCES: Final = {
    DESCRIBED: "described without a model",
    MODEL: "written by a model that was shown the slice",
    NEIGHBOUR: "its own place, with the text of the nearest slice that a model was shown",
    TABLE: "taken from a table",
}
# Names of anatomy have at most two digits in a row ("vertebrae T12"); ids, dates and paths do not get through.
_NAME: Final = re.compile(r"(?!.*\d{3})[A-Za-z0-9 _(),+'-]{0,60}")
_SEQUENCE: Final = re.compile(r"(?!.*\d{3})[A-Za-z0-9]{0,12}")
SIDES: Final = ("", "left", "right", "both")
ENDS: Final = (("lower", "upper"), ("back", "front"), ("left", "right"))  # by plane, where `position` is 0 and 1


@dataclass(frozen=True)
class Structure:
    """A structure of the label map, as a slice shows it.

    Attributes:
        name: As the label map's table has it.
        area_mm2: Its area in the slice.
        side: Where it lies about the middle of the scan, `left` or `right` of the patient, or `both` when it is in
            two parts; empty when it crosses the middle, or the slice is sagittal. A side in the name comes first.
    """

    name: str
    area_mm2: float = 0.0
    side: str = ""


@dataclass(frozen=True)
class SliceFacts:
    """What is known of a slice besides its pixels.

    Attributes:
        plane: Index into `stores.geometry.PLANES`.
        position: Place along the plane's normal inside the scan: 0 the inferior, posterior or left end, 1 the other.
        modality: `CT`, `MR` or `unknown`.
        body_part: Name of the imaged part; empty or `unknown` when not known.
        structures: The structures in the slice, largest first; empty unless label maps may be used.
        offset_mm: Distance from the scan's centre along the plane's normal, positive towards position 1.
        pixel_mm: Edge of a pixel of the shown image; 0 when not known.
        sequence: How an MR scan was weighted, for example `T1w`; empty when not known.
        hu_range: HU that are shown as 0 and as 255; None when the image is not in HU.

    Raises:
        CaseError: E_CAPTION, when a value is out of range, or a name looks like an id, a date or a path.
    """

    plane: int
    position: float
    modality: str
    body_part: str
    structures: tuple[Structure, ...] = ()
    offset_mm: float = 0.0
    pixel_mm: float = 0.0
    sequence: str = ""
    hu_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.plane not in range(len(PLANES)):
            raise CaseError("E_CAPTION", f"plane {self.plane} is not one of 0 to {len(PLANES) - 1}")
        if not 0 <= self.position <= 1:
            raise CaseError("E_CAPTION", f"position {self.position} is not between 0 and 1")
        if self.modality not in MODALITIES:
            raise CaseError("E_CAPTION", f"modality {self.modality!r} is not one of {', '.join(MODALITIES)}")
        if not _SEQUENCE.fullmatch(self.sequence):
            hint = "letters and digits, at most two in a row, for example T1w"
            raise CaseError("E_CAPTION", f"{self.sequence!r} does not look like an MR sequence", hint=hint)
        if any(structure.side not in SIDES for structure in self.structures):
            raise CaseError("E_CAPTION", f"a side is none of {', '.join(SIDES[1:])}")
        if not (np.isfinite(self.offset_mm) and 0 <= self.pixel_mm < np.inf):
            raise CaseError("E_CAPTION", f"offset {self.offset_mm} mm or pixel {self.pixel_mm} mm is no length")
        if self.hu_range is not None and not self.hu_range[0] < self.hu_range[1]:
            raise CaseError("E_CAPTION", f"HU from {self.hu_range[0]} to {self.hu_range[1]} are no range")
        for name in (self.body_part, *(structure.name for structure in self.structures)):
            if not _NAME.fullmatch(name):
                hint = "name it in words, with at most two digits in a row"
                raise CaseError("E_CAPTION", f"{name!r} does not look like a name of anatomy", hint=hint)


def opening_of(text: str) -> str:
    """The first sentence of a caption: the plane and the place, with which every captioner begins."""
    return f"{text.split('. ', maxsplit=1)[0].rstrip('.')}."


@dataclass(frozen=True)
class ShownPlane:
    """The valid slices of a plane, in ascending order of position.

    Attributes:
        images: As the teacher sees them, 0 black to 255 white.
        facts: One a slice.
        slices: Their positions in the cube: a key of the store, no part of what is shown.
    """

    images: UInt8[np.ndarray, "s y x"]
    facts: tuple[SliceFacts, ...]
    slices: tuple[int, ...]


@dataclass(frozen=True)
class ShownVolume:
    """What a captioner gets of a volume.

    Attributes:
        volume: Its id, a key of the store: must not leave the process, as it may hold a file's name.
        planes: Axial, coronal, sagittal.
    """

    volume: str
    planes: tuple[ShownPlane, ShownPlane, ShownPlane]


Texts = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Written:
    """What a captioner gives back.

    Attributes:
        texts: Per plane, one text a slice.
        sources: Per plane, one letter of `SOURCES` a text; empty for a captioner with but one way.
        facts: Per plane, one JSON-ready object a slice: what was measured; empty when nothing was.
    """

    texts: Texts
    sources: tuple[str, str, str] = ("", "", "")
    facts: tuple[tuple[dict[str, Any], ...], ...] = ()


@runtime_checkable
class Captioner(Protocol):
    """Gives text for slices; the same fingerprint promises the same texts."""

    @property
    def name(self) -> str:
        """As in `--captioner`."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that determines the captions, but for what is shown and `of_volume`."""

    def of_volume(self, volume: str) -> str:
        """What else the captions of one volume depend on, as a digest; empty when nothing does."""

    def caption(self, shown: ShownVolume) -> Written:
        """Return one text for each slice of each plane."""


@runtime_checkable
class Permitted(Protocol):
    """What a captioner offers beside `Captioner` that may ask only whom the user allows."""

    def require_permission(self) -> None:
        """Refuse settings by which nothing may be asked; sends nothing."""


@runtime_checkable
class Asking(Protocol):
    """What a captioner that asks others offers beside `Captioner`: a look before the first question, and a count."""

    def begin(self, records: Sequence[VolumeRecord], *, report: Report, check: Check) -> None:
        """Refuse or warn before anything is asked about these volumes; `check` may later stop a volume midway."""

    def summary(self) -> dict[str, Any]:
        """What was asked and answered, JSON-ready."""
