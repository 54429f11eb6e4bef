"""A question as a value: what the command line, the page and its server all ask by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.query.answers import IMAGE, Answer, Wanted
from m3di.query.pictures import read_image
from m3di.query.searcher import AGAINST, Searcher
from stores.keys import plane_number

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Question:
    """One of: a text; a volume, or with plane and slice a slice of it; an image file; a scan file."""

    text: str | None = None
    volume: str | None = None
    plane: str | None = None
    slice: int | None = None
    image: Path | None = None
    scan: Path | None = None

    @property
    def words(self) -> str:
        """What is asked, for people; of a file its name only."""
        if self.text is not None:
            return self.text
        if self.image is not None:
            return f"slices like the image {self.image.name}"
        if self.scan is not None:
            return f"volumes like the scan {self.scan.name}"
        if self.plane is not None and self.slice is not None:
            return f"slices like {self.plane} slice {self.slice} of {self.volume}"
        return f"volumes like {self.volume}"


def ask(searcher: Searcher, question: Question, wanted: Wanted) -> Answer:
    """Ask the engine.

    Raises:
        RefusedError: As the engine's `by_text`, `by_image`, `by_scan`, `by_slice` and `by_volume`.
        CaseError: When a scan cannot be used.
    """
    if question.text is not None:
        return searcher.by_text(question.text, wanted)
    if question.image is not None:
        return searcher.by_image(question.image, wanted)
    if question.scan is not None:
        return searcher.by_scan(question.scan, wanted)
    volume = str(question.volume)
    if question.plane is None or question.slice is None:
        return searcher.by_volume(volume, wanted)
    return searcher.by_slice(volume, question.plane, question.slice, wanted)


def similarities(searcher: Searcher, question: Question, wanted: Wanted, volume: str) -> list[list[float]] | None:
    """Cosine of a question with every slice of a volume of the index, by plane, in ascending order of position.

    They are what the slices were ranked by. None for a scan, and for a volume asked by a run's vectors: there whole
    volumes were compared, and the vector is not kept.
    """
    vector = _vector(searcher, question)
    if vector is None:
        return None
    planes, slices = searcher.embeddings.index.slices_of(searcher.number_of(volume))
    if searcher.model is not None and question.volume is None:
        compared = searcher.model.vectors(volume, planes, slices)
    else:
        part = IMAGE if question.text is None else AGAINST[wanted.against]
        compared = searcher.embeddings.all_rows([volume])[:, part].astype(np.float32)
    cosines = compared @ vector
    return [[round(float(cosine), 4) for cosine in cosines[planes == plane]] for plane in range(3)]


def _vector(searcher: Searcher, question: Question) -> Floats | None:
    if question.text is not None:
        return searcher.teacher.encode_text(question.text)
    if question.image is not None:
        return searcher.teacher.encode_images(read_image(question.image))[0]
    if question.volume is None:
        return None
    if question.plane is not None and question.slice is not None:
        return searcher.vector_of(question.volume, plane_number(question.plane), question.slice)
    return None if searcher.model else searcher.means[searcher.number_of(question.volume)]
