"""A map of volumes: their embeddings on the two directions in which they differ most (principal components)."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


def project(embeddings: Floats) -> tuple[Floats, Floats]:
    """Places (n, 2), and the share of the variance along each of the two directions, (2,).

    Only differences count; the sign of a direction, which is arbitrary, is the one that makes its largest part
    positive. Without differences all places are 0.

    Args:
        embeddings: (n, e).
    """
    centred = embeddings - embeddings.mean(axis=0) if len(embeddings) else embeddings
    # The e x e products have the singular directions of the n x e matrix, and n may be many times e.
    _, squares, directions = np.linalg.svd(centred.T @ centred, hermitian=True)
    total = squares.sum()
    if not total > 0:
        return np.zeros((len(embeddings), 2)), np.zeros(2)
    chosen = directions[:2]
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=1)[:, None], axis=1)
    chosen = chosen * np.sign(largest)
    return centred @ chosen.T, squares[:2] / total
