"""The build's second half: a teacher fitted to the slices and their captions and frozen, and its embeddings."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from m3di.captions.stage import slice_images, slice_position
from m3di.config import Config
from m3di.events import Report
from m3di.tasks.split import nested_order, share_of
from m3di.teachers.clip import Teacher, load_teacher, save_teacher
from m3di.teachers.identity import teacher_request
from m3di.teachers.tuning import HeadFit, fit_heads, retrieval_card
from m3di.training.runtime import pick_device, prepare_process
from stores import Store
from stores.errors import DamagedError
from stores.geometry import PLANES
from stores.records import Captions, VolumeRecord

Check = Callable[[], None]


def ensure_teacher(store: Store, captioner: str, config: Config, *, device: str, report: Report) -> str:
    """Fingerprint of the store's frozen teacher for these settings; fitted and kept when there is none yet."""
    request = teacher_request(config, captioner)
    known = store.facts("request", request)
    if known is None:
        prepare_process()
        fitted = _fit(store, config, captioner, device=str(pick_device(device)), report=report)
        _keep(store, fitted, config)
        known = {"teacher": fitted.fingerprint}
        store.commit_facts("request", request, known)
    return known["teacher"]


def embed_volumes(
    store: Store, fingerprint: str, captioner: str, *, device: str, report: Report, check: Check
) -> int:
    """Embed the volumes whose rows are not up to date, then make this teacher the current one; returns how many."""
    stale = []
    for record in store.records():
        captions = _captions(store, captioner, record)
        rows = store.rows_record(fingerprint, record.volume)
        if rows is None or not store.rows_are_current(rows, record) or rows.captions_digest != captions.digest:
            stale.append((record, captions))
    report("begin", stage="embeddings", volumes=len(stale))
    teacher = kept_teacher(store, fingerprint, device=device) if stale else None
    for record, captions in stale:
        check()
        assert teacher is not None
        planes = [_embed_plane(store, teacher, record, captions, plane) for plane in range(len(PLANES))]
        store.commit_rows(fingerprint, record, planes, captions_digest=captions.digest)
        report("committed", volume=record.volume, stage="embeddings")
    store.commit_current(teacher=fingerprint, captioner=captioner)
    return len(stale)


def kept_teacher(store: Store, fingerprint: str, *, device: str) -> Teacher:
    """Load a teacher that the store keeps, and check that it is the one it is named after.

    Raises:
        DamagedError: E_WEIGHTS, when its folder is not what was written.
    """
    prepare_process()
    folder = store.teacher_folder(fingerprint)
    teacher = load_teacher(f"local-dir:{folder}", device=str(pick_device(device)))
    if teacher.fingerprint != fingerprint:
        raise DamagedError(
            "E_WEIGHTS", f"the teacher in {folder} is not the one that was kept", hint="run m3di verify"
        )
    return teacher


def _captions(store: Store, captioner: str, record: VolumeRecord) -> Captions:
    captions = store.captions(captioner, record.volume)
    if captions is None:
        raise DamagedError("E_MISSING", f"volume {record.volume} has no captions", hint="run m3di build-store again")
    return captions


def _embed_plane(store: Store, teacher: Teacher, record: VolumeRecord, captions: Captions, plane: int) -> np.ndarray:
    """Rows of a plane: (s, 2, e) float16, image and text; encoded a plane at a time, so that reruns are bit-equal."""
    texts = captions.texts[plane]
    if not texts:
        return np.zeros((0, 2, teacher.embedding_dim), np.float16)
    known = store.rows_record(teacher.fingerprint, record.volume)
    if known is not None and store.rows_are_current(known, record):  # other captions of the same slices
        image = store.plane_rows(teacher.fingerprint, record.volume, plane)[:, 0]
    else:
        image = _halves(teacher.encode_image(torch.from_numpy(slice_images(store, record, plane))))
    return np.stack([image, _halves(teacher.encode_text(texts))], axis=1)


def _halves(rows: torch.Tensor) -> np.ndarray:
    return rows.cpu().numpy().astype(np.float16)


def _fit(store: Store, config: Config, captioner: str, *, device: str, report: Report) -> Teacher:
    """Fit the projection heads to slices of the training subjects; score them on held-out ones before and after."""
    base = load_teacher(config.teacher.spec, device=device)
    if not config.teacher.fit_steps:
        return base
    records = store.records()
    owners = [(record.dataset, record.subject) for record in records]
    shares = share_of(owners, ratios=config.split.ratios, seed=config.split.seed)
    train = [record for record, share in zip(records, shares, strict=True) if share == "train"]
    held_out = [record for record, share in zip(records, shares, strict=True) if share != "train"]
    fit_items = _sample(store, captioner, train, config.teacher.fit_slices, config.seed)
    report("begin", stage="teacher", slices=len(fit_items))
    fit = HeadFit(
        steps=config.teacher.fit_steps,
        learning_rate=config.teacher.fit_learning_rate,
        batch_size=config.teacher.fit_batch_size,
        seed=config.seed,
    )
    images, texts = _pairs(store, fit_items)
    fitted = fit_heads(base, base.image_features(images), base.text_features(texts), fit)
    if held_out:
        items = _sample(store, captioner, held_out, config.teacher.fit_slices // 4, config.seed)
        fitted.card = {"before": _card(store, base, items), "after": _card(store, fitted, items)}
        report("teacher", fingerprint=fitted.fingerprint, **fitted.card)
    return fitted


Item = tuple[VolumeRecord, int, int, str]  # volume, plane, rank of the slice among the plane's valid ones, caption


def _sample(store: Store, captioner: str, records: Sequence[VolumeRecord], count: int, seed: int) -> list[Item]:
    """A fixed random subset of the slices of some volumes, sorted by volume and plane."""
    items: dict[str, Item] = {}
    for record in records:
        captions = _captions(store, captioner, record)
        for plane, texts in enumerate(captions.texts):
            for rank, text in enumerate(texts):
                items[f"{record.volume}/{plane}/{rank:04d}"] = (record, plane, rank, text)
    return [items[name] for name in sorted(nested_order(items, seed=seed)[:count])]


def _pairs(store: Store, items: Sequence[Item]) -> tuple[torch.Tensor, list[str]]:
    images, last = [], None
    for record, plane, rank, _ in items:
        if (record.volume, plane) != last:
            pictures, last = slice_images(store, record, plane), (record.volume, plane)
        images.append(pictures[rank])
    return torch.from_numpy(np.stack(images)), [text for *_, text in items]


def _card(store: Store, teacher: Teacher, items: Sequence[Item]) -> dict[str, object]:
    images, texts = _pairs(store, items)
    positions = [
        slice_position(record, store.recipe, plane, int(record.valid_slices(plane)[rank]))
        for record, plane, rank, _ in items
    ]
    order = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return retrieval_card(
        teacher.encode_image(images),
        teacher.encode_text(texts),
        planes=torch.tensor([plane for _, plane, _, _ in items]),
        positions=torch.tensor(positions),
        text_ids=torch.tensor([order[text] for text in texts]),
    )


def _keep(store: Store, teacher: Teacher, config: Config) -> None:
    """Write the teacher into the store, then its facts: a folder without facts is an interrupted one."""
    folder = store.teacher_folder(teacher.fingerprint)
    save_teacher(teacher, folder)
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    facts = {
        "fingerprint": teacher.fingerprint,
        "spec": config.teacher.spec,
        "embedding_dim": teacher.embedding_dim,
        "fit": config.to_dict()["teacher"],
        "card": teacher.card,
        "files": files,
    }
    store.commit_facts("teacher", teacher.fingerprint, facts)
