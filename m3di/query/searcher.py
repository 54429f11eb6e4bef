"""The engine of queries: opened once on a store, it answers for as long as it stays open."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from m3di.evaluation.leaks import mean_embedding
from m3di.query.answers import IMAGE, TEXT, Answer, Hit, Wanted
from m3di.query.approximate import WORTH_IT, ApproximateIndex, open_index
from m3di.query.conditions import Named, allowed_blocks, named_in, thirds_allowed
from m3di.query.notes import card_notes
from m3di.query.pictures import read_image, read_scan_slices
from m3di.query.ranking import best
from m3di.query.scan import Part, RowSource
from m3di.query.teacher import AskedTeacher
from stores import Store
from stores.embeddings import EmbeddingStore
from stores.errors import RefusedError
from stores.geometry import NORMAL_AXIS, PLANES, place_within
from stores.index import StoreIndex
from stores.keys import plane_number
from stores.records import VolumeRecord

if TYPE_CHECKING:
    from m3di.query.model import SliceModel

Floats = npt.NDArray[np.float32]
AGAINST: Final = {"captions": TEXT, "images": IMAGE}
OF_STORE: Final = ("slice", "volume")  # questions that a run's model turns into vectors itself
ANY: Final = Wanted()


class Searcher:
    """Answers questions to a store, as it was when it was opened. Use as a context manager.

    What a question needs is loaded at the first that needs it, and kept: the places of the rows, the teacher, the
    records. The store may be read-only; nothing is written.

    Args:
        path: The store.
        teacher: One of the store's, by spec or the beginning of its fingerprint; by default the current one.
        run: A pretraining run. Slices and volumes of the store then ask by the vectors that its encoder and PSAT make
            of them, and other questions are held against such vectors of the volumes that it was not trained on.
        encoder: The encoder that the user names, for a run with one from elsewhere (`Checkpoint.encoder`).
        device: Where teacher and encoder run.
        compact: Copy what is asked again and again into memory (`Part.compact`), where there is room.

    Raises:
        RefusedError: E_STORE, when there is no store, or it has no embeddings; E_CONFIG, for an unknown teacher.
    """

    def __init__(
        self, path: Path, *, teacher: str = "", run: Path | None = None, encoder: str = "", device: str = "auto",
        compact: bool = True,
    ) -> None:  # fmt: skip
        self.store = Store(path)
        try:
            self._current = self.store.current()
            fingerprint = _teacher_called(teacher, self.store) if teacher else self._current["teacher"]
            self.embeddings: EmbeddingStore = self.store.embeddings(fingerprint)
            self.teacher = AskedTeacher(self.store, fingerprint, device=device)
        except BaseException:
            self.store.close()
            raise
        self._run, self._encoder, self._device = run, encoder, device
        self._compact = compact
        self._parts: dict[tuple[bool, int], Part] = {}
        self._indices: dict[int, ApproximateIndex] = {}
        self._numbers: dict[str, int] = {}
        self._thirds: dict[Part, npt.NDArray[np.uint8]] = {}

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the store; what the parts look at is gone then."""
        self._parts.clear()
        self._thirds.clear()
        self._indices.clear()
        self.store.close()

    # Questions

    def by_text(self, text: str, wanted: Wanted = ANY) -> Answer:
        """Slices whose captions (or images, `wanted.against`) are nearest to a text.

        Captions by default: a small teacher was fitted to captions, and free wording finds the plane it names more
        often among them. Not often enough, though, and the organ hardly: so a text that names one plane, a place
        along its normal, or body parts or modalities that volumes of the store have, is answered with such slices
        only, unless `wanted.where` has a condition of that key, or nothing would be left. Slices of which it is not
        known may answer, too, but come after all others, whatever their score; where no volume is known to be of the
        body part, those of unknown parts come before all others. The notes say so.

        Raises:
            RefusedError: E_CONFIG, for an empty text.
        """
        if not text.strip():
            raise RefusedError("E_CONFIG", "the text to look for is empty", hint='for example m3di query "liver"')
        if wanted.against not in AGAINST:
            message = f"a text is held against {' or '.join(AGAINST)}, not {wanted.against!r}"
            raise RefusedError("E_CONFIG", message, hint="leave --against out")
        part = AGAINST[wanted.against]
        (first, *others), named = self._narrowed(text, wanted, self.part(part, of_model=self.model is not None))
        vector = self.teacher.encode_text(text)
        answer = self.by_vector(vector, first, part=part, asked="text")
        for further in others:
            if len(answer.results) < wanted.top:
                answer = _followed_by(answer, self.by_vector(vector, further, part=part, asked="text"), wanted)
        return replace(answer, notes=(*answer.notes, *_notes_on(named, is_ordered=bool(others))))

    def by_image(self, image: Path, wanted: Wanted = ANY) -> Answer:
        """Slices that look like an image file.

        Raises:
            RefusedError: E_MISSING or E_FORMAT, for the file.
        """
        return self.by_vector(self.teacher.encode_images(read_image(image))[0], wanted, asked="image")

    def by_slice(self, volume: str, plane: str, index: int, wanted: Wanted = ANY) -> Answer:
        """Slices that look like a slice of the store, itself first, and those in its place in other subjects.

        Raises:
            RefusedError: E_MISSING, for an unknown volume; E_CONFIG, for a slice that has no row.
        """
        number = plane_number(plane)
        vector = self.vector_of(volume, number, index)
        answer = self.by_vector(vector, wanted, asked="slice")
        return replace(answer, same_place=self.same_place(vector, volume, number, index, wanted))

    def by_volume(self, volume: str, wanted: Wanted = ANY) -> Answer:
        """Volumes that look like a volume of the store, which is left out.

        Raises:
            RefusedError: E_MISSING, for a volume that is unknown or has no rows.
        """
        number = self.number_of(volume)
        if self.model is None:
            vector = self.means[number]
        else:
            planes, slices = self.embeddings.index.slices_of(number)
            vectors = self.model.vectors(volume, planes, slices)
            vector = mean_embedding([vectors[planes == plane] for plane in range(len(PLANES))])
        return self._volumes(vector, wanted, without=number)

    def by_scan(self, scan: Path, wanted: Wanted = ANY) -> Answer:
        """Volumes that look like a scan file, which is prepared as the store's own were.

        Raises:
            RefusedError, CaseError: When it is not one scan, or cannot be used.
        """
        stacks = read_scan_slices(scan, self.store.recipe)
        rows = [self.teacher.encode_images(stack).astype(np.float16) for stack in stacks if len(stack)]
        return self._volumes(mean_embedding(rows), wanted)

    def by_vector(self, vector: Floats, wanted: Wanted = ANY, *, part: int = IMAGE, asked: str = "vector") -> Answer:
        """Slices whose rows are nearest to a unit vector (e,) in the teacher's space.

        Args:
            vector: The question.
            wanted: Which answers.
            part: What it is held against, IMAGE or TEXT; with a run, what its model makes of slices.
            asked: What the vector was made of: a `slice` is held against the teacher's rows also with a run.
        """
        of_model = self.model is not None and asked not in OF_STORE
        source = self.part(part, of_model=of_model)
        if wanted.approximate and not of_model:
            found, notes = self._nearly_best(vector, wanted, part)
        else:
            found, notes = self._best(source, vector, wanted), ()
            if len(source) >= WORTH_IT:
                notes = (f"exact search over {len(source)} rows; --approximate is faster",)
        notes = (*self.notes(asked), *notes)
        if not found:
            return Answer((), notes)
        places = source.places(np.array([row for row, _ in found], np.int64))
        hits = [
            self._hit(source.index.volumes[int(volume)], int(plane), int(index), score)
            for volume, plane, index, (_, score) in zip(*places, found, strict=True)
        ]
        return Answer(tuple(hits), notes)

    def same_place(
        self, vector: Floats, volume: str, plane: int, index: int, wanted: Wanted = ANY
    ) -> tuple[Hit, ...]:
        """The slices in the place of a slice in volumes of other subjects, those most like `vector` first.

        Places are compared in the cubes, which are centred; the nearest slice is taken, within half a stride.
        """
        rows, source = self.embeddings.index, self.part(IMAGE)
        distance = np.abs(np.arange(8 * rows.valid.shape[-1]) - index)
        reachable = distance <= self.store.recipe.slice_stride // 2
        of_others = self._people != self._people[self.number_of(volume)]
        candidates = np.flatnonzero(self._allowed(wanted, source)[:, plane] & of_others)
        shown = rows.bits(candidates)[:, plane] & reachable
        candidates, shown = candidates[shown.any(axis=1)], shown[shown.any(axis=1)]
        slices = np.where(shown, distance, len(distance)).argmin(axis=1)
        numbers = source.numbers(candidates, np.full(len(candidates), plane), slices)
        found = best(
            source.some_scores(numbers, vector), lambda chosen: source.exact(numbers[chosen], vector),
            top=wanted.top, margin=source.margin,
        )  # fmt: skip
        return tuple(self._hit(rows.volumes[int(candidates[i])], plane, int(slices[i]), score) for i, score in found)

    # What is searched

    def part(self, part: int, *, of_model: bool = False) -> Part:
        """One part of all rows, ready to be searched."""
        key = of_model, 0 if of_model else part
        if key not in self._parts:
            source: RowSource = self._model_rows if of_model else self.embeddings
            self._parts[key] = Part(source, key[1], compacts=self._compact)
        return self._parts[key]

    def vector_of(self, volume: str, plane: int, index: int) -> Floats:
        """The image row of a slice, (e,); with a run, what its model makes of the slice.

        Raises:
            RefusedError: E_MISSING, for an unknown volume; E_CONFIG, for a slice that has no row.
        """
        number = self.number_of(volume)
        valid = np.flatnonzero(self.embeddings.index.bits(np.array([number]))[0, plane])
        if index not in valid:
            near = f"; the nearest is {valid[np.abs(valid - index).argmin()]}" if len(valid) else ""
            message = f"slice {index} of the {PLANES[plane]} plane of {volume} has no row{near}"
            raise RefusedError("E_CONFIG", message, hint="blank slices and those off the stride have none")
        planes, slices = np.array([plane]), np.array([index])
        if self.model is not None:
            return self.model.vectors(volume, planes, slices)[0]
        return self.embeddings.gather(np.array([number]), planes[None], slices[None])[0, 0, IMAGE].astype(np.float32)

    def number_of(self, volume: str) -> int:
        """Position of a volume in the index.

        Raises:
            RefusedError: E_MISSING, for a volume that is unknown or has no rows.
        """
        if not self._numbers:
            self._numbers = {name: number for number, name in enumerate(self.embeddings.index.volumes)}
        if volume not in self._numbers:
            self.store.record(volume)
            message = f"volume {volume!r} has no rows of teacher {self.embeddings.fingerprint[:16]}"
            raise RefusedError("E_MISSING", message, hint="run m3di build-store to its end")
        return self._numbers[volume]

    @cached_property
    def means(self) -> npt.NDArray[np.float64]:
        """Embedding of each volume in the order of the index, (n, e) (`Part.means`)."""
        return self.part(IMAGE).means()

    def notes(self, asked: str = "vector") -> tuple[str, ...]:
        """How far the teacher can be trusted, as was measured on held-out volumes, and what a run's part is."""
        if self.model is None:
            return tuple(card_notes(self.teacher.facts))
        about = f"by the encoder of {self._run_name} after {self.model.samples_seen} samples"
        if asked in OF_STORE:
            note = f"{about}: what it makes of the {asked}, held against the teacher's rows"
        else:
            note = f"{about}: held against what it makes of {len(self._model_rows.index)} volumes it did not train on"
        return (*card_notes(self.teacher.facts), note)

    def caption(self, volume: str, plane: int, index: int) -> str:
        """What the current captioner wrote about a slice; empty without."""
        captions = self.store.captions(self._current["captioner"], volume)
        if captions is None:
            return ""
        position = int(np.searchsorted(self.store.record(volume).valid_slices(plane), index))
        texts = captions.texts[plane]
        return texts[position] if position < len(texts) else ""

    def _narrowed(self, text: str, wanted: Wanted, source: Part) -> tuple[list[Wanted], list[Named]]:
        """What is wanted with what the text names as further conditions, and these.

        Twice where some of what may answer is to come after the rest.
        """
        found = []
        given = {condition.partition("=")[0] for condition in wanted.where}
        surely = wanted
        for named in named_in(text, (self._records[name] for name in source.index.volumes)):
            further = _where(wanted, named.key, (*named.values, *named.otherwise))
            if named.key not in given and self._is_possible(further, source):
                wanted = further
                surely = _where(surely, named.key, named.values)
                found.append(named)
        return ([surely, wanted] if surely != wanted and self._is_possible(surely, source) else [wanted]), found

    def _is_possible(self, wanted: Wanted, source: Part) -> bool:
        try:
            return self._num_possible(wanted, source) > 0
        except RefusedError:
            return False

    def _nearly_best(
        self, vector: Floats, wanted: Wanted, part: int
    ) -> tuple[list[tuple[int, float]], tuple[str, ...]]:
        """What the approximate index finds, scored exactly; by exact search where too little of it may answer."""
        source = self.part(part)
        if part not in self._indices:
            self._indices[part] = open_index(self.store, self.embeddings.fingerprint, source, part)
        rows = self._indices[part].candidates(vector, wanted.top)
        scores = np.full(len(source), -np.inf, np.float32)
        volumes, planes, _ = source.places(rows)
        rows = rows[self._allowed(wanted, source)[volumes, planes]]
        if (in_place := self._in_place(wanted, source)) is not None:
            rows = rows[in_place[rows]]
        scores[rows] = source.exact(rows, vector)
        found = _best_of(source, scores, vector, wanted)
        if len(found) < min(wanted.top, self._num_possible(wanted, source)):
            return self._best(source, vector, wanted), ("by exact search: the index found too few",)
        recall = self._indices[part].recall
        return found, (f"by an approximate index, which finds {recall:.1%} of the nearest rows",)

    def _volumes(self, vector: npt.NDArray[Any], wanted: Wanted, *, without: int | None = None) -> Answer:
        """Rank whole volumes by their embeddings' cosines with a unit vector (e,)."""
        scores = self.means @ vector
        scores[~self._allowed(wanted, self.part(IMAGE)).any(axis=1)] = -np.inf
        scores[~self.embeddings.index.num_rows().any(axis=1)] = -np.inf
        if without is not None:
            scores[without] = -np.inf
        order = np.argsort(-scores, kind="stable")[: wanted.top]
        hits = [self._likest_slice(int(number), vector, float(scores[number])) for number in order
                if np.isfinite(scores[number])]  # fmt: skip
        return Answer(tuple(hits), self.notes("volume"))

    def _likest_slice(self, number: int, vector: npt.NDArray[Any], score: float) -> Hit:
        index = self.embeddings.index
        volume = index.volumes[number]
        planes, slices = index.slices_of(number)
        first = int((self.embeddings.all_rows([volume])[:, IMAGE].astype(np.float32) @ vector).argmax())
        return self._hit(volume, int(planes[first]), int(slices[first]), score)

    def _hit(self, volume: str, plane: int, index: int, score: float) -> Hit:
        return Hit(volume, PLANES[plane], index, round(score, 4), self.caption(volume, plane, index))

    def _best(self, source: Part, vector: Floats, wanted: Wanted) -> list[tuple[int, float]]:
        """The nearest rows of those that may answer, by exact search."""
        scores = source.scores(vector, self._allowed(wanted, source))
        if (in_place := self._in_place(wanted, source)) is not None:
            scores[~in_place] = -np.inf
        return _best_of(source, scores, vector, wanted)

    def _num_possible(self, wanted: Wanted, source: Part) -> int:
        """How many answers there could be at most."""
        counts, in_place = source.index.num_rows(), self._in_place(wanted, source)
        if in_place is not None:
            counts = np.diff(np.append(0, np.cumsum(in_place))[source.starts]).reshape(counts.shape)
        counts = counts * self._allowed(wanted, source)
        return int(counts.any(axis=1).sum() if wanted.one_per_volume else counts.sum())

    def _in_place(self, wanted: Wanted, source: Part) -> npt.NDArray[np.bool_] | None:
        """(rows,) which lie in the thirds of their scans that are wanted; None where any may answer."""
        thirds = thirds_allowed(wanted.where)
        if thirds is None:
            return None
        if source not in self._thirds:
            self._thirds[source] = self._thirds_of(source)
        return thirds.ravel()[self._thirds[source]]

    def _thirds_of(self, source: Part) -> npt.NDArray[np.uint8]:
        """(rows,) three times the plane of each row, and its third."""
        recipe, index = self.store.recipe, source.index
        inside = np.array([self._records[name].chain(recipe).inside for name in index.volumes], np.float64)
        volumes, planes, slices = np.nonzero(index.bits(np.arange(len(index))))
        positions = place_within(slices, *inside[volumes, np.array(NORMAL_AXIS)[planes]].T)
        return (3 * planes + np.minimum(3 * positions, 2).astype(np.int64)).astype(np.uint8)

    def _allowed(self, wanted: Wanted, source: Part) -> npt.NDArray[np.bool_]:
        if not wanted.where:
            return np.ones((len(source.index), len(PLANES)), bool)
        names = source.index.volumes
        return allowed_blocks(wanted.where, lambda: [self._records[name] for name in names], count=len(names))

    @cached_property
    def _people(self) -> npt.NDArray[np.int64]:
        """(n,) a number for the person of each volume."""
        index = self.embeddings.index
        numbers: dict[tuple[str, str], int] = {}
        people = (person_of(index, number) for number in range(len(index)))
        return np.array([numbers.setdefault(person, len(numbers)) for person in people], np.int64)

    @cached_property
    def _records(self) -> dict[str, VolumeRecord]:
        return {record.volume: record for record in self.store.records()}

    @cached_property
    def model(self) -> "SliceModel | None":
        """The model of the run; None without a run."""
        if self._run is None:
            return None
        from m3di.query.model import SliceModel  # noqa: PLC0415

        width = self.part(IMAGE).dim
        model = SliceModel(self._run, self.store, width=width, device=self._device, encoder=self._encoder)
        if model.teacher != self.embeddings.fingerprint:
            message = f"{self._run} was taught by teacher {model.teacher[:16]}, not by that of this store"
            raise RefusedError(
                "E_STORE", message, hint=f"if the store keeps its rows: --teacher {model.teacher[:16]}"
            )
        return model

    @property
    def _run_name(self) -> str:
        """The run's folder without where it lies: notes become part of pages, which travel."""
        return self._run.resolve().name if self._run else ""

    @cached_property
    def _model_rows(self) -> RowSource:
        from m3di.query.model import ModelRows  # noqa: PLC0415

        assert self.model is not None
        held_out = self.model.held_out(self.embeddings)
        if not len(held_out):
            message = f"{self._run} was trained on everyone in {self.store.path}: nobody is left to hold it against"
            raise RefusedError("E_SPLIT", message, hint="ask by a slice or volume of the store, or leave --run out")
        return ModelRows(self.model, held_out)


def _where(wanted: Wanted, key: str, values: Iterable[str]) -> Wanted:
    return replace(wanted, where=(*wanted.where, *(f"{key}={value}" for value in values)))


def _notes_on(named: Sequence[Named], *, is_ordered: bool) -> list[str]:
    """What was done with what a text names."""
    notes = []
    if known := [one for one in named if one.is_known]:
        words = ", ".join(one.words for one in known)
        order = ", known ones first," if is_ordered and any(one.otherwise for one in known) else ","
        notes.append(f"the text names {words}: only such slices may answer{order} unless a filter says otherwise")
    if is_ordered and len(known) < len(named):
        message = "no volume is known to be of the body part that the text names: those of unknown ones answer first"
        notes.append(message)
    return notes


def _followed_by(first: Answer, rest: Answer, wanted: Wanted) -> Answer:
    """An answer, continued by those of another that it does not have yet."""

    def place(hit: Hit) -> tuple[Any, ...]:
        return (hit.volume,) if wanted.one_per_volume else (hit.volume, hit.plane, hit.slice)

    known = {place(hit) for hit in first.results}
    further = [hit for hit in rest.results if place(hit) not in known]
    return Answer((*first.results, *further)[: wanted.top], tuple(dict.fromkeys((*first.notes, *rest.notes))))


def person_of(index: StoreIndex, volume: int) -> tuple[str, str]:
    """Whose scan a volume is: subjects of one name in two datasets are two people."""
    return index.datasets[volume], index.subjects[volume]


def _best_of(source: Part, scores: Floats, vector: Floats, wanted: Wanted) -> list[tuple[int, float]]:
    starts = source.starts[:: len(PLANES)] if wanted.one_per_volume else None
    return best(
        scores, lambda rows: source.exact(rows, vector), top=wanted.top, margin=source.margin, volume_starts=starts
    )


def _teacher_called(name: str, store: Store) -> str:
    from m3di.teachers.identity import find_teacher  # noqa: PLC0415

    return find_teacher(store, name)
