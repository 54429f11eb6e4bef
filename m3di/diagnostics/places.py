"""Do vectors know their place? Scores over volumes that nothing was fitted to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from m3di.evaluation.localisation import LocalisationScores, score_localisation
from m3di.evaluation.retrieval import RetrievalScores, held_out_slices, score_retrieval
from m3di.query.answers import IMAGE, TEXT
from m3di.query.searcher import person_of
from m3di.training.held_out import SLICES_PER_PLANE
from stores.embeddings import EmbeddingStore

if TYPE_CHECKING:
    from m3di.query.model import SliceModel

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SamePlaceScores:
    """Is the nearest slice of other people in the same place?

    Attributes:
        num_slices: Slices that asked.
        plane_accuracy: Share whose nearest slice is of the right plane.
        position_error: Mean distance along the plane's normal where it is, as a share of the cube's edge.
        position_error_chance: The same for a slice of the right plane of other people drawn blindly.
        same_dataset: Share whose nearest slice is of the same dataset.
    """

    num_slices: int
    plane_accuracy: float
    position_error: float | None
    position_error_chance: float
    same_dataset: float


@dataclass(frozen=True)
class Agreement:
    """How near a model's vectors come to the teacher's, slice by slice.

    Attributes:
        mean: Mean cosine.
        low: The cosine that one slice of twenty stays under.
        by_plane: Mean cosine in each plane.
        worst: (volume, plane, slice, cosine) of the slices that agree least.
    """

    mean: float
    low: float
    by_plane: tuple[float, float, float]
    worst: tuple[tuple[str, int, int, float], ...]


@dataclass(frozen=True)
class PlaceScores:
    """Scores of one set of vectors.

    A model's vectors are told their plane and position, so they find the like of other people by that alone
    (`same_place` would be perfect, and is not shown); a teacher's rows are not, and have no places of their own.
    """

    retrieval: RetrievalScores
    same_place: SamePlaceScores | None = None
    localisation: LocalisationScores | None = None
    agreement: Agreement | None = None


@dataclass(frozen=True, eq=False)
class Slices:
    """Slices of several volumes: teacher's rows (s, 2, e), and where they are (s,)."""

    rows: Floats
    volumes: npt.NDArray[np.int64]
    planes: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


def held_out_rows(held_out: EmbeddingStore, *, per_plane: int = SLICES_PER_PLANE) -> Slices:
    """At most `per_plane` evenly spread slices of each plane and volume."""
    rows, volumes, planes, positions = [], [], [], []
    for number in range(len(held_out)):
        plane, position = (part.numpy() for part in held_out_slices(held_out.index, number, per_plane=per_plane))
        rows.append(held_out.gather(np.array([number]), plane[None], position[None])[0].astype(np.float32))
        volumes.append(np.full(len(plane), number))
        planes.append(plane)
        positions.append(position)
    return Slices(*(np.concatenate(parts) for parts in (rows, volumes, planes, positions)))


def score_teacher(held_out: EmbeddingStore, slices: Slices, *, cube_size: int) -> PlaceScores:
    """Do captions find their slice, and slices their place in other people?"""
    return PlaceScores(
        _retrieval(slices.rows[:, TEXT], slices, cube_size),
        same_place=_same_place(slices.rows[:, IMAGE], held_out, slices, cube_size),
    )


def score_model(model: "SliceModel", held_out: EmbeddingStore, slices: Slices, *, cube_size: int) -> PlaceScores:
    """The same for a model's vectors of the slices, and how they agree with the teacher's."""
    index = held_out.index
    vectors = np.concatenate([
        model.vectors(index.volumes[int(number)], slices.planes[own], slices.positions[own])
        for number in np.unique(slices.volumes)
        for own in [slices.volumes == number]
    ])  # fmt: skip
    places = [torch.from_numpy(part) for part in (slices.planes, slices.positions, slices.volumes)]
    localisation = score_localisation(
        torch.from_numpy(vectors), torch.from_numpy(slices.rows[:, IMAGE]),
        planes=places[0], positions=places[1], volumes=places[2], cube_size=cube_size,
    )  # fmt: skip
    return PlaceScores(
        _retrieval(vectors, slices, cube_size),
        localisation=localisation,
        agreement=_agreement(vectors, held_out, slices),
    )


def _retrieval(vectors: Floats, slices: Slices, cube_size: int) -> RetrievalScores:
    tensors = (torch.from_numpy(part) for part in (vectors, slices.rows, slices.planes, slices.positions))
    return score_retrieval(*tensors, cube_size=cube_size)


def _same_place(vectors: Floats, held_out: EmbeddingStore, slices: Slices, cube_size: int) -> SamePlaceScores:
    """Look for each slice among those of all other people."""
    index = held_out.index
    people = [person_of(index, number) for number in range(len(index))]
    person = np.array([people.index(one) for one in people])[slices.volumes]
    datasets = np.array(list(index.datasets))[slices.volumes]
    others = person[:, None] != person
    cosines = np.where(others, vectors @ vectors.T, -np.inf)
    asked = np.flatnonzero(others.any(axis=1))
    nearest = cosines[asked].argmax(axis=1)
    right = slices.planes[nearest] == slices.planes[asked]
    errors = np.abs(slices.positions[nearest] - slices.positions[asked]) / cube_size
    blind = np.abs(slices.positions[:, None] - slices.positions) / cube_size
    drawn = blind[others & (slices.planes[:, None] == slices.planes)]
    return SamePlaceScores(
        num_slices=len(asked),
        plane_accuracy=float(right.mean()) if len(asked) else 0.0,
        position_error=float(errors[right].mean()) if right.any() else None,
        position_error_chance=float(drawn.mean()) if len(drawn) else 0.0,
        same_dataset=float((datasets[nearest] == datasets[asked]).mean()) if len(asked) else 0.0,
    )


def _agreement(vectors: Floats, held_out: EmbeddingStore, slices: Slices, worst: int = 5) -> Agreement:
    targets = slices.rows[:, IMAGE]
    cosines = (vectors * targets).sum(axis=1) / np.linalg.norm(targets, axis=1)
    axial, coronal, sagittal = (float(cosines[slices.planes == plane].mean()) for plane in range(3))
    return Agreement(
        mean=float(cosines.mean()),
        low=float(np.quantile(cosines, 0.05)),
        by_plane=(axial, coronal, sagittal),
        worst=tuple(
            (held_out.index.volumes[int(slices.volumes[i])], int(slices.planes[i]), int(slices.positions[i]),
             float(cosines[i]))
            for i in np.argsort(cosines, kind="stable")[:worst]
        ),
    )  # fmt: skip
