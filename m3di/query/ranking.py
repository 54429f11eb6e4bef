"""From scores to the best rows, exactly: what could be among them is looked at again, checked, in full precision."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stores.index import Indices

Exact = Callable[[Indices], npt.NDArray[np.float64]]


def best(
    scores: npt.NDArray[np.float32], exact: Exact, *, top: int, margin: float, volume_starts: Indices | None = None
) -> list[tuple[int, float]]:
    """The best rows with their exact scores, best first; of equal scores the first row first.

    Args:
        scores: (rows,) nearly right; -inf for rows that may not answer.
        exact: Gives the exact scores of some rows.
        top: How many.
        margin: How far a score may lie from the exact one.
        volume_starts: (n + 1,) first row of each volume, for one row of each volume only.
    """
    if volume_starts is None:
        rows = np.flatnonzero(scores >= _bar(scores, top, margin))
    else:
        rows = _of_best_volumes(scores, volume_starts, top, margin)
    rows = rows[np.isfinite(scores[rows])]
    if not len(rows):
        return []
    found = exact(rows)
    order = np.lexsort((rows, -found))
    if volume_starts is not None:
        volumes = np.searchsorted(volume_starts, rows[order], side="right")
        order = order[np.sort(np.unique(volumes, return_index=True)[1])]
    return [(int(rows[i]), float(found[i])) for i in order[:top]]


def _of_best_volumes(scores: npt.NDArray[np.float32], starts: Indices, top: int, margin: float) -> Indices:
    """Rows that could be the best of their volume, of volumes that could be among the best."""
    filled = np.flatnonzero(np.diff(starts))
    if not len(filled):
        return np.zeros(0, np.int64)
    peaks = np.maximum.reduceat(scores, starts[filled])
    bars = np.where(peaks >= _bar(peaks, top, margin), peaks - np.float32(2 * margin), np.float32(np.inf))
    return np.flatnonzero(scores >= np.repeat(bars, np.diff(starts)[filled]))


def _bar(scores: npt.NDArray[np.float32], top: int, margin: float) -> np.float32:
    """What a nearly right score must reach if the exact one could be among the best."""
    if len(scores) <= top:
        return np.float32(-np.inf)
    return np.partition(scores, -top)[-top] - np.float32(2 * margin)
