"""Looking into a store: the slices nearest to a text, a slice or an image, by exact search."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError

from m3di.teachers.stage import kept_teacher
from stores import Store
from stores.embeddings import EmbeddingStore
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.keys import plane_number

IMAGE, TEXT = 0, 1  # parts of a row


@dataclass(frozen=True)
class Hit:
    """A slice that answers a query; `score` is a cosine, 1 for the same."""

    volume: str
    plane: str
    slice: int
    score: float
    caption: str


@dataclass(frozen=True)
class Answer:
    """What a query found, best first, and what to know about it."""

    results: tuple[Hit, ...]
    notes: tuple[str, ...] = ()


def by_text(path: Path, text: str, *, top: int = 10, device: str = "auto") -> Answer:
    """Slices whose captions are nearest to a text.

    Against the caption rows, not the image rows: a small teacher was fitted to captions, and free wording finds the
    plane it names more often among them (README, results).

    Raises:
        RefusedError: E_CONFIG for an empty text; E_STORE, when the store has no embeddings.
    """
    if not text.strip():
        raise RefusedError("E_CONFIG", "the text to look for is empty", hint='for example m3di query "liver"')
    with Store(path) as store:
        teacher = kept_teacher(store, store.current()["teacher"], device=device)
        vector = teacher.encode_text([text])[0].cpu().numpy()
        return _answer(store, vector, TEXT, top)


def by_image(path: Path, image: Path, *, top: int = 10, device: str = "auto") -> Answer:
    """Slices whose image is nearest to an image file.

    Raises:
        RefusedError: E_MISSING or E_FORMAT for the file; E_STORE, when the store has no embeddings.
    """
    if not image.is_file():
        raise RefusedError("E_MISSING", f"{image} is not a file", hint="give a PNG or JPEG file")
    try:
        pixels = np.array(Image.open(image).convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise RefusedError("E_FORMAT", f"{image} is not an image: {error}", hint="give a PNG or JPEG file") from error
    with Store(path) as store:
        teacher = kept_teacher(store, store.current()["teacher"], device=device)
        vector = teacher.encode_image(torch.from_numpy(pixels[None]))[0].cpu().numpy()
        return _answer(store, vector, IMAGE, top)


def by_slice(path: Path, volume: str, plane: str, index: int, *, top: int = 10) -> Answer:
    """Slices whose image is nearest to that of a slice of the store; the slice itself comes first.

    Raises:
        RefusedError: E_MISSING for an unknown volume; E_CONFIG for a slice that has no row.
    """
    number = plane_number(plane)
    with Store(path) as store:
        valid = store.record(volume).valid_slices(number)
        if index not in valid:
            near = f"; the nearest is {valid[np.abs(valid - index).argmin()]}" if len(valid) else ""
            message = f"slice {index} of the {plane} plane of {volume} has no row{near}"
            raise RefusedError("E_CONFIG", message, hint="blank slices and those off the stride have none")
        rows = store.embeddings(store.current()["teacher"]).plane(volume, number)
        vector = rows[int(np.searchsorted(valid, index)), IMAGE].astype(np.float32)
        return _answer(store, vector, IMAGE, top)


def _answer(store: Store, vector: npt.NDArray[np.float32], part: int, top: int) -> Answer:
    """Rank every row by the cosine of one of its parts with `vector` (e)."""
    current = store.current()
    embeddings = store.embeddings(current["teacher"])
    best: list[tuple[float, str, int, int]] = []
    for volume, plane, scores in _scores(embeddings, vector, part):
        positions = store.record(volume).valid_slices(plane)
        best += [(float(score), volume, plane, int(i)) for score, i in zip(scores, positions, strict=True)]
        best = sorted(best, key=lambda hit: (-hit[0], *hit[1:]))[:top]
    hits = tuple(
        Hit(
            volume, PLANES[plane], index, round(score, 4), _caption(store, current["captioner"], volume, plane, index)
        )
        for score, volume, plane, index in best
    )
    return Answer(hits, _notes(store, current["teacher"]))


def _scores(
    embeddings: EmbeddingStore, vector: npt.NDArray[np.float32], part: int
) -> Iterator[tuple[str, int, npt.NDArray[np.float32]]]:
    for volume in embeddings.index.volumes:
        for plane in range(len(PLANES)):
            yield volume, plane, embeddings.plane(volume, plane)[:, part].astype(np.float32) @ vector


def _caption(store: Store, captioner: str, volume: str, plane: int, index: int) -> str:
    captions = store.captions(captioner, volume)
    if captions is None:
        return ""
    return captions.texts[plane][int(np.searchsorted(store.record(volume).valid_slices(plane), index))]


def _notes(store: Store, teacher: str) -> tuple[str, ...]:
    """How far the teacher can be trusted, as it was measured on held-out volumes when it was fitted."""
    card = (store.facts("teacher", teacher) or {}).get("card") or {}
    after = card.get("after")
    if not after:
        return ()
    found, chance, items = after["text_to_image"]["recall@10"], after["chance"]["recall@10"], after["items"]
    return (f"this teacher has the right slice among its first 10 for {found:.0%} of {items} held-out captions "
            f"(chance {chance:.1%})",)  # fmt: skip
