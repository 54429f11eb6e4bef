"""The offline phase, top to bottom: scans -> volumes -> captions -> a fitted teacher -> embeddings.

Each stage commits item by item and skips what is up to date, so a rerun continues where a kill came.
"""

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import SimpleITK as sitk
from threadpoolctl import threadpool_limits

from m3di.config import Config
from m3di.events import Report
from m3di.volumes import preprocess, readers, slices
from m3di.volumes.cases import Case
from m3di.volumes.layouts import discover_all
from stores import Store
from stores.errors import CaseError, RefusedError, ResourceError
from stores.geometry import PLANES
from stores.manifest import MARKER
from stores.recipe import Recipe, digest_of
from stores.records import VolumeRecord, pack_bits
from stores.store import Quarantined


@dataclass(frozen=True)
class BuildSummary:
    """What a build did, and what the store holds now."""

    store: Path
    cases: int
    built: int
    up_to_date: int
    quarantined: int
    described: int
    embedded: int
    digest: str


@dataclass(frozen=True)
class Prepared:
    """One case, ready to be committed."""

    record: VolumeRecord
    parts: dict[str, Any]
    warnings: tuple[tuple[str, str], ...] = ()


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
    report: Report,
) -> BuildSummary:
    """Build a store, or bring one up to date.

    Args:
        sources: Dataset roots, folders or scans.
        path: The store's folder; created when there is none.
        config: All settings.
        layout: How the sources are laid out; `auto` finds out.
        limit: Take the first cases only.
        workers: Processes that read and resample; by default one a core.
        strict: Refuse the build at the first bad case instead of quarantining it.
        device: Where the teacher runs.
        report: Receives the events; `committed` comes only after the item is durable.

    Raises:
        RefusedError, LockedError, DamagedError, ResourceError: See `stores.errors`.
        Interrupted: On TERM or INT, after the item in hand.
    """
    # Here, because worker processes import this module and need no torch.
    from m3di.teachers.stage import caption_volumes, embed_volumes, ensure_teacher  # noqa: PLC0415
    from m3di.training.runtime import stop_on_signals  # noqa: PLC0415

    cases = discover_all(sources, layout=layout, follow_links=config.sources.follow_links)[:limit]
    with Store.create_or_open(path, config.volumes) as store, stop_on_signals() as stop:
        built, refused = commit_volumes(
            store, cases, workers=workers, strict=strict, report=report, check=stop.raise_if_set
        )
        store.write_quarantine_table()
        if not store.volume_names():
            raise RefusedError("E_NO_PIXELS", "no case could be built", hint=f"see {path / 'quarantine.tsv'}")
        described = caption_volumes(store, cases, config, report=report, check=stop.raise_if_set)
        teacher = ensure_teacher(store, config, device=device, report=report)
        embedded = embed_volumes(store, teacher, config, device=device, report=report, check=stop.raise_if_set)
        return BuildSummary(
            store=path,
            cases=len(cases),
            built=built,
            up_to_date=len(cases) - built - refused,
            quarantined=refused,
            described=described,
            embedded=embedded,
            digest=store.digest(),
        )


@dataclass(frozen=True)
class PlanItem:
    """What a build would do with a case, and why."""

    case: str
    action: str
    reason: str


def plan(cases: Sequence[Case], path: Path, config: Config) -> list[PlanItem]:
    """Say what a build would do with each case, without writing anything.

    Raises:
        RefusedError: E_CONFIG, when the store has another recipe.
    """
    known: dict[str, VolumeRecord] = {}
    if (path / MARKER).exists():
        with Store(path) as store:
            store.require_recipe(config.volumes)
            known = {record.volume: record for record in store.records()}
    return [_plan(case, known.get(case.id), config.volumes) for case in cases]


def _plan(case: Case, known: VolumeRecord | None, recipe: Recipe) -> PlanItem:
    try:
        item = _identify(case, recipe)[2]
    except CaseError as error:
        return PlanItem(case.id, "quarantine", _below_root(error.message, case))
    if known is None:
        return PlanItem(case.id, "build", "not in the store")
    if known.item_digest != item:
        return PlanItem(case.id, "build", "the scan, its label map or its facts changed")
    return PlanItem(case.id, "keep", "up to date")


def commit_volumes(
    store: Store, cases: Sequence[Case], *, workers: int | None, strict: bool, report: Report, check: Any
) -> tuple[int, int]:
    """Build and commit the volumes that are not up to date, in the order of the cases.

    Returns:
        How many were built, and how many cases were refused.
    """
    built = refused = 0
    known = store.quarantined()
    report("begin", stage="volumes", cases=len(cases))
    for case, outcome in _prepare_all(store, cases, workers=workers):
        check()
        if isinstance(outcome, CaseError):
            if strict:
                message = _below_root(outcome.message, case)
                raise RefusedError(outcome.code, f"case {case.id}: {message}", hint=outcome.hint)
            refused += 1
            row = Quarantined(case.id, case.source, outcome.code, _below_root(outcome.message, case))
            if row not in known:
                store.commit_quarantine(row)
            report("quarantined", volume=case.id, code=outcome.code, message=row.message)
        elif outcome is not None:
            store.commit_volume(outcome.record, outcome.parts)
            built += 1
            report("committed", volume=case.id, stage="volumes")
            for code, message in outcome.warnings:
                report("warning", code=code, volume=case.id, message=message)
        else:
            report("up to date", volume=case.id, stage="volumes")
    for volumes in duplicates(store):
        message = f"{', '.join(volumes)} are the same scan: keep one, or give them one subject"
        report("warning", code="W_DUPLICATE", volume=volumes[0], message=message)
    return built, refused


def duplicates(store: Store) -> list[tuple[str, ...]]:
    """Groups of volumes that are one scan: their cubes are equal to the last bit, whatever their files and axes."""
    groups: dict[str, list[str]] = {}
    for record in store.records():
        groups.setdefault(record.objects["image"].sha256, []).append(record.volume)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def prepare(case: Case, recipe: Recipe, known: str) -> Prepared | None:
    """Turn one case into a record and arrays; None when the item digest is `known` already.

    Raises:
        CaseError: When the scan or its label map cannot be used.
    """
    source, label_source, item = _identify(case, recipe)
    if item == known:
        return None
    volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
    chain = preprocess.chain_of(volume, recipe)
    positions = slice_positions(recipe)
    grids = slices.plane_grids(chain, positions, recipe.slice_size) if recipe.slice_size else []
    cube, stacks = preprocess.canonicalise(volume, recipe, grids)
    parts: dict[str, Any] = {"image": cube.data.astype(np.float16)}
    warnings = _warnings(volume)
    if recipe.labels and case.label:
        label = readers.read_label(case.label, like=volume.geometry)
        parts["label"] = preprocess.make_label_cube(label, chain)
        if not label.any():
            warnings.append(("W_EMPTY_LABEL", "its label map holds background only"))
    valid = slices.nonblank(cube) & np.isin(np.arange(recipe.cube_size), positions if recipe.slice_size else [])
    for plane, stack in enumerate(stacks):
        images = slices.to_images(stack, plane)
        images[~valid[plane][positions]] = 0
        parts[PLANES[plane]] = images
    record = VolumeRecord(
        volume=case.id,
        subject=case.subject,
        dataset=case.dataset,
        modality=volume.modality,
        body_part=case.body_part,
        source_digest=source,
        label_digest=label_source,
        item_digest=item,
        slot=-1,
        source=volume.geometry,
        valid=(pack_bits(valid[0]), pack_bits(valid[1]), pack_bits(valid[2])),
        num_non_finite=volume.num_non_finite,
        num_padding=volume.num_padding,
    )
    return Prepared(record, parts, tuple(warnings))


def _warnings(volume: readers.Volume) -> list[tuple[str, str]]:
    """What a user should know of a scan that is usable nevertheless."""
    found = []
    if volume.num_non_finite:
        found.append(("W_NON_FINITE", f"{volume.num_non_finite} voxels are not finite; they count as background"))
    if volume.num_padding:
        found.append(("W_PADDING", f"{volume.num_padding} voxels lie outside the scanner's field of view"))
    return found


def _identify(case: Case, recipe: Recipe) -> tuple[str, str, str]:
    """Digests of the scan, of its label map (empty when it plays no part), and of the item that they make."""
    source = readers.content_digest(case.image, case.member)
    label = readers.label_digest(case.label) if recipe.labels and case.label else ""
    return (
        source,
        label,
        digest_of({"source": source, "label": label, "recipe": recipe.digest, "facts": _facts(case)}),
    )


def slice_positions(recipe: Recipe) -> np.ndarray:
    """Positions of the cube at which slices are rendered: the middle of each stride."""
    return np.arange(recipe.slice_stride // 2, recipe.cube_size, recipe.slice_stride)


def _facts(case: Case) -> dict[str, str]:
    return {
        "subject": case.subject,
        "dataset": case.dataset,
        "modality": case.modality,
        "body_part": case.body_part,
    }


def _prepare_all(
    store: Store, cases: Sequence[Case], *, workers: int | None
) -> Iterator[tuple[Case, Prepared | CaseError | None]]:
    """Prepare cases in worker processes, a few ahead, and give the outcomes in the order of the cases."""
    known = {record.volume: record.item_digest for record in store.records()}
    count = min(workers or len(os.sched_getaffinity(0)), len(cases))
    with _executor(count) as executor:
        waiting: deque[tuple[Case, Future[Prepared | None]]] = deque()
        for case in cases:
            waiting.append((case, executor.submit(prepare, case, store.recipe, known.get(case.id, ""))))
            if len(waiting) > count:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())


def _outcome(case: Case, future: "Future[Prepared | None]") -> tuple[Case, Prepared | CaseError | None]:
    try:
        return case, future.result()
    except CaseError as error:
        return case, error
    except BrokenProcessPool as error:
        message = f"a worker process died at or before case {case.id}"
        raise ResourceError("E_WORKER", message, hint="free memory or lower --workers, and run again") from error
    except MemoryError as error:
        raise ResourceError("E_MEMORY", f"out of memory at case {case.id}", hint="lower --workers") from error


@contextmanager
def _executor(count: int) -> Iterator[Executor]:
    """Worker processes (spawned, so that no lock or open store is inherited); this process itself for one."""
    if count <= 1:
        yield _Inline()
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin_worker) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


class _Inline(Executor):
    """Runs each call at once, in this process."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except CaseError as error:
            future.set_exception(error)
        return future


def _begin_worker() -> None:
    """One core a worker, as they are as many as the cores; signals are the parent's to handle."""
    parent = parent_process()
    if parent is not None:  # a killed parent cannot say goodbye: leave when it is gone
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)


def _below_root(message: str, case: Case) -> str:
    """Name files relative to the dataset's folder: a whole path may tell more than it should."""
    for folder in (case.root, case.root.parent):
        message = message.replace(f"{folder}{os.sep}", "")
    return message
