"""`key=value` conditions on the slices that may answer."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from m3di.captions.claims import claimed
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.keys import plane_number
from stores.records import VolumeRecord

KEYS: Final = ("modality", "dataset", "body_part", "subject", "sequence", "volume")  # fields of a record
PLANE: Final = "plane"
UNKNOWN: Final = {"body_part": "", "modality": "unknown"}  # keys that texts name, and their value where nobody knows
MAX_NAMED: Final = 12  # values that a message lists


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
        if key == PLANE:
            allowed &= np.isin(np.arange(len(PLANES)), [plane_number(value) for value in values])
        else:
            allowed &= _having(key, values, records())[:, None]
    if not allowed.any():
        message = f"no volume is {' and '.join(_words(key, values) for key, values in wanted.items())}"
        raise RefusedError("E_CONFIG", message, hint="leave a condition out")
    return allowed


def named_in(text: str, records: Iterable[VolumeRecord]) -> Iterator[tuple[str, list[str]]]:
    """What a text names, as keys with their values: a plane, body parts and modalities that volumes have.

    A body part is also named by the region that it lies in, a lung by `chest`, and a region by its organs, a head by
    `brain`; but no organ by another. Volumes of which a body part or modality is not known count as named: they may
    be of it.
    """
    words = _phrase("mr" if word == "mri" else word for word in _words_of(text))
    planes: list[str] = [plane for plane in PLANES if plane in words.split()]
    if len(planes) == 1:
        yield PLANE, planes
    known = list(records)
    for key, unknown in UNKNOWN.items():
        values = {str(getattr(record, key)) for record in known}
        named = {value for value in values - {unknown} if _phrase(_words_of(value)) in words}
        if key == "body_part":
            named |= _related(values, text)
        if named:
            yield key, [*sorted(named), *({unknown} & values)]


def _related(parts: Iterable[str], text: str) -> set[str]:
    """The body parts that lie in a region which a text calls by its name, and the regions whose organs it names."""
    regions = claimed("region", text)
    called = regions & set(_words_of(text))
    return {part for part in parts if part.lower() in regions or claimed("region", part) & called}


def _phrase(words: Iterable[str]) -> str:
    """Words to be looked for within others, in the singular: what it makes of them needs to be no word."""
    return f" {' '.join(word.removesuffix('s') for word in words)} "


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _parsed(condition: str) -> tuple[str, str]:
    key, equals, value = condition.partition("=")
    if not equals or key not in (*KEYS, PLANE):
        message = f"--where {condition!r} is not KEY=VALUE with one of {', '.join((*KEYS, PLANE))}"
        raise RefusedError("E_CONFIG", message, hint="for example --where modality=MR")
    return key, value.strip().lower()


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
