"""`key=value` conditions on the slices that may answer."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from m3di.captions.captioner import ENDS
from m3di.captions.claims import claimed
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.keys import plane_number
from stores.records import VolumeRecord

KEYS: Final = ("modality", "dataset", "body_part", "subject", "sequence", "volume")  # fields of a record
PLANE: Final = "plane"
PLACE: Final = "place"
MIDDLE: Final = "middle"
PLACES: Final = (MIDDLE, *(end for ends in ENDS for end in ends))
CONDITIONS: Final = (*KEYS, PLANE, PLACE)
UNKNOWN: Final = {"body_part": "", "modality": "unknown"}  # keys that texts name, and their value where nobody knows
MAX_NAMED: Final = 12  # values that a message lists

# How texts say a place along the plane's normal; "middle lobe" and "anterior horn" are none.
_MIDDLE: Final = re.compile(
    r"\bmid[- ]?(?:axial|coronal|sagittal|line)|\b(?:middle|cent(?:re|er)) (?:of|third|part|slice)\b"
    r"|\bcentral (?:third|part|slice)\b"
)
_END: Final = re.compile(r"\b([a-z]+)(?:most)? (?:third|part|end)\b")
_END_WORDS: Final = {
    "superior": "upper", "top": "upper", "cranial": "upper", "inferior": "lower", "bottom": "lower",
    "caudal": "lower", "anterior": "front", "ventral": "front", "posterior": "back", "dorsal": "back",
    **{end: end for ends in ENDS for end in ends},
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """What a text names of one key.

    Attributes:
        key: The key.
        values: Those that it names.
        otherwise: Values that may answer after these.
    """

    key: str
    values: tuple[str, ...]
    otherwise: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether any volume is known to be what the text names."""
        return self.values != (UNKNOWN.get(self.key),)

    @property
    def words(self) -> str:
        """For people."""
        listed = " or ".join(value or "unknown" for value in (*self.values, *self.otherwise))
        return f"{self.key.replace('_', ' ')} {listed}"


def allowed_blocks(
    conditions: Iterable[str], records: Callable[[], Sequence[VolumeRecord]], *, count: int
) -> npt.NDArray[np.bool_]:
    """Which blocks of rows may answer: (n, 3), by volume and plane.

    Upper and lower case count alike; an empty value asks for volumes of which that is not known.

    Args:
        conditions: Texts `key=value`. Those of one key are alternatives; each key must hold.
        records: Gives the volumes, in the order of the index; asked only if a condition is on them.
        count: How many volumes there are.

    Raises:
        RefusedError: E_CONFIG, for an unknown key, or a value that no volume has.
    """
    wanted: dict[str, set[str]] = {}
    for condition in conditions:
        key, value = _parsed(condition)
        wanted.setdefault(key, set()).add(value)
    allowed = np.ones((count, len(PLANES)), bool)
    for key, values in wanted.items():
        if key == PLACE:
            allowed &= _thirds(values).any(axis=1)
        elif key == PLANE:
            allowed &= np.isin(np.arange(len(PLANES)), [plane_number(value) for value in values])
        else:
            allowed &= _having(key, values, records())[:, None]
    if not allowed.any():
        message = f"no volume is {' and '.join(_words(key, values) for key, values in wanted.items())}"
        raise RefusedError("E_CONFIG", message, hint="leave a condition out")
    return allowed


def thirds_allowed(conditions: Iterable[str]) -> npt.NDArray[np.bool_] | None:
    """Which thirds of a scan may answer, along each plane's normal from the end where positions are 0: (3, 3).

    None where no condition is on the place.

    Raises:
        RefusedError: E_CONFIG, for an unknown place.
    """
    places = {value for key, value in map(_parsed, conditions) if key == PLACE}
    return _thirds(places) if places else None


def named_in(text: str, records: Iterable[VolumeRecord]) -> Iterator[Named]:
    """What a text names: a plane, a place along its normal, body parts and modalities that volumes have.

    A body part is also named by the region that it lies in, a lung by `chest`, and a region by its organs, a head by
    `brain`; but no organ by another. Volumes of which a body part or modality is not known may be of it, and answer
    after those that are. Where no volume is known to be of the part, those of unknown parts answer first.
    """
    words = _phrase("mr" if word == "mri" else word for word in _words_of(text))
    planes = [plane for plane in PLANES if {plane, f"mid{plane}"} & set(words.split())]
    if len(planes) == 1:
        yield Named(PLANE, tuple(planes))
    if places := _places(text, planes):
        yield Named(PLACE, places)
    known = list(records)
    for key, unknown in UNKNOWN.items():
        values = {str(getattr(record, key)) for record in known}
        others = values - {unknown}
        named = {value for value in others if _phrase(_words_of(value)) in words}
        if key == "body_part":
            named |= _related(others, text)
        if named:
            yield Named(key, tuple(sorted(named)), tuple({unknown} & values))
        elif key == "body_part" and claimed("region", text) and others and unknown in values:
            yield Named(key, (unknown,), tuple(sorted(others)))


def _places(text: str, planes: Sequence[str]) -> tuple[str, ...]:
    """The places that a text names; an end only of the one plane that it names."""
    lower = text.lower()
    found = {MIDDLE} if _MIDDLE.search(lower) else set()
    if len(planes) == 1:
        ends = ENDS[plane_number(planes[0])]
        found |= {end for word in _END.findall(lower) if (end := _END_WORDS.get(word)) in ends}
    return tuple(sorted(found))


def _related(parts: Iterable[str], text: str) -> set[str]:
    """The regions whose organs a text names, and the organs of regions that it names and no organ of."""
    regions = claimed("region", text)
    called = regions & set(_words_of(text))
    further = claimed("region", re.sub(rf"\b(?:{'|'.join(called)})\b", "", text.lower())) if called else set()
    whole = called - further
    return {part for part in parts if part.lower() in regions or claimed("region", part) & whole}


def _phrase(words: Iterable[str]) -> str:
    """Words to be looked for within others, in the singular: what it makes of them needs to be no word."""
    return f" {' '.join(word.removesuffix('s') for word in words)} "


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _parsed(condition: str) -> tuple[str, str]:
    key, equals, value = condition.partition("=")
    if not equals or key not in CONDITIONS:
        message = f"--where {condition!r} is not KEY=VALUE with one of {', '.join(CONDITIONS)}"
        raise RefusedError("E_CONFIG", message, hint="for example --where modality=MR")
    return key, value.strip().lower()


def _thirds(places: set[str]) -> npt.NDArray[np.bool_]:
    """As `thirds_allowed`: the middle is that of every plane, an end that of its own."""
    for place in sorted(places - set(PLACES)):
        raise RefusedError("E_CONFIG", f"no place is called {place!r}", hint=f"use one of {', '.join(PLACES)}")
    return np.array([[low in places, MIDDLE in places, high in places] for low, high in ENDS])


def _having(key: str, values: set[str], records: Sequence[VolumeRecord]) -> npt.NDArray[np.bool_]:
    found = [str(getattr(record, key)) for record in records]
    unknown = values - {value.lower() for value in found}
    if unknown:
        known = sorted({value for value in found if value})
        listed = ", ".join(known[:MAX_NAMED]) + (
            f" and {len(known) - MAX_NAMED} more" if len(known) > MAX_NAMED else ""
        )
        message = f"no volume has {_words(key, unknown)}"
        raise RefusedError("E_CONFIG", message, hint=f"the store has {listed or 'none that is known'}")
    return np.array([value.lower() in values for value in found], bool)


def _words(key: str, values: Iterable[str]) -> str:
    return " or ".join(f"{key}={value!r}" for value in sorted(values))
