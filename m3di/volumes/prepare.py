"""One case to what the store keeps of it: the record, the cube, the label cube and the slice images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3di.volumes import preprocess, readers, slices
from m3di.volumes.cases import Case
from stores.chunks import LAYOUTS, Chunk, Layout
from stores.geometry import PLANES
from stores.recipe import Recipe
from stores.records import VolumeRecord, facts_of, item_digest, pack_bits
from stores.volumes import encode_parts

# What else is made of a volume while its arrays are at hand, from its record and them; picklable, for the workers.
Look = Callable[[VolumeRecord, Mapping[str, npt.NDArray[Any]]], Any]


@dataclass(frozen=True)
class Prepared:
    """One case, ready to be committed.

    Attributes:
        record: Its record, slot and objects still missing.
        chunks: Its arrays by name, encoded.
        warnings: (code, message) of what a user should know of a scan that is usable nevertheless.
        seen: What `look` made of it.
    """

    record: VolumeRecord
    chunks: dict[str, Chunk]
    warnings: tuple[tuple[str, str], ...] = ()
    seen: Any = None


def prepare(
    case: Case, recipe: Recipe, known: str, layout: Layout = LAYOUTS["compact"], look: Look | None = None
) -> Prepared | None:
    """Turn one case into a record and arrays; None when the item digest is `known` already.

    Raises:
        CaseError: When the scan or its label map cannot be used.
    """
    source, label_source, item = identify(case, recipe)
    if item == known:
        return None
    volume = readers.read_volume(case.image, modality=case.modality, member=case.member)
    cube, valid, images = render(volume, recipe)
    parts: dict[str, Any] = {"image": cube.data.astype(np.float16)}
    warnings = _warnings(volume)
    if recipe.labels and case.label:
        label_map, passed_over = readers.settle_label(case.label)
        warnings += [(error.code, f"no label map: {error.message}; {error.hint}") for error in passed_over]
        label = readers.read_label(label_map, like=volume.geometry)
        parts["label"] = preprocess.make_label_cube(label, cube.chain)
        if not label.any():
            warnings.append(("W_EMPTY_LABEL", "its label map holds background only"))
    parts |= images
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
        sequence="" if volume.modality == "CT" else case.sequence,
    )
    seen = look(record, parts) if look else None
    return Prepared(record, encode_parts(parts, recipe, layout), tuple(warnings), seen)


def render(
    volume: readers.Volume, recipe: Recipe
) -> tuple[preprocess.Cube, npt.NDArray[np.bool_], dict[str, npt.NDArray[np.uint8]]]:
    """A scan's cube, the positions (3, J) that have a slice, and by plane the images (s, y, x) at `recipe.positions`.

    An image without a slice is black. There are no planes where the recipe keeps no slices.

    Raises:
        CaseError: E_NO_SIGNAL, when nothing would be seen.
    """
    if not recipe.slice_size:
        cube, _ = preprocess.canonicalise(volume, recipe)
        return cube, np.zeros((len(PLANES), recipe.cube_size), bool), {}
    positions = np.array(recipe.positions)  # the middle of each stride
    grids = slices.plane_grids(preprocess.chain_of(volume, recipe), positions, recipe.slice_size)
    cube, stacks = preprocess.canonicalise(volume, recipe, grids)
    valid = slices.nonblank(cube) & np.isin(np.arange(recipe.cube_size), positions)
    images = {}
    for plane, (name, stack) in enumerate(zip(PLANES, stacks, strict=True)):
        images[name] = slices.to_images(stack, plane)
        images[name][~valid[plane, positions]] = 0
    return cube, valid, images


def _warnings(volume: readers.Volume) -> list[tuple[str, str]]:
    """What a user should know of a scan that is usable nevertheless."""
    found = []
    if volume.num_non_finite:
        found.append(("W_NON_FINITE", f"{volume.num_non_finite} voxels are not finite; they count as background"))
    if volume.num_padding:
        found.append(("W_PADDING", f"{volume.num_padding} voxels lie outside the scanner's field of view"))
    return found


def identify(case: Case, recipe: Recipe) -> tuple[str, str, str]:
    """Digests of the scan, of its label map (empty when it plays no part), and of the item that they make.

    Raises:
        CaseError: When a file is missing or its header cannot be read.
    """
    source = readers.content_digest(case.image, case.member)
    label = readers.label_digest(case.label) if recipe.labels and case.label else ""
    return (
        source,
        label,
        item_digest(source, label, recipe, facts_of(case)),
    )
