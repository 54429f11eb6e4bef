"""What a build would do, item by item, and why: `build-store --dry-run`. Reads digests, writes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3di.build import below_root, cases_of, no_scan
from m3di.captions.identity import captioner_fingerprint, captions_of, structure_names
from m3di.captions.registry import captioner_of
from m3di.config import Config
from m3di.shards import Shard
from m3di.teachers.identity import DENSE, IMAGE, TEXT, dense_facts, stale_parts, teacher_request
from m3di.volumes.cases import Case
from m3di.volumes.layouts import survey
from m3di.volumes.prepare import identify
from stores import Store
from stores.errors import CaseError
from stores.manifest import MARKER
from stores.recipe import Recipe
from stores.records import FACTS, VolumeRecord
from stores.store import Quarantined


@dataclass(frozen=True)
class PlanItem:
    """What a build would do with one stage of a case, and why; the teacher belongs to all of them.

    Attributes:
        case: Its id; empty for the teacher.
        stage: `volume`, `captions`, `teacher` or `rows`.
        action: `build`, `keep` or `quarantine`.
        reason: In words.
    """

    case: str
    stage: str
    action: str
    reason: str


def plan(
    sources: Sequence[Path], path: Path, config: Config, *, layout: str = "auto", limit: int | None = None,
    shard: Shard | None = None,
) -> list[PlanItem]:  # fmt: skip
    """Say what a build would do, without writing anything; arguments as of `build_store`.

    Raises:
        RefusedError: As `build_store`; E_CONFIG also when the store has another recipe and may not change it.
    """
    datasets = survey(sources, layout=layout, follow_links=config.sources.follow_links)
    cases = cases_of(datasets, config)[:limit]
    if shard is not None:
        cases, path = shard.cases(cases), shard.folder(path)
    items = [
        PlanItem(dataset.name, "volume", "quarantine", no_scan(dataset)) for dataset in datasets if not dataset.cases
    ]
    if not (path / MARKER).exists():
        return [*_Planner(None, config, cases).items(cases), *items]
    with Store(path) as store:
        if not config.storage.change_recipe:
            store.require_recipe(config.volumes)
        return [*_Planner(store, config, cases).items(cases), *items]


class _Planner:
    """Cases against what a store holds; what is the same for all of them is read once.

    Args:
        store: The store; None when there is none yet.
        config: All settings.
        cases: All cases, for the names of their structures.
    """

    def __init__(self, store: Store | None, config: Config, cases: Sequence[Case]) -> None:
        self._store = store
        self._config = config
        self._structures = structure_names(cases) if config.captions.structures else {}
        self._captioner = captioner_of(config, store)
        self._captions = captioner_fingerprint(self._captioner, config)
        self._refused = {row.case: row for row in store.quarantined()} if store is not None else {}
        self._withdrawn = store.withdrawn() if store is not None else frozenset()
        request = teacher_request(config, self._captions)
        facts = store.facts("request", request) if store is not None else None
        self._teacher: str | None = facts["teacher"] if facts else None
        self._dense = dense_facts(store, self._teacher) if store is not None and self._teacher else None

    def items(self, cases: Sequence[Case]) -> Iterator[PlanItem]:
        """The stages of each case, then the teacher when it is made anew."""
        for case in cases:
            yield from self._case(case)
        if self._teacher is None:
            fitted = self._store is not None and self._store.teachers()
            why = "the settings of the teacher, or the captioner, changed" if fitted else "no teacher yet"
            yield PlanItem("", "teacher", "build", why)

    def _case(self, case: Case) -> Iterator[PlanItem]:
        """Volume, captions and rows, or the volume's quarantine alone."""
        store, recipe = self._store, self._config.volumes
        try:
            source, label, item = identify(case, recipe)
        except CaseError as error:
            yield PlanItem(case.id, "volume", "quarantine", below_root(error.message, case))
            return
        if source in self._withdrawn:
            yield PlanItem(case.id, "volume", "keep", "withdrawn from the store: it stays out")
            return
        record = store.find(case.id) if store is not None else None
        if store is None or record is None:
            why = _why_new(self._refused.get(case.id))
            yield from (PlanItem(case.id, stage, "build", why) for stage in ("volume", "captions", "rows"))
            return
        changes = _changes(record, source, label, case, store.recipe, recipe)
        same_slices = record.source_digest == source and store.recipe.slices_digest == recipe.slices_digest
        yield _item(case, "volume", ", ".join(changes) if record.item_digest != item else "")
        yield _item(case, "captions", self._why_captions(store, record, case, label, same_slices=same_slices))
        yield _item(case, "rows", self._why_rows(store, record, same_slices=same_slices))

    def _why_captions(self, store: Store, record: VolumeRecord, case: Case, label: str, *, same_slices: bool) -> str:
        """Why captions are made anew; empty when they are kept."""
        if not same_slices:
            return "its slices change"
        if set(_changed_facts(record, case)) & {"modality", "body_part", "sequence"}:
            return "modality, sequence or body part changed"
        if store.captions(self._captions, record.volume) is None:
            return "none by this captioner"
        if self._config.captions.structures and record.label_digest != label:
            return "its label map changed"
        if captions_of(store, self._captioner, record, self._config, self._structures) is None:
            return "what they describe changed"
        return ""

    def _why_rows(self, store: Store, record: VolumeRecord, *, same_slices: bool) -> str:
        """Why rows are made anew; empty when they are kept."""
        if self._teacher is None:
            return "the teacher is fitted anew"
        if store.rows_record(self._teacher, record.volume) is None:
            return "none by this teacher"
        captions = captions_of(store, self._captioner, record, self._config, self._structures)
        stale = stale_parts(store, self._teacher, self._dense, record, captions)
        if not same_slices or IMAGE in stale:
            return "its slices change"
        if TEXT in stale:
            return "its captions change: the text part"
        return "dense rows are missing" if DENSE in stale else ""


def _item(case: Case, stage: str, why: str) -> PlanItem:
    return PlanItem(case.id, stage, "build", why) if why else PlanItem(case.id, stage, "keep", "up to date")


def _why_new(refused: Quarantined | None) -> str:
    return f"was refused with {refused.code}, and is tried again" if refused else "not in the store"


def _changes(  # noqa: PLR0917
    record: VolumeRecord, source: str, label: str, case: Case, known: Recipe, wanted: Recipe
) -> list[str]:
    """What of a volume's identity is no longer what its record says."""
    changes = ["the scan changed"] if record.source_digest != source else []
    if record.label_digest != label and known.labels == wanted.labels:
        changes.append("its label map changed")
    changes += [f"{name} changed" for name in _changed_facts(record, case)]
    changes += [f"volumes.{difference}" for difference in known.differences(wanted)]
    return changes or ["built by a former recipe"]


def _changed_facts(record: VolumeRecord, case: Case) -> list[str]:
    """Facts that the case says otherwise than the record; what it leaves open was found in the scan."""
    said = {name: getattr(case, name) for name in FACTS if getattr(case, name) not in ("", "unknown")}
    return [name for name, value in said.items() if getattr(record, name) != value]
