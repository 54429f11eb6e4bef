"""The build's captions: a captioner is shown each volume, and what it writes is kept. Needs no torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.captions.captioner import (
    SOURCES,
    Asking,
    Captioner,
    ShownPlane,
    ShownVolume,
    SliceFacts,
    Structure,
    Written,
)
from m3di.captions.describe import Describer
from m3di.captions.identity import Structures, captioner_fingerprint, captions_of, described, structure_names
from m3di.captions.registry import captioner_of
from m3di.config import Config
from m3di.events import Check, Report
from m3di.signals import stop_on_signals
from m3di.storage import open_for_writing
from m3di.volumes.cases import Case
from stores import Store
from stores.errors import CaseError, RefusedError
from stores.geometry import NORMAL_AXIS, PLANES, place_within
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
    stale = [r for r in store.records() if captions_of(store, captioner, r, config, structures) is None]
    if isinstance(captioner, Asking):
        captioner.begin(stale, report=report, check=check)
    _commit_captioner(store, captioner, config)
    report("begin", stage="captions", volumes=len(stale))
    try:
        for record in stale:
            check()
            written = captioner.caption(show(store, record, structures))
            _commit(store, captioner, record, written, config, structures)
            report("committed", volume=record.volume, stage="captions")
    finally:  # also when a cap, a signal or the server ends it early
        if stale and isinstance(captioner, Asking):
            report("captioned", **captioner.summary())
    return len(stale)


@dataclass(frozen=True)
class CaptionsAhead:
    """Captions that are written where a volume is prepared, by the worker that has its images at hand.

    Attributes:
        captioner: One that needs nothing but what it is shown.
        config: All settings.
        recipe: Of the store.
        structures: Names of the label maps, if they may be named.
    """

    captioner: Describer
    config: Config
    recipe: Recipe
    structures: Structures

    @classmethod
    def of(cls, store: Store, captioner: Captioner, cases: Sequence[Case], config: Config) -> "CaptionsAhead | None":
        """For a build of some cases; None when the captioner has to wait for the stage of captions."""
        if not isinstance(captioner, Describer):
            return None
        structures = structure_names(cases) if config.captions.structures else {}
        return cls(captioner, config, store.recipe, structures)

    def look(self, record: VolumeRecord, arrays: Mapping[str, npt.NDArray[Any]]) -> Written | None:
        """Caption a volume; None when it cannot be, which the stage of captions then says."""
        try:
            return self.captioner.caption(_show(record, self.recipe, arrays, self.structures))
        except CaseError:
            return None

    def commit(self, store: Store, record: VolumeRecord, written: Written | None) -> bool:
        """Keep the captions of a volume that has been committed; whether they were not there already."""
        if written is None or captions_of(store, self.captioner, record, self.config, self.structures) is not None:
            return False
        _commit_captioner(store, self.captioner, self.config)
        _commit(store, self.captioner, record, written, self.config, self.structures)
        return True


def _commit_captioner(store: Store, captioner: Captioner, config: Config) -> None:
    facts = {"name": captioner.name, "structures": config.captions.structures}
    store.commit_facts("captioner", captioner_fingerprint(captioner, config), facts)


def _commit(  # noqa: PLR0917
    store: Store, captioner: Captioner, record: VolumeRecord, written: Written, config: Config, structures: Structures
) -> None:
    identity = described(store, captioner, record, config, structures)
    captions = Captions(identity, written.texts, written.sources)
    fingerprint = captioner_fingerprint(captioner, config)
    store.commit_captions(fingerprint, record.volume, captions, facts=written.facts)


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
    named = "label" in record.objects and structures.get(record.dataset)
    arrays = {name: store.volumes.read(name, record.slot) for name in ([*PLANES, "label"] if named else PLANES)}
    return _show(record, store.recipe, arrays, structures)


def slice_images(store: Store, record: VolumeRecord, plane: int) -> np.ndarray:
    """The rendered images of a plane's valid slices, in ascending order of position: (s, y, x) uint8."""
    return _valid_images(record, store.recipe, store.volumes.read(PLANES[plane], record.slot), plane)


def slice_position(record: VolumeRecord, recipe: Recipe, plane: int, index: int) -> float:
    """Where a slice lies within the scan along its plane's normal: 0 inferior, posterior or left, 1 the other end."""
    start, stop = record.chain(recipe).inside[NORMAL_AXIS[plane]]
    return float(place_within(index, start, stop))


def _valid_images(record: VolumeRecord, recipe: Recipe, images: np.ndarray, plane: int) -> np.ndarray:
    return images[record.valid_slices(plane) // recipe.slice_stride]


def _show(
    record: VolumeRecord, recipe: Recipe, arrays: Mapping[str, np.ndarray], structures: Structures
) -> ShownVolume:
    axial, coronal, sagittal = (
        _show_plane(record, recipe, arrays, structures, plane=plane) for plane in range(len(PLANES))
    )
    return ShownVolume(record.volume, (axial, coronal, sagittal))


def _show_plane(
    record: VolumeRecord, recipe: Recipe, arrays: Mapping[str, np.ndarray], structures: Structures, *, plane: int
) -> ShownPlane:
    names = structures.get(record.dataset, {})
    label = arrays.get("label") if names else None
    slices = tuple(int(index) for index in record.valid_slices(plane))
    chain = record.chain(recipe)
    low_hu, high_hu = recipe.ct_window_hu
    facts = []
    for index in slices:
        position = slice_position(record, recipe, plane, index)
        cut = None if label is None else label.take(index, axis=NORMAL_AXIS[plane])
        present = () if cut is None else _present(cut, names, plane=plane, voxel_mm=chain.voxel_mm)
        facts.append(
            SliceFacts(
                plane, position, record.modality, record.body_part, present,
                offset_mm=(index + 0.5 - recipe.cube_size / 2) * chain.voxel_mm,
                pixel_mm=chain.edge_mm / recipe.slice_size,
                sequence=record.sequence,
                hu_range=(low_hu, high_hu) if record.modality == "CT" else None,
            )
        )  # fmt: skip
    return ShownPlane(_valid_images(record, recipe, arrays[PLANES[plane]], plane), tuple(facts), slices)


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
