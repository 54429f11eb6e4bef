"""Deterministic captions: what a slice shows, said in words from its place, what was measured, and a label map.

Words retrieve better than numbers and cost fewer tokens; the place comes first, and stays whatever the limit is.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from m3di.captions.captioner import ENDS, ShownVolume, SliceFacts, Structure, Written
from m3di.captions.measure import Form, Measured, Region, measure
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.recipe import digest_of

VERSION: Final = 2  # raise whenever the same slice and facts would be captioned otherwise
CLIP_TOKENS: Final = 75  # CLIP's context less its two special tokens
FEWEST_TOKENS: Final = 20  # room for plane and place

_UNNAMED: Final = frozenset({"", "unknown", "other"})
_BESIDE: Final = (("below", "above"), ("behind", "in front of"), ("left of", "right of"))
# Where the top and bottom, and the left and right edge of a picture lie, by plane (`m3di.volumes.slices.displayed`).
_ROWS: Final = (("front", "back"), ("upper", "lower"), ("upper", "lower"))
_COLUMNS: Final = (("right", "left"), ("right", "left"), ("front", "back"))
_ALONE: Final = {"upper": "top", "lower": "bottom"}
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
_LENGTHS: Final = ((1.2, "A round"), (1.7, "An oval"), (np.inf, "An elongated"))
_COUNTS: Final = ("no", "one", "two", "three", "four")
# Least share of the cross-section that a class of tissue in CT is named from.
_NAMED_FROM: Final = {"air": 0.02, "fat": 0.05, "soft tissue": 0.05, "bone or contrast": 0.01}
_VERY_DENSE_FROM: Final = 0.002
_DISTINCT: Final = (0.004, 0.15)  # of the cross-section: a brightest region that is no speck, and no half of it
# Tokens that a word takes at most, in CLIP's and in MiniLM's vocabulary; any other takes one a letter at most.
_TOKENS: Final = {
    word: count
    for count, words in {
        1: "about above across air alike alone along an and any are artery as at atlas atrium axial back "
        "background be behind below bladder body bone bones both bottom brain breast bright brighter "
        "brightest by central centre chest colon common contrast cord core cortex cross ct dark dense differ "
        "disc edge edges end enhancing fat field fill fills flair fluid fluids four front gland grey half "
        "hardly head heart high hip horn in irregular is it its kidney knee large largest left light liver "
        "lobe look low lower lung lungs many matter may medium metal middle mm moderate most mostly mr much "
        "muscle near nearly no non of on one or other oval part parts pd portal prostate pulmonary quarter "
        "reach reaches region regions rib ribs right round scattered section seen separate shown shows side "
        "sides sixth skull slice small soft some spinal spine spots stomach superior tail than that the third "
        "thirds three thyroid tissue to together trunk tumor two upper vein very vessel view visible white "
        "whole wide with",
        2: "adc anterior aorta ascending atrial bowel cava coronal costal cropped cyst dwi edema elongated femur "
        "ileum iliac inferior kidneys lesion lesions nucleus pdw pelvis posterior rectangle rectum sacrum "
        "spleen testis thymus tumour uterus vagina vena vertebrae",
        3: "abdomen adrenal appendage autochthon carotid cartilage cartilages caudate cavities clavicle enclose "
        "encloses gallbladder humerus jejunum mucosa myocardial necrosis nodule pancreas putamen sagittal "
        "scapula sigmoid splenic subclavian subcortical t1ce t2star thalamus trachea tumours ventricle",
        4: "cerebellum duodenum esophagus gluteus hippocampus myocardium t1dual t2spir",
        5: "cerebrospinal hypophysis iliopsoas oesophagus",
        6: "brachiocephalic",
    }.items()
    for word in words.split()
}  # fmt: skip


@dataclass(frozen=True)
class Describer:
    """The captioner that needs no model.

    Attributes:
        max_structures: How many structures a caption names at most, the largest ones.
        max_tokens: How long a caption may be: the context of the teacher's text tower less its special tokens.

    Raises:
        RefusedError: E_CONFIG, when plane and place would not fit.
    """

    max_structures: int = 6
    max_tokens: int = CLIP_TOKENS

    def __post_init__(self) -> None:
        if self.max_tokens < FEWEST_TOKENS:
            hint = f"set captions.max_tokens to {FEWEST_TOKENS} or more"
            raise RefusedError("E_CONFIG", f"{self.max_tokens} tokens are too few for plane and place", hint=hint)

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
        """One caption a slice, and the facts that it was made of."""
        texts: list[tuple[str, ...]] = []
        facts: list[tuple[dict[str, Any], ...]] = []
        for plane in shown.planes:
            found = [measure(image, known) for image, known in zip(plane.images, plane.facts, strict=True)]
            both = list(zip(found, plane.facts, strict=True))
            texts.append(
                tuple(
                    render(one, known, max_tokens=self.max_tokens, max_structures=self.max_structures)
                    for one, known in both
                )
            )
            facts.append(tuple(exact(one, known) for one, known in both))
        return Written((texts[0], texts[1], texts[2]), facts=tuple(facts))


def describe(
    image: UInt8[np.ndarray, "y x"], facts: SliceFacts, *, max_tokens: int = CLIP_TOKENS, max_structures: int = 6
) -> str:
    """Measure a slice and describe it.

    Args:
        image: The slice as it is shown to the teacher, 0 black to 255 white.
        facts: What is known of it.
        max_tokens: How long the text may be, at least `FEWEST_TOKENS`.
        max_structures: How many structures are named at most.
    """
    return render(measure(image, facts), facts, max_tokens=max_tokens, max_structures=max_structures)


def exact(measured: Measured, facts: SliceFacts) -> dict[str, Any]:
    """What is known of a slice and what was measured, as JSON-ready values."""
    return {
        "plane": PLANES[facts.plane],
        "position": round(facts.position, 4),
        "offset_mm": round(facts.offset_mm, 2),
        "modality": facts.modality,
        "sequence": facts.sequence,
        "body_part": facts.body_part,
        "structures": [vars(structure).copy() for structure in facts.structures],
        **measured.to_dict(),
    }


def render(measured: Measured, facts: SliceFacts, *, max_tokens: int = CLIP_TOKENS, max_structures: int = 6) -> str:
    """Say in words what is known of a slice: plane and place first, then whole sentences by their worth that fit.

    Args:
        measured: What was measured of it.
        facts: What is known of it.
        max_tokens: How long the text may be (`count_tokens`), at least `FEWEST_TOKENS`.
        max_structures: How many structures are named at most.

    Returns:
        ASCII sentences; no word is ever cut.
    """
    said: list[str] = []
    room = max_tokens
    for wordings in _sentences(measured, facts, max_structures):
        wording = next((wording for wording in wordings if count_tokens(wording) <= room), None)
        if wording is not None:
            said.append(wording)
            room -= count_tokens(wording)
    return " ".join(said)


@lru_cache(maxsize=4096)  # the slices of a volume share most of their sentences
def count_tokens(text: str) -> int:
    """How many tokens a text takes at most, in CLIP's and in MiniLM's vocabulary, special ones left out."""
    pieces = re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())
    return sum(_TOKENS.get(piece, len(piece)) for piece in pieces)


def _sentences(measured: Measured, facts: SliceFacts, max_structures: int) -> Iterator[Sequence[str]]:
    """The sentences by their worth, each as wordings from the longest to the shortest."""
    yield _openings(facts)
    yield _structures(facts.structures, max_structures)
    if measured.form is None:
        yield ["No tissue is visible."]
        return
    yield _extent(measured, measured.form)
    yield _intensities(measured, facts.plane)
    yield _tissues(measured)
    yield _cavities(measured, facts.plane)
    yield _symmetry(measured)


def _openings(facts: SliceFacts) -> list[str]:
    modality = "" if facts.modality == "unknown" else facts.modality
    part = _words(facts.body_part)
    part = "" if part in _UNNAMED else f" of the {part}"
    plane = PLANES[facts.plane].capitalize()
    place = _place(facts)
    distance = _distance(facts)
    kinds = (f"{facts.sequence} {modality}", modality, modality, modality, "")
    parts = (part, part, part, "", "")
    places = (f"{place}{distance}", f"{place}{distance}", place, place, place)
    return [
        f"{' '.join(f'{plane} {kind} slice'.split())}{of}, {where}."
        for kind, of, where in zip(kinds, parts, places, strict=True)
    ]


def _place(facts: SliceFacts) -> str:
    """Nine places along the normal, and the two ends."""
    low, high = ENDS[facts.plane]
    if facts.position < 0.03 or facts.position > 0.97:
        return f"at the very {high if facts.position > 0.5 else low} end"
    third, within = divmod(min(int(facts.position * 9), 8), 3)
    region = (f"in the {low} third", "in the middle third", f"in the {high} third")[third]
    return f"{region}, {(f'near its {low} side', 'at its centre', f'near its {high} side')[within]}"


def _distance(facts: SliceFacts) -> str:
    """How far from the scan's centre, in round millimetres; empty where that is none."""
    about = _about(abs(facts.offset_mm))
    return f", about {about} mm {_BESIDE[facts.plane][facts.offset_mm > 0]} the centre" if about else ""


def _about(length_mm: float) -> int:
    """A length in round millimetres."""
    step = 5 if length_mm < 47.5 else 10 if length_mm < 195 else 20
    return round(length_mm / step) * step


def _structures(structures: Sequence[Structure], most: int) -> list[str]:
    names = _both_sides(structures)[:most]
    return [f"It shows {_listed(names[:count])}." for count in range(len(names), 0, -1)]


def _extent(measured: Measured, form: Form) -> list[str]:
    """Size and form of the cross-section."""
    filled = _word(_FILL, measured.fill)
    if form.parts == 0:
        return [f"Scattered spots fill {filled}."]
    across = _about(max(form.width_mm or 0.0, form.height_mm or 0.0))
    size = f", about {across} mm across," if across else ""
    if form.parts > 1:
        count = _COUNTS[form.parts] if form.parts < len(_COUNTS) else "many"
        subject, verb, size = (
            f"{count.capitalize()} separate parts",
            "fill",
            size.replace("across", "across together"),
        )
    else:
        subject, verb = _outline(form), "fills"
    return [f"{subject}{size} {verb} {filled}.", f"{subject} {verb} {filled}."]


def _outline(form: Form) -> str:
    if form.cut_sides:
        return "A cropped cross section"
    if form.roundness < 0.85:
        return "An irregular cross section"
    return f"{_word(_LENGTHS, form.elongation)} cross section"


def _intensities(measured: Measured, plane: int) -> list[str]:
    tissue = f"{_word(_GREY, measured.grey).capitalize()} tissue of {_word(_CONTRAST, measured.contrast)} contrast"
    region = measured.brightest
    if region is None or region.excess < 0.1 or not _DISTINCT[0] <= region.share <= _DISTINCT[1]:
        return [f"{tissue}."]
    return [f"{tissue}, brightest {_where(region, plane)}.", f"{tissue}."]


def _tissues(measured: Measured) -> list[str]:
    """Tissues in CT by their share."""
    shares = measured.tissues or {}
    named = [name for name, least in _NAMED_FROM.items() if shares.get(name, 0) >= least]
    named.sort(key=lambda name: -shares[name])
    dense = "Very dense spots may be bone, contrast or metal."
    has_dense = shares.get("very dense", 0) >= _VERY_DENSE_FROM
    if not named:
        return [dense] if has_dense else []
    most, *rest = named
    first = f"{'Mostly ' if shares[most] >= 0.5 else ''}{most}{f' with {_listed(rest)}' if rest else ''}."
    first = first[0].upper() + first[1:]
    return [f"{first} {dense}", first, dense] if has_dense else [first]


def _cavities(measured: Measured, plane: int) -> list[str]:
    if not measured.cavities:
        return []
    kind = "air" if "air" in (measured.tissues or {}) else "dark"
    size = "large" if measured.cavities[0].share >= 0.05 else "small"
    count = len(measured.cavities)
    regions = f"a {size} {kind} region" if count == 1 else f"{_COUNTS[count]} {kind} regions"
    largest = _where(measured.cavities[0], plane)
    return [f"It encloses {regions}{'' if count == 1 else ', the largest'} {largest}.", f"It encloses {regions}."]


def _symmetry(measured: Measured) -> list[str]:
    if measured.symmetry is None or measured.fill < 0.02:
        return []
    if measured.symmetry >= 0.75:
        return ["Left and right look alike."]
    return ["Left and right differ."] if measured.symmetry < 0.35 else []


def _where(region: Region, plane: int) -> str:
    """Where in the cross-section a region's centre lies, in the patient's directions."""
    row = "" if 0.4 <= region.row <= 0.6 else _ROWS[plane][region.row > 0.5]
    column = "" if 0.4 <= region.column <= 0.6 else _COLUMNS[plane][region.column > 0.5]
    if row and column:
        return f"at the {row} {column}"
    return f"at the {_ALONE.get(row, row) or column}" if row or column else "in the middle"


def _word(scale: Sequence[tuple[float, str]], value: float) -> str:
    """The word of the first step of a scale that lies above the value."""
    return next(word for limit, word in scale if value < limit)


def _both_sides(structures: Sequence[Structure]) -> list[str]:
    """Structures with their sides; `left x` and `right x`, in either word order, become `x on both sides`."""
    named = [(*_without_side(_words(structure.name)), structure.side) for structure in structures]
    joined: dict[str, None] = {}
    for base, side, lies in named:
        sides = {other for name, other, _ in named if name == base}
        if side:
            joined[f"{base} on both sides" if {"left", "right"} <= sides else f"{side} {base}"] = None
        else:
            joined[base + {"": "", "both": " on both sides"}.get(lies, f" on the {lies}")] = None
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
