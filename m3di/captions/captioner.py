"""The seam between the store and whoever writes captions: what they are shown, and what they give back."""

import re
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from stores.errors import CaseError
from stores.geometry import PLANES

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


@dataclass(frozen=True)
class SliceFacts:
    """What is known of a slice besides its pixels.

    Attributes:
        plane: Index into `stores.geometry.PLANES`.
        position: Place along the plane's normal inside the scan: 0 the inferior, posterior or left end, 1 the other.
        modality: `CT`, `MR` or `unknown`.
        body_part: Name of the imaged part; empty or `unknown` when not known.
        structures: Names of the structures in the slice, largest first.
        offset_mm: Distance from the scan's centre along the plane's normal, positive towards position 1.
        pixel_mm: Edge of a pixel of the shown image; 0 when not known.

    Raises:
        CaseError: E_CAPTION, when a value is out of range, or a name looks like an id, a date or a path.
    """

    plane: int
    position: float
    modality: str
    body_part: str
    structures: tuple[str, ...] = ()
    offset_mm: float = 0.0
    pixel_mm: float = 0.0

    def __post_init__(self) -> None:
        if self.plane not in range(len(PLANES)):
            raise CaseError("E_CAPTION", f"plane {self.plane} is not one of 0 to {len(PLANES) - 1}")
        if not 0 <= self.position <= 1:
            raise CaseError("E_CAPTION", f"position {self.position} is not between 0 and 1")
        if self.modality not in MODALITIES:
            raise CaseError("E_CAPTION", f"modality {self.modality!r} is not one of {', '.join(MODALITIES)}")
        for name in (self.body_part, *self.structures):
            if not _NAME.fullmatch(name):
                hint = "name it in words, with at most two digits in a row"
                raise CaseError("E_CAPTION", f"{name!r} does not look like a name of anatomy", hint=hint)


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
