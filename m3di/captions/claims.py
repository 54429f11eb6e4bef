"""What a caption claims - plane, modality, side, anatomy - and whether that goes against what is known of its slice.

Words only, without understanding: a claim counts as wrong when the text names what the slice is not and nothing of
what it is, so that comparisons ("unlike the coronal view") and lists of both sides pass.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from stores.geometry import PLANES

_PLANES: Final = {
    "axial": r"\b(?:axial|transverse|transaxial)(?!\s+(?:process|colon|sinus|skeleton|cord))",
    "coronal": r"\bcoronal(?!\s+suture)",
    "sagittal": r"\b(?:mid-?|para)?sagittal(?!\s+(?:sinus|suture))",
}
_MODALITIES: Final = {
    "CT": r"\bCTA?\b|(?i:\bcomputed\s+tomograph\w+|\bhounsfield\b)",
    "MR": r"\bMR[IA]?\b|(?i:\bmagnetic\s+resonance\b)|\bT[12][- ]?(?i:w|weighted)\b|\bFLAIR\b",
    "other": r"(?i:\bultrasound\b|\bsonograph\w+|\bX-?rays?\b|\bradiograph\b|\bmammogra\w+)",
}
_SIDES: Final = {"left": r"\bleft\b", "right": r"\bright\b"}
_REGIONS: Final = {
    "head": r"brain|cerebr\w+|cerebell\w+|hippocamp\w+|skull|crani\w+|orbits?|orbital|pituitary|thalam\w+|putamen"
    r"|caudate nucleus|corpus callosum|brainstem|midbrain|sella|mandible|head",
    "neck": r"neck|thyroid|larynx|laryngeal|pharynx|cervical spine",
    "chest": r"chest|thorax|thoracic cavity|lungs?|pulmonary|hearts?|cardiac|myocardi\w+|mediastin\w+"
    r"|breasts?|pleura\w*|bronch\w+|sternum|left ventricle|right ventricle|left atrium|right atrium",
    "abdomen": r"abdomen|abdominal|liver|hepatic|spleen|splenic|pancrea\w+|kidneys?|renal|gallbladder|stomach|bowel"
    r"|duoden\w+|jejun\w+|adrenals?|appendix",
    "pelvis": r"pelvis|pelvic|prostate|prostatic|uterus|uterine|ovar\w+|urinary bladder|rectum|rectal|sacrum|seminal",
    "limb": r"knees?|femur|femoral|tibia\w*|fibula\w*|menisc\w+|patell\w+|ankles?|feet|foot|wrists?|elbows?"
    r"|shoulders?|humer\w+|hips?",
}
# A scan of one region also shows the edges of its neighbours.
_NEIGHBOURS: Final = {
    "head": {"neck"}, "neck": {"head", "chest"}, "chest": {"neck", "abdomen", "limb"},
    "abdomen": {"chest", "pelvis"}, "pelvis": {"abdomen", "limb"}, "limb": {"pelvis", "chest"},
}  # fmt: skip
_CLAIMS: Final = {
    kind: {
        name: re.compile(pattern, 0 if kind == "modality" else re.IGNORECASE) for name, pattern in patterns.items()
    }
    for kind, patterns in {
        "plane": _PLANES,
        "modality": _MODALITIES,
        "side": _SIDES,
        "region": {name: rf"\b(?:{pattern})\b" for name, pattern in _REGIONS.items()},
    }.items()
}
_OFF_MIDDLE: Final = 0.15  # how far from the middle a sagittal slice is on one side for sure


def claimed(kind: str, text: str) -> set[str]:
    """What a text names of a kind: `plane`, `modality`, `side` or `region`."""
    return {name for name, pattern in _CLAIMS[kind].items() if pattern.search(text)}


def wrong_claims(  # noqa: PLR0917
    text: str,
    plane: int,
    position: float,
    modality: str,
    body_part: str,
    structures: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Name what a caption says against what is known of its slice.

    Args:
        text: The caption.
        plane: Index into `stores.geometry.PLANES`.
        position: 0 the inferior, posterior or left end, 1 the other.
        modality: `CT`, `MR` or `unknown`.
        body_part: Empty or `unknown` when not known.
        structures: Those of the slice's facts, with `name` and `side`.

    Returns:
        Some of `wrong plane`, `wrong modality`, `wrong side`, `wrong organ`.
    """
    wrong = []
    if _contradicts(claimed("plane", text), {PLANES[plane]}):
        wrong.append("wrong plane")
    if modality != "unknown" and _contradicts(claimed("modality", text), {modality}):
        wrong.append("wrong modality")
    if _wrong_side(text, plane, position, structures):
        wrong.append("wrong side")
    names = [body_part, *(str(structure.get("name", "")) for structure in structures)]
    if _contradicts(claimed("region", text), _regions(names)):
        wrong.append("wrong organ")
    return wrong


def _contradicts(named: set[str], known: set[str]) -> bool:
    """Whether a text names something, but nothing of what is known; nothing known contradicts nothing."""
    return bool(named) and bool(known) and not named & known


def _wrong_side(text: str, plane: int, position: float, structures: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a text names the other side of a sagittal slice, or a structure on a side where it is not."""
    if PLANES[plane] == "sagittal":
        own = set() if abs(position - 0.5) < _OFF_MIDDLE else {"left" if position < 0.5 else "right"}
        return _contradicts(claimed("side", text), own)
    sides: dict[str, set[str]] = {}
    for structure in structures:
        words = str(structure.get("name", "")).replace("_", " ").lower().split()
        base = " ".join(word for word in words if word not in _SIDES)
        sides.setdefault(base, set()).update(set(words) & set(_SIDES) or {str(structure.get("side", ""))})
    named = {
        base: {side for side in _SIDES if re.search(rf"\b{side} {re.escape(base)}\b", text, re.IGNORECASE)}
        for base in sides
    }
    return any(known <= set(_SIDES) and _contradicts(named[base], known) for base, known in sides.items())


def _regions(names: Sequence[str]) -> set[str]:
    """Regions that a slice of these parts may show; empty when none of them is known."""
    own: set[str] = set()
    for name in names:
        own |= claimed("region", name.replace("_", " "))
    return own.union(*(_NEIGHBOURS[region] for region in own)) if own else set()
