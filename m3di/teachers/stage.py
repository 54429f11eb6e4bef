"""The build's second half: a teacher fitted to the slices and their captions and frozen, and its embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3di.captions.identity import captioner_fingerprint
from m3di.captions.registry import captioner_of
from m3di.captions.stage import slice_images
from m3di.config import Config
from m3di.events import Check, Report, go_on
from m3di.storage import open_for_writing
from m3di.teachers.clip import Teacher, load_teacher, save_teacher
from m3di.teachers.dense import PatchProjection
from m3di.teachers.fitting import FittedTeacher, captions_or_raise, fit_teacher
from m3di.teachers.folder import digests_of
from m3di.teachers.identity import DENSE, IMAGE, TEXT, dense_facts, stale_parts, teacher_request
from m3di.training.runtime import pick_device, prepare_process
from stores import Store
from stores.errors import DamagedError, RefusedError
from stores.geometry import PLANES
from stores.records import Captions, VolumeRecord


def require_teacher(config: Config, *, device: str) -> None:
    """Load a teacher and let go of it: what it lacks is told before the long part of a build.

    Raises:
        RefusedError: E_CONFIG, E_WEIGHTS or E_UNSAFE_WEIGHTS, as `load_teacher`; E_CONFIG for a device that is none.
    """
    load_teacher(config.teacher.spec, device=str(pick_device(device)), dtype=config.teacher.precision)


def ensure_teacher(
    store: Store, captioner: str, config: Config, *, device: str, report: Report, check: Check = go_on
) -> str:
    """Fingerprint of the store's frozen teacher for these settings; fitted and kept when there is none yet."""
    known = store.facts("request", teacher_request(config, captioner))
    if known is None:
        return make_teacher(store, captioner, config, device=device, report=report, check=check)
    return known["teacher"]


def make_teacher(
    store: Store, captioner: str, config: Config, *, device: str, splits: int = 1, report: Report,
    check: Check = go_on,
) -> str:  # fmt: skip
    """Fit a teacher for these settings and keep it, whether the store has one or not; returns its fingerprint."""
    prepare_process()
    place = str(pick_device(device))
    fitted = fit_teacher(store, captioner, config, device=place, splits=splits, report=report, check=check)
    _keep(store, fitted, config)
    fingerprint = fitted.teacher.fingerprint
    store.commit_facts("request", teacher_request(config, captioner), {"teacher": fingerprint})
    return fingerprint


def embed_volumes(
    store: Store, fingerprint: str, captioner: str, *, device: str, report: Report, check: Check
) -> int:
    """Embed the volumes whose rows are not up to date, then make this teacher the current one; returns how many."""
    dense = dense_facts(store, fingerprint)
    stale = []
    for record in store.records():
        captions = captions_or_raise(store, captioner, record)
        if parts := stale_parts(store, fingerprint, dense, record, captions):
            stale.append(_Todo(record, captions, parts))
    report("begin", stage="embeddings", volumes=len(stale))
    if stale:
        teacher = kept_teacher(store, fingerprint, device=device)
        projection = PatchProjection.load(store.teacher_folder(fingerprint)) if dense else None
    for todo in stale:
        check()
        volume = todo.record.volume
        planes = [_embed_plane(store, teacher, projection, todo, plane) for plane in range(len(PLANES))]
        if todo.parts & {IMAGE, TEXT}:
            rows = [pooled for pooled, _ in planes]
            store.commit_rows(fingerprint, todo.record, rows, captions_digest=todo.captions.digest)
        if DENSE in todo.parts:
            assert dense is not None and projection is not None
            patches = [grid for _, grid in planes]
            store.commit_rows(dense["fingerprint"], todo.record, patches, parts=projection.parts)
        report("committed", volume=volume, stage="embeddings")
    store.commit_current(teacher=fingerprint, captioner=captioner)
    return len(stale)


@dataclass(frozen=True)
class KeptTeacher:
    """The teacher that readers of a store use: where it lies and what is known of it."""

    folder: Path
    facts: dict[str, Any]


def current_teacher(path: Path) -> KeptTeacher:
    """The teacher of a store.

    Raises:
        RefusedError: E_STORE, when there is no store, or its build has not come that far.
    """
    with Store(path) as store:
        fingerprint = store.current()["teacher"]
        return KeptTeacher(store.teacher_folder(fingerprint), store.facts("teacher", fingerprint) or {})


def fit_in_store(path: Path, config: Config, *, device: str, splits: int, report: Report) -> dict[str, Any]:
    """Fit a teacher to a store's captions and keep it there: what `m3di teacher fit` does. Returns its facts.

    Raises:
        RefusedError: E_STORE, when a volume has no captions by the captioner of these settings.
    """
    with open_for_writing(path, config.storage) as store:
        captioner = captioner_fingerprint(captioner_of(config, store), config)
        bare = [record.volume for record in store.records() if store.captions(captioner, record.volume) is None]
        if bare:
            message = f"{len(bare)} volumes of {path} have no captions by {config.captions.captioner}: {bare[0]}, ..."
            raise RefusedError("E_STORE", message, hint="run m3di captions run, or m3di build-store, first")
        fingerprint = make_teacher(store, captioner, config, device=device, splits=splits, report=report)
        return store.facts("teacher", fingerprint) or {}


def kept_teacher(store: Store, fingerprint: str, *, device: str) -> Teacher:
    """Load a teacher that the store keeps, and check that it is the one it is named after.

    Raises:
        DamagedError: E_WEIGHTS, when its folder is not what was written, or an m3di that encoded otherwise wrote it.
    """
    prepare_process()
    folder = store.teacher_folder(fingerprint)
    teacher = load_teacher(f"local-dir:{folder}", device=str(pick_device(device)))
    if teacher.fingerprint != fingerprint:
        hint = "run m3di verify; if that finds it sound, another version of m3di made it: run m3di build-store"
        raise DamagedError("E_WEIGHTS", f"the teacher in {folder} is not the one that was kept", hint=hint)
    return teacher


@dataclass(frozen=True)
class _Todo:
    """What of a volume's rows is to be made anew."""

    record: VolumeRecord
    captions: Captions
    parts: frozenset[str]


def _embed_plane(
    store: Store, teacher: Teacher, projection: PatchProjection | None, todo: _Todo, plane: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a plane: image and text (s, 2, e), and patches (s, p, d), both float16, each empty when not needed.

    A plane is encoded at a time, so that reruns are bit-equal.
    """
    texts = todo.captions.texts[plane]
    num_parts, dim = (len(projection.parts), projection.dim) if projection else (1, 0)
    pooled = np.zeros((len(texts), 2, teacher.embedding_dim), np.float16)
    patches = np.zeros((len(texts), num_parts, dim), np.float16)
    if not texts:
        return pooled, patches
    if todo.parts & {IMAGE, DENSE}:
        images = torch.from_numpy(slice_images(store, todo.record, plane))
        if projection is not None and DENSE in todo.parts:
            embedded, grid = teacher.encode_image_and_patches(images)
            patches = _halves(projection(grid))
        else:
            embedded = teacher.encode_image(images)
        pooled[:, 0] = _halves(embedded)
    if IMAGE not in todo.parts and TEXT in todo.parts:
        pooled[:, 0] = store.plane_rows(teacher.fingerprint, todo.record.volume, plane)[:, 0]
    if TEXT in todo.parts:
        pooled[:, 1] = _halves(teacher.encode_text(texts))
    return pooled, patches


def _halves(rows: torch.Tensor) -> np.ndarray:
    return rows.cpu().numpy().astype(np.float16)


def _keep(store: Store, fitted: FittedTeacher, config: Config) -> None:
    """Write the teacher into the store, then its facts: a folder without facts is an interrupted one."""
    teacher, projection = fitted.teacher, fitted.projection
    known = store.facts("teacher", teacher.fingerprint)
    folder = store.teacher_folder(teacher.fingerprint)
    if known and known.get("dense") and projection is None:  # the same weights, whose dense rows others may use
        store.commit_facts("teacher", teacher.fingerprint, known | {"card": fitted.card})
        return
    save_teacher(teacher, folder, projection)
    facts: dict[str, Any] = {
        "fingerprint": teacher.fingerprint,
        "spec": config.teacher.spec,
        "random": teacher.towers.random,
        "embedding_dim": teacher.embedding_dim,
        "fit": config.to_dict()["teacher"],
        "card": fitted.card,
        "fitted_on": {volume: list(scan) for volume, scan in fitted.fitted_on.items()},
        "files": digests_of(folder),
    }
    if projection is not None:
        facts["dense"] = {
            "fingerprint": projection.fingerprint(teacher.fingerprint),
            "grid": list(projection.grid),
            "dim": projection.dim,
            "explained_variance": projection.explained_variance,
        }
    store.commit_facts("teacher", teacher.fingerprint, facts)
