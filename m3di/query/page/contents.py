"""What a page may show of a store, as JSON-ready values and pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from itertools import cycle
from typing import Any, Final

from m3di.query.answers import Answer, Wanted
from m3di.query.notes import card_notes
from m3di.query.page.pixels import Pixels, grey_cube, slice_stack
from m3di.query.page.projection import project
from m3di.query.question import Question, ask, similarities
from m3di.query.searcher import Searcher
from stores.errors import RefusedError
from stores.geometry import PLANES
from stores.keys import plane_number
from stores.records import VolumeRecord

FACTS: Final = ("modality", "dataset", "body_part", "sequence")  # of a volume: what answers are filtered by
_CUBES: Final = 16  # that are kept in memory: 2 MiB each at 128^3
_STACKS: Final = 24  # of a plane's slices: 6 MiB each at 128 x 224 x 224
_CURVES: Final = 64


class Contents:
    """Reads what pages show, and keeps what was read last. Not for several threads at once.

    Args:
        searcher: The engine on a store; whoever opened it closes it.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.cube = lru_cache(_CUBES)(self._cube)
        self._stacks = lru_cache(_STACKS)(self._stack)
        self._similarities = lru_cache(_CURVES)(self._compared)

    @cached_property
    def store(self) -> dict[str, Any]:
        """The whole store: every volume with its facts and its place on the map, by columns."""
        store, index = self.searcher.store, self.searcher.embeddings.index
        records = {record.volume: record for record in store.records()}
        ordered = [records[name] for name in index.volumes]
        places, spread = project(self.searcher.means)
        return {
            "name": store.path.resolve().name,
            "edge": store.recipe.cube_size,
            "planes": PLANES,
            "num_rows": int(index.num_rows().sum()),
            "teacher": self.searcher.teacher.facts.get("spec", ""),
            "notes": list(card_notes(self.searcher.teacher.facts)),
            "volumes": [record.volume for record in ordered],
            "facts": {fact: _coded([getattr(record, fact) for record in ordered]) for fact in FACTS},
            "map": {"places": places.round(4).tolist(), "spread": spread.round(4).tolist()},
            "examples": list(self._examples(ordered)),
        }

    def answer(self, question: Question, wanted: Wanted) -> dict[str, Any]:
        """What a question found."""
        return answer_view(ask(self.searcher, question, wanted), question, wanted)

    def volume(self, name: str) -> dict[str, Any]:
        """Facts, places and captions of a volume."""
        record = self._record(name)
        chain = record.chain(self.searcher.store.recipe)
        return {
            "volume": name,
            "subject": record.subject,
            **{fact: getattr(record, fact) for fact in FACTS},
            "shape": chain.canonical_shape,
            "spacing_mm": [round(spacing, 3) for spacing in chain.canonical_spacing_mm],
            "voxel_mm": chain.voxel_mm,
            "to_mm": chain.cube.affine[:3].round(5).tolist(),
            "thick": [PLANES[plane] for plane in chain.thick_planes],
            "slices": [record.valid_slices(plane).tolist() for plane in range(len(PLANES))],
            "captions": self._captions(name),
        }

    def curves(self, name: str, question: Question, wanted: Wanted) -> list[list[float]] | None:
        """Similarity of a question with the slices of a volume, by plane (`similarities`)."""
        return self._similarities(name, question, wanted)

    def picture(self, name: str, plane: str, index: int) -> Pixels:
        """A slice as its teacher saw it, (y, x); where the store keeps none, as the cube has it.

        Raises:
            RefusedError: E_MISSING or E_CONFIG, for what the store does not hold.
        """
        number, positions = plane_number(plane), self.searcher.store.recipe.positions
        self._record(name)
        if index not in positions:
            message = f"there is no {plane} slice {index}"
            raise RefusedError("E_MISSING", message, hint=f"slices are taken every {positions.step} positions")
        return self._stacks(name, number)[positions.index(index)]

    def _record(self, name: str) -> VolumeRecord:
        self.searcher.number_of(name)  # a volume that has no rows is not shown
        return self.searcher.store.record(name)

    def _captions(self, name: str) -> list[Sequence[str]]:
        store = self.searcher.store
        captions = store.captions(store.current()["captioner"], name)
        return [captions.texts[plane] if captions else () for plane in range(len(PLANES))]

    def _examples(self, records: Sequence[VolumeRecord]) -> Iterator[str]:
        """First sentences of captions, a plane each and of unlike volumes: what the teacher understands best."""
        unlike = list({(record.dataset, record.body_part): record for record in reversed(records)}.values())
        for plane, record in zip(range(len(PLANES)), cycle(unlike), strict=False):
            slices = record.valid_slices(plane).tolist()
            caption = self.searcher.caption(record.volume, plane, slices[len(slices) // 2]) if slices else ""
            if caption:
                yield caption.split(". ")[0].removesuffix(".")

    def _cube(self, name: str) -> Pixels:
        """The grey cube of a volume, (x, y, z) to right, anterior and superior."""
        return grey_cube(self.searcher.store, self._record(name))

    def _stack(self, name: str, plane: int) -> Pixels:
        return slice_stack(self.searcher.store, self._record(name), plane)

    def _compared(self, name: str, question: Question, wanted: Wanted) -> list[list[float]] | None:
        return similarities(self.searcher, question, wanted, name)


def answer_view(answer: Answer, question: Question, wanted: Wanted) -> dict[str, Any]:
    """An answer with what was asked."""
    asked = {"words": question.words, "where": wanted.where, "kind": _kind(question)}
    return {"question": asked, **asdict(answer)}


def _coded(values: Sequence[str]) -> dict[str, Any]:
    """Many values of few kinds: the kinds, and the number of each value's."""
    kinds = sorted(set(values))
    numbers = {kind: number for number, kind in enumerate(kinds)}
    return {"values": kinds, "codes": [numbers[value] for value in values]}


def _kind(question: Question) -> str:
    if question.text is not None:
        return "text"
    if question.image is not None:
        return "image"
    if question.scan is not None or question.slice is None:
        return "volume"
    return "slice"
