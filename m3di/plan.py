"""What a build would do, item by item, and why: `build-store --dry-run`. Reads digests, writes nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3di.build import below_root, cases_of, no_scan
from m3di.config import Config
from m3di.teachers.describe import Describer
from m3di.teachers.identity import (
    Structures,
    captioner_fingerprint,
    captions_of,
    structure_names,
    teacher_request,
)
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
    sources: Sequence[Path], path: Path, config: Config, *, layout: str = "auto", limit: int | None = None
) -> list[PlanItem]:
    """Say what a build would do, without writing anything; arguments as of `build_store`.

    Raises:
        RefusedError: As `build_store`; E_CONFIG also when the store has another recipe and may not change it.
    """
    datasets = survey(sources, layout=layout, follow_links=config.sources.follow_links)
    cases = cases_of(datasets, config)[:limit]
    items = [
        PlanItem(dataset.name, "volume", "quarantine", no_scan(dataset)) for dataset in datasets if not dataset.cases
    ]
    if not (path / MARKER).exists():
        stages = [_Stages(case, None, config, {}) for case in cases]
        return [*(item for stage in stages for item in stage.items()), _new_teacher("no teacher yet"), *items]
    with Store(path) as store:
        if not config.storage.change_recipe:
            store.require_recipe(config.volumes)
        structures = structure_names(cases) if config.captions.structures else {}
        stages = [_Stages(case, store, config, structures) for case in cases]
        planned = [item for stage in stages for item in stage.items()]
        if store.facts("request", teacher_request(config, captioner_fingerprint(Describer(), config))) is None:
            why = "the settings of the teacher, or the captioner, changed" if store.teachers() else "no teacher yet"
            planned.append(_new_teacher(why))
        return planned + items


def _new_teacher(why: str) -> PlanItem:
    return PlanItem("", "teacher", "build", why)


class _Stages:
    """The stages of one case against what the store holds of it."""

    def __init__(self, case: Case, store: Store | None, config: Config, structures: Structures) -> None:
        self._case = case
        self._store = store
        self._config = config
        self._structures = structures
        self._captioner = captioner_fingerprint(Describer(), config)

    def items(self) -> Iterator[PlanItem]:
        """Volume, captions and rows, or the volume's quarantine alone."""
        case, store, recipe = self._case, self._store, self._config.volumes
        try:
            source, label, item = identify(case, recipe)
        except CaseError as error:
            yield PlanItem(case.id, "volume", "quarantine", below_root(error.message, case))
            return
        record = store.find(case.id) if store is not None else None
        if store is None or record is None:
            refused = {row.case: row for row in store.quarantined()} if store is not None else {}
            yield self._build("volume", _why_new(refused.get(case.id)))
            yield self._build("captions", "new volume")
            yield self._build("rows", "new volume")
            return
        changes = _changes(record, source, label, case, store.recipe, recipe)
        yield self._build("volume", ", ".join(changes)) if record.item_digest != item else self._keep("volume")
        same_slices = record.source_digest == source and store.recipe.slices_digest == recipe.slices_digest
        yield self._captions(store, record, label, same_slices=same_slices)
        yield self._rows(store, record, same_slices=same_slices)

    def _captions(self, store: Store, record: VolumeRecord, label: str, *, same_slices: bool) -> PlanItem:
        if not same_slices:
            return self._build("captions", "its slices change")
        if set(_changed_facts(record, self._case)) & {"modality", "body_part"}:
            return self._build("captions", "modality or body part changed")
        if store.captions(self._captioner, record.volume) is None:
            return self._build("captions", "none by this captioner")
        if self._config.captions.structures and record.label_digest != label:
            return self._build("captions", "its label map changed")
        if captions_of(store, self._captioner, record, self._config, self._structures) is None:
            return self._build("captions", "what they describe changed")
        return self._keep("captions")

    def _rows(self, store: Store, record: VolumeRecord, *, same_slices: bool) -> PlanItem:
        request = store.facts("request", teacher_request(self._config, self._captioner))
        if request is None:
            return self._build("rows", "the teacher is fitted anew")
        rows = store.rows_record(request["teacher"], record.volume)
        if rows is None:
            return self._build("rows", "none by this teacher")
        if not same_slices or not store.rows_are_current(rows, record):
            return self._build("rows", "its slices change")
        captions = captions_of(store, self._captioner, record, self._config, self._structures)
        if captions is None or captions.digest != rows.captions_digest:
            return self._build("rows", "its captions change: the text part")
        return self._keep("rows")

    def _build(self, stage: str, why: str) -> PlanItem:
        return PlanItem(self._case.id, stage, "build", why)

    def _keep(self, stage: str) -> PlanItem:
        return PlanItem(self._case.id, stage, "keep", "up to date")


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
