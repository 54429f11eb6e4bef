"""Suspected identifiers in a text: what may tell who a patient is. A suspicion, not a proof of absence.

The kinds follow the list of 45 CFR 164.514(b)(2). Only kind and place are given, so that a warning never repeats
what it warns of. Measurements, vertebrae, stages and bare years are not suspected.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Suspected:
    """A piece of a text that may be an identifier.

    Attributes:
        kind: One of `KINDS`.
        span: Where it begins and ends in the text.
    """

    kind: str
    span: tuple[int, int]


def _could_be_date(match: re.Match[str]) -> bool:
    """Whether three numbers can be day, month and year in some order, and do not just count: `segments 8/9/10`."""
    parts = [part for part in re.split(r"\D+", match[0]) if part]
    first, second, third = (int(part) for part in parts)
    if len(parts[0]) == 4:
        return 1 <= second <= 12 and 1 <= third <= 31
    counts = second == first + 1 and third == second + 1
    padded = len(parts[2]) == 4 or "/" in match[0] or all(len(part) == 2 for part in parts)
    return padded and not counts and 1 <= min(first, second) <= 12 and 1 <= max(first, second) <= 31


_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?|JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|AUG(?:UST)?"
    r"|SEPT?(?:EMBER)?|OCT(?:OBER)?|NOV(?:EMBER)?|DEC(?:EMBER)?)"
)
_YEAR: Final = r"(?:19|20)\d\d"
_SIGNED: Final = r"(?:dictated|signed|reported|transcribed|verified|approved|referred|reviewed|interpreted)\s+by"
_NAMED: Final = r"(?:patient(?:'s)?\s+name|name|surname|referring\s+(?:physician|doctor)|radiologist|technologist)"
_NUMBERED: Final = r"(?:MRN|SSN|NHS|accession|patient\s+ID|medical\s+record|case\s+(?:no|number)|study\s+ID)"
_FILE: Final = r"(?:dcm|ima|nii|nii\.gz|mha|mhd|nrrd|jpe?g|png|tiff?|pdf|docx?|xlsx?|csv)"

# Earlier kinds win where two overlap.
_PATTERNS: Final[tuple[tuple[str, str, Callable[[re.Match[str]], bool] | None], ...]] = (
    ("uid", r"(?<![\w.])[0-2](?:\.\d+){5,}", None),
    ("e-mail", r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+", None),
    ("link", r"\b[A-Za-z][A-Za-z0-9+]{1,9}://\S+|\bwww\.\S+", None),
    (
        "path",
        rf"\b[A-Za-z]:\\\S+|\\\\\w+\\\S+|(?<!\S)~?(?:/[\w.-]+){{2,}}/?|(?<![\w-])[\w-]{{1,99}}\.{_FILE}\b",
        None,
    ),
    ("birth", r"\b(?i:DOB|D\.O\.B|date\s+of\s+birth)\b[\s.:=]*\S+|\bborn\s+(?:on|in)\s+\w*\s?\d+", None),
    ("date", rf"\b{_YEAR}([-/.])\d{{1,2}}\1\d{{1,2}}(?!\d)", _could_be_date),
    ("date", rf"\b(?<![\d.])\d{{1,2}}([-/.])\d{{1,2}}\1(?:{_YEAR}|\d\d)\b(?![.,]\d)", _could_be_date),
    ("date", rf"\b{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{{6}}(?:\.\d+)?)?\b", None),
    ("date", rf"\b\d{{1,2}}(?:st|nd|rd|th)?[\s-](?:of\s)?{_MONTH}\b(?:[.,\s-]+(?:{_YEAR}|\d\d)\b)?", None),
    ("date", rf"\b{_MONTH}\.?\s\d{{1,2}}(?:st|nd|rd|th)?\b(?!\s?(?:mm|cm|%))(?:,?\s{_YEAR})?", None),
    ("date", rf"\b{_MONTH}\.?,?[\s-]{_YEAR}\b", None),
    ("phone", r"\b(?i:tel|phone|telephone|fax|pager|mobile)\b[.:\s]*\+?[\d(][\d\s().-]{4,}\d", None),
    ("phone", r"(?<![\w.])(?:\+?\d{1,3}[\s.-])?(?:\(\d{2,4}\)[\s.-]?|\d{3}[.-])\d{3}[\s.-]\d{4}\b", None),
    ("phone", r"(?<!\w)\+\d{1,3}(?:[\s.-]?\d{2,4}){3,5}\b", None),
    ("number", r"\b\d{3}-\d{2}-\d{4}\b", None),
    ("number", rf"\b(?i:{_NUMBERED})\b(?:\s+(?i:no|number))?[\s.:#=]*[A-Za-z]{{0,4}}[-\d]*\d[\w-]*", None),
    ("number", r"\b(?i:patient|subject|sub|case)[-_]?\d{2,}\w*", None),
    ("number", r"(?<![\d.,])\d{6,}(?!\d|[.,]\d)", None),
    ("name", r"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Doctor|DR\.)\.?\s+(?:[A-Z]\.\s?)*[A-Z][A-Za-z'’-]+", None),
    ("name", rf"\b(?i:{_NAMED})\s*[:=]\s*\w\S*", None),
    ("name", rf"\b(?i:{_SIGNED})\s*:?\s+(?!(?i:the|a|an|patient)\b)[A-Z][\w'’-]+", None),
    ("name", r"\b[A-Za-z'-]+\^[A-Za-z'-]+", None),
    ("age", r"\b(?:9\d|1[0-3]\d)[\s-]*(?:(?i:years?|yrs?)(?:[\s-](?i:old|of\sage))?|(?i:y/?o))\b", None),
    ("age", r"\b(?i:aged?)\s*[:=]?\s*(?:9\d|1[0-3]\d)\b(?!\s?(?:days|weeks|months))", None),
)
KINDS: Final = tuple(dict.fromkeys(kind for kind, _, _ in _PATTERNS))
_COMPILED: Final = tuple((kind, re.compile(pattern), accept) for kind, pattern, accept in _PATTERNS)
# No pattern matches a text without one of these (a property test says so). Most captions have none, and are done
# with one search: 33 us instead of 124.
_WORTH_A_LOOK: Final = re.compile(
    r"[@\\^:=]|//|www\.|\.[a-z]|(?<!\w)~?/\w|\d{3}|\+\d|\d[-/.]\d+[-/.]\d"
    r"|\b(?:9\d[\s-]*[yY]|M[ri]|D[rRo]|Prof|Jan|JAN|Feb|FEB|Mar|MAR|Apr|APR|May|MAY|Ju[nl]|JU[NL]|Aug|AUG|Sep|SEP"
    r"|Oct|OCT|Nov|NOV|Dec|DEC)"
    r"|(?i:\b(?:by|birth|born|dob|d\.o\.b|aged?|mrn|ssn|nhs|accession|patient|medical|subject|sub|case|study|tel"
    r"|telephone|phone|fax|pager|mobile))"
)


def suspected(text: str) -> tuple[Suspected, ...]:
    """Find what may be an identifier, in order of place; pieces do not overlap."""
    if not _WORTH_A_LOOK.search(text):
        return ()
    found: list[Suspected] = []
    for piece in _pieces(text):
        if all(piece.span[1] <= other.span[0] or other.span[1] <= piece.span[0] for other in found):
            found.append(piece)
    return tuple(sorted(found, key=lambda piece: piece.span))


def suspected_kinds(text: str) -> tuple[str, ...]:
    """The kinds that are suspected in a text, each once."""
    return tuple(dict.fromkeys(piece.kind for piece in suspected(text)))


def _pieces(text: str) -> Iterator[Suspected]:
    for kind, pattern, accept in _COMPILED:
        for match in pattern.finditer(text):
            if accept is None or accept(match):
                yield Suspected(kind, match.span())
