"""What a fine-tuned network has seen, from its checkpoint's facts, compared with the scans that it is tested on.

Near-duplicates are looked for among the volumes of the store that the encoder was pretrained on, while it is at hand:
its rows are compared, nothing is embedded anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.evaluation.leaks import LeakReport, Scan, embedding_of, find_leaks
from m3di.training import checkpoint
from m3di.volumes import readers
from m3di.volumes.cases import Case
from stores import Store
from stores.errors import CaseError, M3diError

Embedding = npt.NDArray[np.float64]


def look_for_leaks(found: checkpoint.Checkpoint, tested: Sequence[Case], cases: Sequence[Case]) -> LeakReport:
    """Compare the test scans with those that the network, and its encoder, was trained on.

    Args:
        found: A fine-tuning checkpoint.
        tested: The test cases.
        cases: All cases of the task, which tell the subjects where the checkpoint does not.
    """
    facts = found.facts
    owners = {case.id: [case.dataset, case.subject] for case in cases}
    people = {**owners, **facts.get("people", {})}
    test = [Scan(case.id, case.dataset, case.subject, _digest(case)) for case in tested]
    seen = {"training": _scans(facts["trained_on"], people)}
    if facts.get("validated_on"):
        seen["validation"] = _scans(facts["validated_on"], people)
    seen["pretraining"] = _scans(facts["pretrained_on"], facts.get("pretrained_people", {}))
    if teachers := facts.get("teachers_fitted_on"):
        digests = {name: digest for name, (digest, *_) in teachers.items()}
        seen["teacher"] = _scans(digests, {name: owner for name, (_, *owner) in teachers.items()})
    embeddings = _embeddings(facts, [*test, *(scan for scans in seen.values() for scan in scans)])
    report = find_leaks(
        _with_embeddings(test, embeddings),
        {group: _with_embeddings(scans, embeddings) for group, scans in seen.items()},
    )
    if not facts.get("pretraining_known", True):
        report = replace(report, unknown=(*report.unknown, f"what {facts['init']['path']} was pretrained on"))
    elif facts["pretrained_on"] and facts.get("teachers_fitted_on") is None:
        report = replace(report, unknown=(*report.unknown, "what the teacher of its pretraining was fitted to"))
    return report


def _digest(case: Case) -> str:
    """Digest of a test scan; empty for one that cannot be read, which scoring will refuse by name."""
    try:
        return readers.content_digest(case.image, case.member)
    except CaseError:
        return ""


def _scans(digests: Mapping[str, str], people: Mapping[str, Sequence[str]]) -> list[Scan]:
    found = []
    for name, digest in digests.items():
        dataset, subject = people.get(name, ("", ""))
        found.append(Scan(name, dataset, subject, digest))
    return found


def _with_embeddings(scans: Iterable[Scan], embeddings: Mapping[str, Embedding]) -> list[Scan]:
    return [replace(scan, embedding=embeddings.get(scan.digest)) for scan in scans]


def _embeddings(facts: Mapping[str, Any], scans: Sequence[Scan]) -> dict[str, Embedding]:
    """Embeddings by content digest, of the scans that the pretraining store holds; empty when it is gone."""
    place = facts.get("pretraining_store", "")
    if not place or not Path(place).is_dir():
        return {}
    wanted = {scan.digest for scan in scans}
    with ExitStack() as held:
        try:
            store = held.enter_context(Store(Path(place)))
            current = store.current_or_none()
            records = [record for record in store.records() if current and record.source_digest in wanted]
            rows = [
                (one.source_digest, embedding_of(store, current["teacher"], one.volume)) for one in records if current
            ]
        except M3diError:
            return {}  # it is no store of ours any more: the report says what could not be compared
    return {digest: embedding for digest, embedding in rows if embedding is not None}
