"""What is asked for, and what an answer holds."""

from dataclasses import dataclass

IMAGE, TEXT = 0, 1  # parts of a row


@dataclass(frozen=True)
class Hit:
    """A slice that answers a question; `score` is a cosine, 1 for the same.

    Where whole volumes are compared, `score` is the cosine of the volumes, and the slice is the one that is nearest
    to the question.
    """

    volume: str
    plane: str
    slice: int
    score: float
    caption: str


@dataclass(frozen=True)
class Answer:
    """What a question found, best first, and what to know about it.

    Attributes:
        results: The hits.
        notes: How far the teacher can be trusted, and what else a reader must know.
        same_place: For a slice of a volume: the slices in the same place of other subjects, the most alike first.
    """

    results: tuple[Hit, ...]
    notes: tuple[str, ...] = ()
    same_place: tuple[Hit, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Which answers are wanted.

    Attributes:
        top: How many.
        one_per_volume: Each volume only by its best slice. Neighbouring slices look and are described alike, so that
            without it the first ten are often one volume ten times; it also makes the answers to a slice those of
            other people.
        where: `key=value` conditions (`m3di.query.conditions`): all keys must hold, one of a key's values.
        against: What a text is held against: the `captions` or the `images` of the slices.
        approximate: Search by the approximate index (`m3di.query.approximate`).
    """

    top: int = 10
    one_per_volume: bool = True
    where: tuple[str, ...] = ()
    against: str = "captions"
    approximate: bool = False
