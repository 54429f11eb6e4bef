"""The offline phase, top to bottom: scans -> volumes -> captions -> a fitted teacher -> embeddings.

Each stage commits item by item and skips what is up to date, so a rerun continues where a kill came.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3di.captions.captioner import Permitted
from m3di.captions.identity import captioner_fingerprint
from m3di.captions.registry import captioner_of
from m3di.captions.stage import CaptionsAhead, caption_volumes
from m3di.config import Config
from m3di.events import Check, Report
from m3di.shards import Shard, adopt_teacher
from m3di.signals import stop_on_signals
from m3di.volumes.cases import Case, safe_id
from m3di.volumes.layouts import Dataset, survey
from m3di.volumes.layouts.discovery import NO_SCAN_HINT
from m3di.volumes.pool import prepare_all
from stores import Store
from stores.errors import CaseError, RefusedError
from stores.store import Quarantined


@dataclass(frozen=True)
class BuildSummary:
    """What a build did, and what the store holds now; `teacher` is empty for a shard that waits for one."""

    store: Path
    cases: int
    built: int
    up_to_date: int
    withdrawn: int
    quarantined: int
    described: int
    embedded: int
    teacher: str
    digest: str


def build_store(
    sources: Sequence[Path],
    path: Path,
    config: Config,
    *,
    layout: str = "auto",
    limit: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    device: str = "auto",
    shard: Shard | None = None,
    report: Report,
) -> BuildSummary:
    """Build a store, or bring one up to date; or a shard of one, with the teacher of the whole store once it has one.

    Args:
        sources: Dataset roots, folders or scans.
        path: The store's folder; created when there is none.
        config: All settings.
        layout: How the sources are laid out; `auto` finds out.
        limit: Take the first cases only.
        workers: Processes that read and resample, by default one a core; 0 does it in this process.
        strict: Refuse the build at the first bad case instead of quarantining it.
        device: Where the teacher runs.
        shard: Take its cases only, into its folder beside `path`.
        report: Receives the events; `committed` comes only after the item is durable.

    Raises:
        RefusedError, LockedError, DamagedError, ResourceError: See `stores.errors`.
        Interrupted: On TERM or INT, after the item in hand.
    """
    # Here, because the plan of a build and the cubes of a task need no torch.
    from m3di.teachers.stage import embed_volumes, ensure_teacher, require_teacher  # noqa: PLC0415

    _require_captioner(config)
    if shard is None and not path.exists():
        require_teacher(config, device=device)
    datasets = survey(sources, layout=layout, follow_links=config.sources.follow_links)
    for dataset in datasets:
        report("found", dataset=dataset.name, layout=dataset.layout, cases=len(dataset.cases))
    cases, place = cases_of(datasets, config)[:limit], path
    if shard is not None:
        cases, place = shard.cases(cases), shard.folder(path)
    with open_store(place, config) as store, stop_on_signals() as stop:
        num_empty = refuse_empty(store, datasets, strict=strict, report=report)
        captioner = captioner_of(config, store)
        committed = commit_volumes(
            store, cases, workers=workers, strict=strict, report=report, check=stop.raise_if_set,
            ahead=CaptionsAhead.of(store, captioner, cases, config),
        )  # fmt: skip
        store.write_quarantine_table()
        if shard is None:
            require_volumes(store)
        described = caption_volumes(store, captioner, cases, config, report=report, check=stop.raise_if_set)
        captions = captioner_fingerprint(captioner, config)
        if shard is not None:
            teacher = adopt_teacher(store, path, captions, config)
        else:
            teacher = ensure_teacher(store, captions, config, device=device, report=report, check=stop.raise_if_set)
        embedded = 0
        if teacher is not None:
            embedded = embed_volumes(store, teacher, captions, device=device, report=report, check=stop.raise_if_set)
        return BuildSummary(
            store=place,
            cases=len(cases),
            built=committed.built,
            up_to_date=len(cases) - committed.built - committed.withdrawn - committed.refused,
            withdrawn=committed.withdrawn,
            quarantined=committed.refused + num_empty,
            described=committed.described + described,
            embedded=embedded,
            teacher=teacher or "",
            digest=store.digest(),
        )


def require_volumes(store: Store) -> None:
    """Refuse to go on when every case was refused, with what is wrong with the first; or withdrawn."""
    if not store.volume_names():
        refused = store.quarantined()
        if not refused:
            hint = "give other scans, or `m3di remove --take-back SCAN` first"
            raise RefusedError("E_MISSING", "all scans of the sources were withdrawn from the store", hint=hint)
        first = refused[0]
        message = f"no case could be built; {first.case}: {first.message}"
        raise RefusedError(first.code, message, hint=f"see {store.path / 'quarantine.tsv'} for all of them")


def _require_captioner(config: Config) -> None:
    """Refuse a captioner that lacks something, or may not ask whom it would, before the long part of a build."""
    captioner = captioner_of(config, None)
    captioner.of_volume("")
    if isinstance(captioner, Permitted):
        captioner.require_permission()


def open_store(path: Path, config: Config) -> Store:
    """Open the store of some settings for writing, creating it when there is none; see `Store.create_or_open`."""
    kept = config.storage
    return Store.create_or_open(
        path, config.volumes, layout=kept.layout, change_recipe=kept.change_recipe, wait_s=kept.wait_s,
        allow_network=kept.allow_network,
    )  # fmt: skip


def cases_of(datasets: Sequence[Dataset], config: Config) -> list[Case]:
    """The cases of some datasets, with the settings' word for what they do not say themselves."""
    return [
        replace(
            case,
            modality=config.sources.modality if case.modality == "unknown" else case.modality,
            body_part=case.body_part or config.sources.body_part,
        )
        for dataset in datasets
        for case in dataset.cases
    ]


@dataclass(frozen=True)
class Committed:
    """How many volumes were built, how many of them were described at once, and how many cases were not taken.

    Attributes:
        built: Volumes.
        described: Volumes, of those.
        refused: Cases that cannot be used.
        withdrawn: Cases that were withdrawn from the store.
    """

    built: int
    described: int
    refused: int
    withdrawn: int


def commit_volumes(
    store: Store,
    cases: Sequence[Case],
    *,
    workers: int | None,
    strict: bool,
    report: Report,
    check: Check,
    ahead: CaptionsAhead | None = None,
) -> Committed:
    """Build and commit the volumes that are not up to date, in the order of the cases.

    With `ahead`, those that are built get their captions too, each after its volume. Scans that were withdrawn from
    the store stay out, and are reported.
    """
    withdrawn = store.withdrawn()
    built = described = refused = left_out = 0
    quarantined = store.quarantined()
    known = {record.volume: record.item_digest for record in store.records()}
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    report("begin", stage="volumes", cases=len(cases))
    outcomes = prepare_all(
        cases, store.recipe, known, workers=min(workers, len(cases)), layout=store.volumes.layout,
        look=ahead.look if ahead else None,
    )  # fmt: skip
    for case, outcome in outcomes:
        check()
        if isinstance(outcome, CaseError):
            if strict:
                message = below_root(outcome.message, case)
                raise RefusedError(outcome.code, f"case {case.id}: {message}", hint=outcome.hint)
            refused += 1
            message = below_root(f"{outcome.message}; {outcome.hint}", case)
            row = Quarantined(case.id, case.source, outcome.code, message)
            if row not in quarantined:
                store.commit_quarantine(row)
            report("quarantined", volume=case.id, code=row.code, message=message)
        elif outcome is not None and outcome.record.source_digest in withdrawn:
            left_out += 1
            report("withdrawn", volume=case.id, hint="take the scan out of the sources")
        elif outcome is not None:
            record = store.commit_volume(outcome.record, outcome.chunks)
            built += 1
            report("committed", volume=case.id, stage="volumes")
            if ahead is not None and ahead.commit(store, record, outcome.seen):
                described += 1
                report("committed", volume=case.id, stage="captions")
            for code, message in outcome.warnings:
                report("warning", code=code, volume=case.id, message=below_root(message, case))
        else:
            report("up to date", volume=case.id, stage="volumes")
    report_duplicates(store, report)
    return Committed(built, described, refused, left_out)


def report_duplicates(store: Store, report: Report) -> None:
    """Warn of volumes that are one scan."""
    for volumes in duplicates(store):
        message = f"{', '.join(volumes)} are the same scan: keep one, or give them one subject"
        report("warning", code="W_DUPLICATE", volume=volumes[0], message=message)


def duplicates(store: Store) -> list[tuple[str, ...]]:
    """Groups of volumes that are one scan: their cubes are equal to the last bit, whatever their files and axes."""
    groups: dict[str, list[str]] = {}
    for record in store.records():
        groups.setdefault(record.objects["image"].sha256, []).append(record.volume)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def refuse_empty(store: Store, datasets: Sequence[Dataset], *, strict: bool, report: Report) -> int:
    """Quarantine the places among the sources that hold no scan, as long as they hold none; returns how many.

    Raises:
        RefusedError: E_FORMAT, when strict.
    """
    quarantined = store.quarantined()
    for dataset in datasets:
        message = no_scan(dataset)
        row = Quarantined(safe_id(dataset.name), dataset.name, "E_FORMAT", message)
        if dataset.cases and row in quarantined:
            store.lift_quarantine(row.case)
        if dataset.cases:
            continue
        if strict:
            raise RefusedError(row.code, message, hint=NO_SCAN_HINT)
        if row not in quarantined:
            store.commit_quarantine(row)
        report("quarantined", dataset=dataset.name, code=row.code, message=message)
    return sum(not dataset.cases for dataset in datasets)


def no_scan(dataset: Dataset) -> str:
    """Why a place without scans is quarantined."""
    return f"no scan found in {dataset.name} (layout {dataset.layout})"


def below_root(message: str, case: Case) -> str:
    """Name files relative to the dataset's folder: a whole path may tell more than it should."""
    for folder in (case.root, case.root.parent):
        message = message.replace(f"{folder}{os.sep}", "")
    return message
