"""Volumes of one store that are the same scan, or look it: by the measures of the leak guard."""

from collections.abc import Sequence

import numpy as np

from m3di.evaluation.leaks import NEAR_COSINE, Leak, Scan, find_leaks

_CHUNK = 512  # volumes compared with all others at a time


def near_duplicates(scans: Sequence[Scan], *, near_cosine: float = NEAR_COSINE) -> list[Leak]:
    """Pairs of scans with equal bytes or nearly equal embeddings, the most alike first; each pair once.

    Scans of one subject that look different are no pair: a person may have many.

    Args:
        scans: As `m3di.evaluation.leaks.scans_in` gives them.
        near_cosine: Embeddings this close or closer are a pair.
    """
    number = {scan.name: position for position, scan in enumerate(scans)}
    pairs = [
        leak
        for start in range(0, len(scans), _CHUNK)
        for leak in find_leaks(scans[start : start + _CHUNK], {"store": scans}, near_cosine=near_cosine).leaks
        if leak.kind != "subject" and number[leak.test] < number[leak.seen]
    ]
    order = np.lexsort(([number[leak.test] for leak in pairs], [-leak.cosine for leak in pairs]))
    return [pairs[position] for position in order]
