"""All diagnostics of a store in one report: `m3di query --diagnose`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from m3di.config import load_config
from m3di.diagnostics.coverage import Coverage, coverage
from m3di.diagnostics.duplicates import near_duplicates
from m3di.diagnostics.places import PlaceScores, held_out_rows, score_model, score_teacher
from m3di.diagnostics.rows import Outlier, RowFindings, examine_rows
from m3di.evaluation.leaks import Leak, find_leaks, scans_in
from m3di.query import Searcher
from m3di.training.pretrain import split_store
from stores.geometry import PLANES

SHOWN = 10  # lines of a table for people; JSON has all
OFF = "... off its place, share of the edge"

Shown = tuple[Sequence[str], list[Sequence[object]]]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found.

    Attributes:
        coverage: Captions and blank slices.
        rows: Gap and outliers.
        duplicates: Pairs of volumes that are, or look, the same scan.
        leaks: What held-out volumes share with training ones, in a line.
        held_out: How many volumes the scores are over.
        teacher: Scores of the teacher's rows; None without held-out volumes.
        model: Scores of a run's vectors; None without a run.
    """

    coverage: Coverage
    rows: RowFindings
    duplicates: list[Leak]
    leaks: str
    held_out: int
    teacher: PlaceScores | None
    model: PlaceScores | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "coverage": asdict(self.coverage),
            "modality_gap": asdict(self.rows.gap),
            "outlier_slices": [asdict(outlier) for outlier in self.rows.slices],
            "outlier_volumes": [asdict(outlier) for outlier in self.rows.volumes],
            "near_duplicates": [asdict(pair) for pair in self.duplicates],
            "leaks": self.leaks,
            "held_out_volumes": self.held_out,
            "teacher": asdict(self.teacher) if self.teacher else None,
            "model": asdict(self.model) if self.model else None,
        }


def diagnose(searcher: Searcher) -> Diagnosis:
    """Look at everything; with a run, on the volumes that it has never seen, else on those that it would not.

    Args:
        searcher: The engine on a store, with or without a run.
    """
    store, embeddings = searcher.store, searcher.embeddings
    model = searcher.model
    held_out = model.held_out(embeddings) if model else split_store(embeddings, load_config())[1]
    scans = scans_in(store)
    tested = set(held_out.index.volumes)
    leaks = find_leaks(
        [scan for scan in scans if scan.name in tested], {"training": [s for s in scans if s.name not in tested]}
    )
    size = store.recipe.cube_size
    slices = held_out_rows(held_out) if len(held_out) else None
    return Diagnosis(
        coverage=coverage(store, store.records(), store.current()["captioner"]),
        rows=examine_rows(embeddings),
        duplicates=near_duplicates(scans),
        leaks=leaks.line,
        held_out=len(held_out),
        teacher=score_teacher(held_out, slices, cube_size=size) if slices else None,
        model=score_model(model, held_out, slices, cube_size=size) if slices and model else None,
    )


def findings(found: Diagnosis) -> Iterator[tuple[str, Shown]]:
    """Titles, and columns with rows, for people."""
    gap, covered = found.rows.gap, found.coverage
    facts: list[Sequence[object]] = [
        ("slices with a caption", f"{covered.described:.1%}, {covered.distinct:.1%} of them distinct"),
        *((f"blank {plane} positions", f"{share:.1%}") for plane, share in covered.blank.items()),
        ("distance of mean image and mean caption", f"{gap.distance:.3f}"),
        ("cosine of an image with its own caption, any", f"{gap.own:.3f}, {gap.any:.3f}"),
        ("held-out against training volumes", found.leaks),
    ]
    yield "Store", (("what", "found"), facts)
    scored = [(name, scores) for name, scores in (("teacher", found.teacher), ("model", found.model)) if scores]
    if scored:
        columns = ("over held-out volumes", *(name for name, _ in scored), "chance")
        yield f"{found.held_out} held-out volumes", (columns, list(_score_rows(scored)))
    if found.model and found.model.agreement:
        worst = [(volume, PLANES[plane], index, round(cosine, 3)) for volume, plane, index, cosine
                 in found.model.agreement.worst]  # fmt: skip
        yield "Slices where model and teacher agree least", (("volume", "plane", "slice", "cosine"), list(worst))
    yield from _lists(found)


def _score_rows(scored: Sequence[tuple[str, PlaceScores]]) -> Iterator[Sequence[object]]:
    every = [scores for _, scores in scored]
    first = every[0].retrieval
    for k, share in first.chance.items():
        name = f"caption, or model's vector, finds its own slice among the first {k} of {first.num_slices}"
        yield (name, *(f"{scores.retrieval.recall['image'][k]:.1%}" for scores in every), f"{share:.1%}")
    yield ("... one of the right plane", *(f"{scores.retrieval.plane_accuracy:.1%}" for scores in every), "33%")
    found = [scores.same_place for scores in every]
    chance = next(place.position_error_chance for place in found if place)
    name = "image finds its like in other people: right plane"
    yield (name, *(f"{place.plane_accuracy:.1%}" if place else "" for place in found), "33%")
    yield (OFF, *(_number(place.position_error) if place else "" for place in found), f"{chance:.3f}")
    yield ("... of the same dataset", *(f"{place.same_dataset:.1%}" if place else "" for place in found), "")
    model, blank = every[-1], [""] * (len(every) - 1)
    if model.localisation and model.agreement:
        chance = model.localisation.position_error_chance
        accuracy = f"{model.localisation.plane_accuracy:.1%}"
        yield ("image finds its place among the model's vectors: right plane", *blank, accuracy, "33%")
        yield (OFF, *blank, _number(model.localisation.position_error), f"{chance:.3f}")
        cosines = f"{model.agreement.mean:.3f}, {model.agreement.low:.3f}"
        yield ("cosine of model and teacher: mean, one of twenty below", *blank, cosines, "")


def _lists(found: Diagnosis) -> Iterator[tuple[str, Shown]]:
    pairs: list[Sequence[object]] = [(p.test, p.seen, p.kind, round(p.cosine, 3)) for p in found.duplicates]
    yield _title("near-duplicate volumes", pairs), (("volume", "other", "kind", "cosine"), pairs[:SHOWN])
    columns = ("volume", "plane", "slice", "cosine", "deviations")
    for name, outliers in (("outlier volumes", found.rows.volumes), ("outlier slices", found.rows.slices)):
        rows: list[Sequence[object]] = [_outlier(outlier) for outlier in outliers]
        yield _title(name, rows), (columns, rows[:SHOWN])


def _outlier(outlier: Outlier) -> Sequence[object]:
    place = (outlier.plane or "", "" if outlier.slice is None else outlier.slice)
    return (outlier.volume, *place, outlier.cosine, outlier.deviations)


def _title(name: str, rows: Sequence[object]) -> str:
    return f"{len(rows)} {name}" + (f", of which {SHOWN}" if len(rows) > SHOWN else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
