"""What the rows of a store say of it: how far images and captions lie apart, and which slices and volumes are odd."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m3di.query.answers import IMAGE, TEXT
from stores.embeddings import EmbeddingStore
from stores.geometry import PLANES

Vectors = npt.NDArray[np.float64]
BINS = 8  # parts of the cube's edge in which slices of a plane are compared
MIN_GROUP = 8  # slices, or volumes, below which nothing is odd
FAR = 6.0  # robust standard deviations from which it is


@dataclass(frozen=True)
class ModalityGap:
    """Images and captions in the common space.

    Attributes:
        distance: Between the mean image row and the mean caption row.
        own: Mean cosine of a slice's image with its own caption.
        any: Mean cosine of any image with any caption.
    """

    distance: float
    own: float
    any: float


@dataclass(frozen=True)
class Outlier:
    """A slice, or a whole volume (then without plane and slice), that is unlike its fellows.

    Attributes:
        volume: Its volume.
        plane: Its plane.
        slice: Its position.
        cosine: With the mean of its fellows: slices of the same plane and part of the cube in the same dataset, or
            volumes of the dataset.
        deviations: How many robust standard deviations that is below their median.
    """

    volume: str
    plane: str | None
    slice: int | None
    cosine: float
    deviations: float


@dataclass(frozen=True, eq=False)
class RowFindings:
    """What a look at all rows found."""

    gap: ModalityGap
    slices: list[Outlier]
    volumes: list[Outlier]


def examine_rows(embeddings: EmbeddingStore) -> RowFindings:
    """Read all rows twice, checked: once for the means, once for what is far from them."""
    sums, groups, means = _means(embeddings)
    count = max(int(embeddings.index.num_rows().sum()), 1)
    center = sums.parts / count
    gap = ModalityGap(
        distance=float(np.linalg.norm(center[IMAGE] - center[TEXT])),
        own=sums.own / count,
        any=float(center[IMAGE] @ center[TEXT]),
    )
    return RowFindings(gap, _odd_slices(embeddings, groups), _odd_volumes(embeddings, means))


@dataclass(eq=False)
class _Sums:
    parts: Vectors
    own: float = 0.0


def _means(embeddings: EmbeddingStore) -> tuple[_Sums, dict[tuple[str, int, int], Vectors], Vectors]:
    """Sums over all rows, the mean direction of each group of slices, and the embedding of each volume."""
    index = embeddings.index
    sums, volumes = _Sums(np.zeros(())), []
    groups: dict[tuple[str, int, int], Vectors] = {}
    for number, name in enumerate(index.volumes):
        rows = embeddings.all_rows([name]).astype(np.float64)
        planes, bins = _bins(embeddings, number)
        sums.parts = sums.parts + rows.sum(axis=0)
        sums.own += float((rows[:, IMAGE] * rows[:, TEXT]).sum())
        for plane, part in {*zip(planes.tolist(), bins.tolist(), strict=True)}:
            members = rows[(planes == plane) & (bins == part), IMAGE].sum(axis=0)
            key = index.datasets[number], plane, part
            groups[key] = groups.get(key, 0.0) + members
        own = [rows[planes == plane, IMAGE].mean(axis=0) for plane in set(planes.tolist())]
        volumes.append(_unit(np.sum(own, axis=0)))
    return sums, {key: _unit(total) for key, total in groups.items()}, np.array(volumes)


def _odd_slices(embeddings: EmbeddingStore, groups: dict[tuple[str, int, int], Vectors]) -> list[Outlier]:
    cosines: dict[tuple[str, int, int], list[tuple[float, str, int, int]]] = defaultdict(list)
    index = embeddings.index
    for number, name in enumerate(index.volumes):
        rows = embeddings.all_rows([name])[:, IMAGE].astype(np.float64)
        planes, slices = index.slices_of(number)
        _, bins = _bins(embeddings, number)
        for row, plane, part, index_ in zip(rows, planes.tolist(), bins.tolist(), slices.tolist(), strict=True):
            key = index.datasets[number], plane, part
            cosines[key].append((float(row @ groups[key]), name, plane, index_))
    found = []
    for members in cosines.values():
        for position, deviations in _far([cosine for cosine, *_ in members]):
            cosine, name, plane, index_ = members[position]
            found.append(Outlier(name, PLANES[plane], index_, round(cosine, 4), round(deviations, 1)))
    return sorted(found, key=lambda outlier: -outlier.deviations)


def _odd_volumes(embeddings: EmbeddingStore, means: Vectors) -> list[Outlier]:
    index = embeddings.index
    found = []
    datasets = np.array(list(index.datasets))
    for dataset in sorted(set(datasets.tolist())):
        members = np.flatnonzero(datasets == dataset)
        cosines = means[members] @ _unit(means[members].sum(axis=0))
        for position, deviations in _far(cosines.tolist()):
            name = index.volumes[int(members[position])]
            found.append(Outlier(name, None, None, round(float(cosines[position]), 4), round(deviations, 1)))
    return sorted(found, key=lambda outlier: -outlier.deviations)


def _far(cosines: list[float]) -> list[tuple[int, float]]:
    """Positions that lie `FAR` below the median, with how far, in median absolute deviations as of a normal law."""
    values = np.array(cosines)
    if len(values) < MIN_GROUP:
        return []
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - median))
    if spread == 0:
        return []
    deviations = (median - values) / spread
    return [(int(position), float(deviations[position])) for position in np.flatnonzero(deviations >= FAR)]


def _bins(embeddings: EmbeddingStore, volume: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    planes, slices = embeddings.index.slices_of(volume)
    return planes, BINS * slices // (8 * embeddings.index.valid.shape[-1])


def _unit(vector: Vectors) -> Vectors:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
