"""What a model is asked about a slice: fixed words, and facts from closed lists. Nothing else of a volume is sent."""

from typing import Final

from m3di.captions.captioner import ENDS, SliceFacts
from stores.geometry import PLANES

VERSION: Final = 1  # raise whenever the same facts would be put into other words
FACTS: Final = ("modality", "sequence", "body part", "plane", "position along the plane's normal, in percent")
WORDINGS: Final = 2  # the second is for a model that refused the first

_SHOWN: Final = (
    "the front is at the top, the right side at the left edge",
    "the upper end is at the top, the right side at the left edge",
    "the upper end is at the top, the front at the left edge",
)
# Words of anatomy that may be sent as a body part: a table's own words might be a name or a place.
_ANATOMY: Final = """
    abdomen abdominal adrenal ankle aorta arm atrium bladder body bone brain breast cardiac cervical chest colon
    elbow extremity face femur foot forearm gland hand head heart hip hippocampus humerus jaw kidney kidneys
    knee leg liver lumbar lung lungs mandible mediastinum neck orbit ovary pancreas pelvic pelvis prostate
    rectum rib ribs sacrum shoulder sinus skull spinal spine spleen stomach thigh thoracic thorax thyroid tibia
    trunk uterus wrist left right upper lower whole full and of the
"""
_SEQUENCES: Final = """
    t1 t2 t1w t2w pd pdw flair adc dwi swi t2star t2*w t1gd t1ce t1c t1n t2f t1dual t2spir bssfp cine inphase outphase
"""
_ASK: Final = (
    "This is one {slice}, shown in grey: {shown}. It lies about {percent} percent of the way from the {low} to "
    "the {high} end of the scan. Describe in one to three plain sentences, of at most {words} words together, what "
    "can be seen: structures, their side and shape, bright and dark areas. Do not name the plane or the position, "
    "do not guess a diagnosis, and do not mention anything that is not visible.",
    "For an index of pictures, name what is visible in this one {slice}, {percent} percent of the way from the {low} "
    "to the {high} end: shapes, structures, their side, bright and dark areas. No medical advice is asked for, and "
    "nothing about a person. If unsure, describe only light and dark shapes. At most {words} words.",
)
_ANSWER: Final = 'Answer as JSON: {"caption": "..."}'


def prompt_of(facts: SliceFacts, *, wording: int, max_words: int) -> str:
    """The question about a slice.

    Args:
        facts: What is known of it; structures, offset and pixel size are not told.
        wording: 0, or 1 for once more in other words.
        max_words: How long the answer may be.
    """
    low, high = ENDS[facts.plane]
    percent = round(facts.position * 20) * 5
    asked = _ASK[wording].format(
        slice=_slice(facts),
        percent=percent,
        low=low,
        high=high,
        words=max_words,
        shown=_SHOWN[facts.plane],
    )
    return f"{asked} {_ANSWER}"


def _slice(facts: SliceFacts) -> str:
    modality = "" if facts.modality == "unknown" else f"{facts.modality} "
    weighted = f"{facts.sequence} " if facts.sequence.lower() in _SEQUENCES.split() else ""
    words = facts.body_part.lower().replace("_", " ").replace("-", " ").split()
    part = f" of the {' '.join(words)}" if words and set(_ANATOMY.split()).issuperset(words) else ""
    return f"{PLANES[facts.plane]} {weighted}{modality}slice{part}"
