"""Exact facts of a slice, measured on its image: extent, form, symmetry, cavities, brightest region, tissues in CT.

Measured on blocks of the image's pixels, with whole numbers wherever a sum is taken, and rounded, so that a slice has
the same facts on every machine. What the image does not support stays empty.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int32, Int64, Shaped, UInt8
from scipy import ndimage

from m3di.captions.captioner import SliceFacts
from stores.geometry import PLANES

EDGE: Final = 112  # blocks along an image's edge, at least
SYMMETRY_EDGE: Final = 28  # as EDGE, for the comparison of left and right
TISSUE_LEVEL: Final = 0.1  # above the noise floor of MR; of the whole scale
BODY_HU: Final = -300.0  # above: tissue of any kind; below: air and lung
LARGE_PART: Final = 0.05  # of the tissue: a part of its own; smaller ones are specks
CAVITY: Final = 0.01  # of the cross-section: a cavity; smaller ones are gaps
BRIGHT_PERCENT: Final = 95
FLAT: Final = 0.05  # of the whole scale: what is brighter than the mean by less is not bright
ONE_REGION: Final = 0.4  # of all bright tissue: what the largest region must hold to be the brightest
CUT_FROM: Final = 16  # blocks: smaller circles, too, lie on a side with half of its length
_BESIDE: Final = np.ones((3, 3), bool)  # neighbours: corners too
_FACING: Final = ndimage.generate_binary_structure(2, 1)  # neighbours: no corners
MASKED: Final = (
    0.4  # of the cross-section in one grey: what a mask or threshold leaves of a CT says nothing of tissue
)
# (name, from HU, below HU); voxels between two classes are partial volume.
TISSUES_HU: Final = (
    ("air", -np.inf, -400.0),
    ("fat", -190.0, -30.0),
    ("soft tissue", -30.0, 150.0),
    ("bone or contrast", 200.0, 800.0),
    ("very dense", 800.0, np.inf),
)


@dataclass(frozen=True)
class Region:
    """A part of the cross-section.

    Attributes:
        share: Of the cross-section's area.
        row: Centre, 0 the top and 1 the bottom of the cross-section's bounding box.
        column: Centre, 0 its left and 1 its right edge.
        excess: How much brighter than the tissue's mean, of the whole scale; negative when darker.
    """

    share: float
    row: float
    column: float
    excess: float


@dataclass(frozen=True)
class Form:
    """The outline of the cross-section, holes filled.

    Attributes:
        parts: How many large parts it has; 0 when it is specks only.
        elongation: Longer over shorter axis of the ellipse with its second moments.
        roundness: Its area, as a share of that ellipse's: 1 for every ellipse, 0.95 for a rectangle.
        cut_sides: Sides of its bounding box, of top, bottom, left and right, that it lies on with over half of
            their length, as where a field of view cuts it off; of outlines too small to tell, none.
        width_mm: Of its bounding box; None when the pixel's size is not known.
        height_mm: Of its bounding box.
        area_mm2: Its area.
    """

    parts: int
    elongation: float
    roundness: float
    cut_sides: tuple[str, ...]
    width_mm: float | None
    height_mm: float | None
    area_mm2: float | None


@dataclass(frozen=True)
class Measured:
    """What was measured of a slice.

    Attributes:
        fill: Share of the image that the cross-section fills, holes included; 0 when nothing is visible.
        grey: Mean of the tissue, 0 black to 1 white.
        contrast: Standard deviation of the tissue.
        form: The outline; None when nothing is visible.
        symmetry: Correlation of the cross-section with its mirror image, left for right, about the best axis near its
            centre; None in sagittal slices.
        cavities: Dark regions that tissue encloses (in CT: air), largest first, three at most.
        brightest: The largest of the regions of the brightest twentieth of the tissue; None when it holds no large
            part of that.
        tissues: CT: share of the cross-section of each class of `TISSUES_HU` that the window shows whole; None when
            this is no CT, or one that was masked.
    """

    fill: float
    grey: float = 0.0
    contrast: float = 0.0
    form: Form | None = None
    symmetry: float | None = None
    cavities: tuple[Region, ...] = ()
    brightest: Region | None = None
    tissues: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready values."""
        form = None if self.form is None else vars(self.form) | {"cut_sides": list(self.form.cut_sides)}
        return vars(self) | {
            "form": form,
            "cavities": [vars(cavity).copy() for cavity in self.cavities],
            "brightest": None if self.brightest is None else vars(self.brightest).copy(),
            "tissues": None if self.tissues is None else dict(self.tissues),
        }


Blocks = Int32[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]


def measure(image: UInt8[np.ndarray, "y x"], facts: SliceFacts) -> Measured:
    """Measure a slice.

    Args:
        image: As it is shown to the teacher, 0 black to 255 white.
        facts: What is known of it: the plane, the size of a pixel, the HU that it shows.
    """
    factor = max(1, min(image.shape) // EDGE)
    blocks = block_sums(image, factor)
    scale = 255 * factor**2
    air_is_shown = facts.hu_range is not None and facts.hu_range[0] <= BODY_HU < facts.hu_range[1]
    level = _level_of(BODY_HU, facts.hu_range) if air_is_shown and facts.hu_range else TISSUE_LEVEL
    tissue, parts = _large_parts(blocks > level * scale)
    if not tissue.any():
        return Measured(0.0)
    section = _section(blocks, tissue, scale)
    values = section.values
    variance = float(values @ values) / len(values) / scale**2 - section.mean**2
    return Measured(
        fill=round(section.area / tissue.size, 4),
        grey=round(section.mean, 4),
        contrast=round(max(variance, 0.0) ** 0.5, 4),
        form=_form(section, parts, pixel_mm=facts.pixel_mm * factor),
        symmetry=None if PLANES[facts.plane] == "sagittal" else _symmetry(section),
        cavities=_cavities(section),
        brightest=_brightest(section),
        tissues=_tissues(blocks[section.body], scale, facts.hu_range),
    )


def block_sums(image: Shaped[np.ndarray, "y x"], factor: int) -> Blocks:
    """Sum squares of `factor` pixels; what is left over at the lower and right edge is left out."""
    whole = image[: image.shape[0] // factor * factor, : image.shape[1] // factor * factor]
    rows = whole[::factor].astype(np.int32)
    for offset in range(1, factor):  # numpy adds whole rows several times as fast as it reduces a short axis
        rows += whole[offset::factor]
    sums = rows[:, ::factor].copy()
    for offset in range(1, factor):
        sums += rows[:, offset::factor]
    return sums


def _level_of(hu: float, hu_range: tuple[float, float]) -> float:
    """Where in the scale of grey a value in HU lies: 0 black to 1 white."""
    return (hu - hu_range[0]) / (hu_range[1] - hu_range[0])


def _large_parts(mask: Mask) -> tuple[Mask, int]:
    """The parts of a mask that are no specks, and their number; the whole mask and 0 when all are specks."""
    labels, count = ndimage.label(mask, _FACING)
    if count <= 1:
        return mask, count
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = sizes >= max(LARGE_PART * int(sizes.sum()), 4)
    return (large.take(labels), int(large.sum())) if large.any() else (mask, 0)


def _enclosed(tissue: Mask) -> Int32[np.ndarray, "h w"]:
    """Number the regions that tissue encloses from 1; 0 elsewhere. The tissue reaches all edges of the mask."""
    labels, count = ndimage.label(~tissue, _BESIDE)
    inside = np.ones(count + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        inside[edge] = False
    inside[0] = False
    numbers = np.cumsum(inside, dtype=np.int32) * inside
    return numbers.astype(np.int32).take(labels)


@dataclass(frozen=True, eq=False)
class _Section:
    """The cross-section within a slice.

    Attributes:
        blocks: Grey values, whole numbers.
        scale: White among them.
        tissue: Its large parts.
        values: Grey values of the tissue.
        body: Tissue and the holes that it encloses.
        area: Of the body.
        top: First row of the body; `left`, `height` and `width` are the rest of its bounding box.
        holes: Within that box, numbers of the regions that tissue encloses; 0 elsewhere.
        mean: Mean of the tissue, 0 black to 1 white.
    """

    blocks: Blocks
    scale: int
    tissue: Mask
    values: Int64[np.ndarray, " n"]
    body: Mask
    area: int
    top: int
    left: int
    height: int
    width: int
    holes: Int32[np.ndarray, "r c"]
    mean: float

    @property
    def box(self) -> tuple[slice, slice]:
        """The body's bounding box."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def region(self, mask: Mask) -> Region:
        """What a mask of the bounding box, within the body, is like."""
        by_row, by_column = mask.sum(axis=1), mask.sum(axis=0)
        count = int(by_row.sum())
        row = int(np.arange(self.top, self.top + self.height) @ by_row) / count
        column = int(np.arange(self.left, self.left + self.width) @ by_column) / count
        grey = int(self.blocks[self.box][mask].sum(dtype=np.int64)) / count / self.scale
        return Region(
            share=round(count / self.area, 4),
            row=round((row + 0.5 - self.top) / self.height, 3),
            column=round((column + 0.5 - self.left) / self.width, 3),
            excess=round(grey - self.mean, 4),
        )


def _section(blocks: Blocks, tissue: Mask, scale: int) -> _Section:
    rows, columns = np.flatnonzero(tissue.any(axis=1)), np.flatnonzero(tissue.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    box = slice(top, top + height), slice(left, left + width)
    holes = _enclosed(tissue[box])
    body = tissue.copy()
    body[box] |= holes > 0
    values = blocks[tissue].astype(np.int64)
    return _Section(
        blocks, scale, tissue, values, body, int(np.count_nonzero(body)), top, left, height, width, holes,
        mean=int(values.sum()) / len(values) / scale,
    )  # fmt: skip


def _form(section: _Section, parts: int, *, pixel_mm: float) -> Form:
    height, width, area = section.height, section.width, section.area
    longer, shorter = _axes(section.body, area)
    known = pixel_mm > 0
    return Form(
        parts=parts,
        elongation=round((longer / shorter) ** 0.5, 3),
        roundness=round(area / (4 * np.pi * (longer * shorter) ** 0.5), 3),
        cut_sides=_cut_sides(section),
        width_mm=round(width * pixel_mm, 1) if known else None,
        height_mm=round(height * pixel_mm, 1) if known else None,
        area_mm2=round(area * pixel_mm**2, 1) if known else None,
    )


def _cut_sides(section: _Section) -> tuple[str, ...]:
    if min(section.height, section.width) < CUT_FROM:
        return ()
    box = section.body[section.box]
    sides = {"top": box[0], "bottom": box[-1], "left": box[:, 0], "right": box[:, -1]}
    return tuple(name for name, side in sides.items() if 2 * int(side.sum()) > len(side))


def _axes(body: Mask, area: int) -> tuple[float, float]:
    """Variance of a mask along its longer and its shorter axis, in pixels squared; a pixel has 1/12 both ways."""
    y, x = np.arange(body.shape[0], dtype=np.int64), np.arange(body.shape[1], dtype=np.int64)
    by_row, by_column = body.sum(axis=1), body.sum(axis=0)
    by_row_x = body.astype(np.float64) @ x.astype(np.float64)  # whole numbers far below 2^53: exact, and fast
    sum_y, sum_x = int(y @ by_row), int(x @ by_column)
    yy = (int(y * y @ by_row) * area - sum_y**2) / area**2 + 1 / 12
    xx = (int(x * x @ by_column) * area - sum_x**2) / area**2 + 1 / 12
    xy = (int(y @ by_row_x.astype(np.int64)) * area - sum_x * sum_y) / area**2
    half, root = (yy + xx) / 2, (((yy - xx) / 2) ** 2 + xy**2) ** 0.5
    return half + root, max(half - root, 1 / 12)


def _symmetry(section: _Section) -> float:
    """Best correlation with the mirror image about an axis within a twelfth of the image of the body's centre.

    Taken of coarser blocks, as sulci and vessels are no mirror images of each other where the whole is.
    """
    factor = max(1, min(section.body.shape) // SYMMETRY_EDGE)
    top = min(section.top, section.body.shape[0] - factor)
    rows = slice(top, max(section.top + section.height, top + factor))
    blocks = block_sums((section.blocks * section.body)[rows], factor)
    body = block_sums(section.body[rows], factor) > 0
    by_column = body.sum(axis=0)
    twice = round(2 * int(np.arange(len(by_column)) @ by_column) / max(1, int(by_column.sum())))
    reach = max(1, len(by_column) // 12)
    ours = blocks.astype(np.int64)
    total, squares, area = int(ours.sum()), int((ours * ours).sum()), int(by_column.sum())

    def mirrored(twice: int) -> float:
        """Correlation of the body with its mirror image, column j for column `twice` - j, wherever either lies."""
        first, last = max(0, twice - body.shape[1] + 1), min(body.shape[1], max(0, twice + 1))
        columns = slice(first, last)  # that meet another
        num = 2 * area - int((body[:, columns] & body[:, columns][:, ::-1]).sum())
        spread = num * squares - total**2
        products = num * int((ours[:, columns] * ours[:, columns][:, ::-1]).sum()) - total**2
        return round(products / spread, 3) if spread else 1.0

    return max(mirrored(twice + shift) for shift in range(-reach, reach + 1))


def _cavities(section: _Section) -> tuple[Region, ...]:
    if len(section.values) == section.area:
        return ()
    sizes = np.bincount(section.holes.ravel())
    sizes[0] = 0
    least = CAVITY * section.area
    largest = np.argsort(-sizes, kind="stable")[:3]
    return tuple(section.region(section.holes == number) for number in largest if sizes[number] >= least)


def _brightest(section: _Section) -> Region | None:
    """The one region of the brightest tissue; None when that lies in several places."""
    smooth = _smoothed(section.blocks)
    values = smooth[section.tissue]
    rank = min(len(values) - 1, len(values) * BRIGHT_PERCENT // 100)
    level = int(np.partition(values, rank)[rank])
    if level <= (section.mean + FLAT) * 9 * section.scale:  # a spot smaller than that in even tissue
        level = (level + int(values.max()) + 1) // 2
    box = section.box
    labels, count = ndimage.label(section.tissue[box] & (smooth[box] >= level), _FACING)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    total = int(sizes[1:].sum())
    sizes[0] = 0
    largest = int(sizes.argmax())
    return section.region(labels == largest) if sizes[largest] >= ONE_REGION * total else None


def _smoothed(blocks: Blocks) -> Blocks:
    """Sums over 3 x 3 blocks, beyond the edge 0."""
    rows = blocks.copy()
    rows[1:] += blocks[:-1]
    rows[:-1] += blocks[1:]
    sums = rows.copy()
    sums[:, 1:] += rows[:, :-1]
    sums[:, :-1] += rows[:, 1:]
    return sums


def _tissues(
    values: Int32[np.ndarray, " n"], scale: int, hu_range: tuple[float, float] | None
) -> dict[str, float] | None:
    """Share of each class of tissue that the window shows whole; None when the image is not in HU, or was masked."""
    if hu_range is None:
        return None
    counts = np.bincount(values, minlength=scale + 1)
    within = counts[1:scale]  # the window's ends hold whatever lies beyond
    if not within.any() or within.max() > MASKED * len(values):
        return None
    shares = {}
    for name, low, high in TISSUES_HU:
        first, last = (_level_of(edge, hu_range) * scale for edge in (low, high))
        # A class that is open to one side ends where the window does; its other end must lie well inside.
        if first >= scale or last <= 0 or (first < 0 and np.isfinite(low)) or (last > scale and np.isfinite(high)):
            continue
        begin, end = (math.ceil(min(max(edge, 0), len(counts))) for edge in (first, last))
        shares[name] = round(int(counts[begin:end].sum()) / len(values), 4)
    return shares
