"""The build's captions: a captioner is shown each volume, and what it writes is kept. Needs no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3di.captions.captioner import SOURCES, Asking, Captioner, ShownPlane, ShownVolume, SliceFacts, Structure
from m3di.captions.identity import Structures, captioner_fingerprint, captions_of, described, structure_names
from m3di.captions.registry import captioner_of
from m3di.config import Config
from m3di.events import Check, Report
from m3di.signals import stop_on_signals
from m3di.storage import open_for_writing
from m3di.volumes.cases import Case
from stores import Store
from stores.errors import RefusedError
from stores.geometry import NORMAL_AXIS, PLANES
from stores.recipe import Recipe
from stores.records import Captions, VolumeRecord


def caption_volumes(
    store: Store,
    captioner: Captioner,
    cases: Sequence[Case],
    config: Config,
    *,
    report: Report,
    check: Check,
) -> int:
    """Caption the volumes whose captions are not up to date; returns how many."""
    structures = structure_names(cases) if config.captions.structures else {}
    fingerprint = captioner_fingerprint(captioner, config)
    stale = [r for r in store.records() if captions_of(store, captioner, r, config, structures) is None]
    if isinstance(captioner, Asking):
        captioner.begin(stale, report=report, check=check)
    store.commit_facts("captioner", fingerprint, {"name": captioner.name, "structures": config.captions.structures})
    report("begin", stage="captions", volumes=len(stale))
    try:
        for record in stale:
            check()
            written = captioner.caption(show(store, record, structures))
            identity = described(store, captioner, record, config, structures)
            captions = Captions(identity, written.texts, written.sources)
            store.commit_captions(fingerprint, record.volume, captions, facts=written.facts)
            report("committed", volume=record.volume, stage="captions")
    finally:  # also when a cap, a signal or the server ends it early
        if stale and isinstance(captioner, Asking):
            report("captioned", **captioner.summary())
    return len(stale)


def caption_store(path: Path, config: Config, *, report: Report) -> dict[str, Any]:
    """Caption the volumes of a store, without a teacher: what `m3di captions run` does.

    Label maps are named only by a build, which knows their names.

    Raises:
        RefusedError: E_CONFIG, when structures are to be named, or a setting of the captioner is missing.
    """
    if config.captions.structures:
        hint = "run m3di build-store, which reads the names of the sets"
        raise RefusedError("E_CONFIG", "captions.structures needs the names of the label maps", hint=hint)
    with open_for_writing(path, config.storage) as store, stop_on_signals() as stop:
        captioner = captioner_of(config, store)
        described = caption_volumes(store, captioner, [], config, report=report, check=stop.raise_if_set)
        records = store.records()
        fingerprint = captioner_fingerprint(captioner, config)
        written = [store.captions(fingerprint, record.volume) for record in records]
        letters = Counter("".join("".join(captions.sources) for captions in written if captions is not None))
        return {
            "captioner": captioner.name, "volumes": len(records), "described": described,
            "texts": {SOURCES[letter]: count for letter, count in sorted(letters.items())},
        }  # fmt: skip


def show(store: Store, record: VolumeRecord, structures: Structures) -> ShownVolume:
    """What a captioner is shown of a volume; `structures` is empty unless label maps may be named."""
    axial, coronal, sagittal = (_show_plane(store, record, plane, structures) for plane in range(len(PLANES)))
    return ShownVolume(record.volume, (axial, coronal, sagittal))


def slice_images(store: Store, record: VolumeRecord, plane: int) -> np.ndarray:
    """The rendered images of a plane's valid slices, in ascending order of position: (s, y, x) uint8."""
    images = store.volumes.read(PLANES[plane], record.slot)
    return images[record.valid_slices(plane) // store.recipe.slice_stride]


def slice_position(record: VolumeRecord, recipe: Recipe, plane: int, index: int) -> float:
    """Where a slice lies within the scan along its plane's normal: 0 inferior, posterior or left, 1 the other end."""
    start, stop = record.chain(recipe).inside[NORMAL_AXIS[plane]]
    return float(np.clip((index - start + 0.5) / (stop - start), 0, 1))


def _show_plane(store: Store, record: VolumeRecord, plane: int, structures: Structures) -> ShownPlane:
    names = structures.get(record.dataset, {}) if "label" in record.objects else {}
    label = store.volumes.read("label", record.slot) if names else None
    slices = tuple(int(index) for index in record.valid_slices(plane))
    chain = record.chain(store.recipe)
    low_hu, high_hu = store.recipe.ct_window_hu
    facts = []
    for index in slices:
        position = slice_position(record, store.recipe, plane, index)
        cut = None if label is None else label.take(index, axis=NORMAL_AXIS[plane])
        present = () if cut is None else _present(cut, names, plane=plane, voxel_mm=chain.voxel_mm)
        facts.append(
            SliceFacts(
                plane, position, record.modality, record.body_part, present,
                offset_mm=(index + 0.5 - store.recipe.cube_size / 2) * chain.voxel_mm,
                pixel_mm=chain.edge_mm / store.recipe.slice_size,
                sequence=record.sequence,
                hu_range=(low_hu, high_hu) if record.modality == "CT" else None,
            )
        )  # fmt: skip
    return ShownPlane(slice_images(store, record, plane), tuple(facts), slices)


def _present(label: np.ndarray, names: Mapping[int, str], *, plane: int, voxel_mm: float) -> tuple[Structure, ...]:
    """The structures in a slice of a label map, largest first.

    Args:
        label: Slice of the label cube, its axes in canonical order: of axial and coronal ones the first to the right.
        names: Class name by class value.
        plane: The slice's.
        voxel_mm: Edge of the cube's voxels.
    """
    values, counts = np.unique(label, return_counts=True)
    found = []
    for which in np.argsort(-counts, kind="stable"):
        value = int(values[which])
        if value and value in names:
            side = "" if PLANES[plane] == "sagittal" else _side((label == value).sum(axis=1))
            found.append(Structure(names[value], round(float(counts[which]) * voxel_mm**2, 1), side))
    return tuple(found)


def _side(counts: np.ndarray) -> str:
    """Where a structure lies about the middle of the scan, from its voxels in each column to the right."""
    size = len(counts)
    left, right = counts[: size // 2].sum(), counts[-(-size // 2) :].sum()
    if min(left, right) <= 0.1 * max(left, right):
        return "left" if left > right else "right"
    middle = counts[size // 2 - size // 32 - 1 : -(-size // 2) + size // 32 + 1].sum()
    return "both" if middle == 0 and min(left, right) >= 0.25 * max(left, right) else ""
