"""Deterministic captions: what a slice shows, said in words from its place, its intensities and a label map.

Words retrieve better than numbers and cost fewer tokens; the place comes first, so that it survives truncation.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8

from m3di.captions.captioner import ShownVolume, SliceFacts, Written
from stores.geometry import PLANES
from stores.recipe import digest_of

VERSION: Final = 1  # raise whenever the same slice and facts would be captioned otherwise

_UNNAMED: Final = frozenset({"", "unknown", "other"})
_ENDS: Final = (("lower", "upper"), ("back", "front"), ("left", "right"))  # by plane, where position is 0 and 1
_ROWS: Final = ("top", "", "bottom")
_COLUMNS: Final = ("left", "", "right")
_FILL: Final = (
    (0.02, "hardly any of the field"),
    (0.1, "a small part of the field"),
    (0.2, "about a sixth of the field"),
    (0.3, "a quarter of the field"),
    (0.4, "a third of the field"),
    (0.6, "half of the field"),
    (0.75, "two thirds of the field"),
    (0.9, "most of the field"),
    (1.1, "the whole field"),
)
_GREY: Final = (
    (0.15, "very dark"),
    (0.25, "dark"),
    (0.35, "dark grey"),
    (0.45, "medium grey"),
    (0.55, "light grey"),
    (0.7, "bright"),
    (1.1, "very bright"),
)
_CONTRAST: Final = ((0.08, "very low"), (0.13, "low"), (0.18, "moderate"), (0.25, "high"), (1.1, "very high"))
_BRIGHT: Final = ((0.03, "scattered"), (0.1, "small"), (0.25, "medium-sized"), (0.5, "large"), (1.1, "dominant"))


@dataclass(frozen=True)
class Describer:
    """The captioner that needs no model.

    Attributes:
        max_structures: How many structures a caption names at most, the largest ones.
    """

    max_structures: int = 6

    @property
    def name(self) -> str:
        """As in `--captioner`."""
        return "describe"

    @property
    def fingerprint(self) -> str:
        """Hex digest of version and settings."""
        return digest_of({"captioner": "describe", "version": VERSION, **asdict(self)})

    def of_volume(self, volume: str) -> str:
        """Nothing beside what is shown."""
        return ""

    def caption(self, shown: ShownVolume) -> Written:
        """One caption a slice."""
        texts = [
            tuple(describe(i, f, max_structures=self.max_structures) for i, f in zip(p.images, p.facts, strict=True))
            for p in shown.planes
        ]
        return Written((texts[0], texts[1], texts[2]))


def describe(image: UInt8[np.ndarray, "y x"], facts: SliceFacts, *, max_structures: int = 6) -> str:
    """Describe a slice: plane, modality, body part, place, structures if known, then intensities.

    Args:
        image: The slice as it is shown to the teacher, 0 black to 255 white.
        facts: What is known of it.
        max_structures: How many structures are named at most.

    Returns:
        One to three sentences of ASCII, about 55 CLIP tokens without structures.
    """
    sentences = [f"{_subject(facts)}, {_place(facts)}."]
    if facts.structures:
        sentences.append(f"It shows {_listed(_both_sides(facts.structures)[:max_structures])}.")
    sentences.append(_intensities(image.astype(np.float32) / 255))
    return " ".join(sentences)


def _subject(facts: SliceFacts) -> str:
    modality = "" if facts.modality == "unknown" else f" {facts.modality}"
    part = _words(facts.body_part)
    return f"{PLANES[facts.plane].capitalize()}{modality} slice" + ("" if part in _UNNAMED else f" of the {part}")


def _place(facts: SliceFacts) -> str:
    """Nine places along the normal, and the two ends."""
    low, high = _ENDS[facts.plane]
    if facts.position < 0.03 or facts.position > 0.97:
        return f"at the very {high if facts.position > 0.5 else low} end"
    third, within = divmod(min(int(facts.position * 9), 8), 3)
    region = (f"in the {low} third", "in the middle third", f"in the {high} third")[third]
    return f"{region}, {(f'near its {low} side', 'at its centre', f'near its {high} side')[within]}"


def _intensities(image: np.ndarray) -> str:
    tissue = image > 0.1  # above the air of a CT window and the noise floor of MR
    if not tissue.any():
        return "No tissue is visible."
    values = image[tissue]
    low, high = np.percentile(values, (5, 95))
    high = high if low < high else values.max()  # one grey with a small bright spot
    bright = tissue & (image >= (low + high) / 2)
    fill, contrast = _word(_FILL, tissue.mean()), _word(_CONTRAST, values.std())
    size = _word(_BRIGHT, bright.sum() / image.size)
    return (
        f"{_word(_GREY, values.mean()).capitalize()} tissue of {contrast} contrast fills {fill}, "
        f"with {size} bright areas {_where(bright)}."
    )


def _where(mask: np.ndarray) -> str:
    """Where in the picture the centre of a mask lies."""
    rows, columns = np.nonzero(mask)
    vertical = _ROWS[_toward(rows.mean(), mask.shape[0])]
    horizontal = _COLUMNS[_toward(columns.mean(), mask.shape[1])]
    side = " ".join(filter(None, (vertical, horizontal)))
    return f"toward the {side}" if side else "around the centre"


def _toward(centre: float | np.floating, size: int) -> int:
    """0, 1 or 2 for a centre of mass before, in or after the middle tenth: it seldom strays further."""
    offset = (float(centre) + 0.5) / size - 0.5
    return 1 if abs(offset) <= 0.05 else (0 if offset < 0 else 2)


def _word(scale: Sequence[tuple[float, str]], value: float | np.floating) -> str:
    """The word of the first step of a scale that lies above the value."""
    return next(word for limit, word in scale if value < limit)


def _both_sides(structures: Sequence[str]) -> list[str]:
    """Join `left x` and `right x`, in either word order, to `x on both sides`, at the place of the larger one."""
    names = [_words(name) for name in structures]
    joined: dict[str, None] = {}
    for name in names:
        middle, side = _without_side(name)
        sides = {other for base, other in map(_without_side, names) if base == middle}
        joined[f"{middle} on both sides" if side and {"left", "right"} <= sides else name] = None
    return list(joined)


def _without_side(name: str) -> tuple[str, str]:
    words = name.split(" ")
    for side in ("left", "right"):
        if side in words and len(words) > 1:
            return " ".join(word for word in words if word != side), side
    return name, ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
