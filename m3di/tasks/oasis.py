"""Alzheimer's disease against normal control in OASIS, by subject (paper, section 3.1).

OASIS-2 names a group for each subject, OASIS-1 a CDR for the older ones. People who became demented between two
visits are neither: without them OASIS-2 has 336 sessions of 136 people, where the paper counts 335 of 135. Of a
session's repeated scans the first one counts.
"""

from collections.abc import Sequence
from typing import Final

from m3di.tasks.task import Diagnoses
from m3di.volumes.cases import Case
from m3di.volumes.layouts.oasis import SESSION

CLASSES: Final = ("NC", "AD")
NORMAL, DISEASE = 0, 1


def diagnose(cases: Sequence[Case], column: str = "") -> Diagnoses:
    """The class of the first scan of every session whose subject has one."""
    visits: dict[str, list[Case]] = {}
    for case in cases:
        visits.setdefault(case.subject, []).append(case)
    classes = {subject: _class_of(found) for subject, found in visits.items()}
    first: dict[str, Case] = {}
    for case in cases:
        match = SESSION.search(case.id)
        first.setdefault(match[0] if match else case.id, case)
    known = {case.id: classes[case.subject] for case in first.values()}
    return Diagnoses(CLASSES, {name: value for name, value in known.items() if value is not None})


def _class_of(visits: Sequence[Case]) -> int | None:
    """The class of one person; None when it is not known, or changed between visits."""
    groups = {case.attributes["group"].lower() for case in visits if "group" in case.attributes}
    ratings = {float(case.attributes["cdr"]) for case in visits if _is_number(case.attributes.get("cdr", ""))}
    if "converted" in groups or not groups | ratings:
        return None
    diseased = "demented" in groups if groups else max(ratings) > 0
    if not diseased:
        return NORMAL
    # Some tables count the converted among the demented: at an early visit their CDR is 0.
    return None if 0 in ratings else DISEASE


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
