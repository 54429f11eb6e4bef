"""A slice's facts measured in the plainest way: whole arrays, padded mirror images, one comparison a class.

The constants, and what the facts mean, are those of `m3di.captions.measure`, which is tested against this.
"""

from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from m3di.captions.measure import (
    BODY_HU,
    BRIGHT_PERCENT,
    CAVITY,
    CUT_FROM,
    EDGE,
    FLAT,
    LARGE_PART,
    MASKED,
    ONE_REGION,
    SYMMETRY_EDGE,
    TISSUE_LEVEL,
    TISSUES_HU,
)  # fmt: skip


def measured(image, plane, pixel_mm, hu_range):
    """The facts as `Measured.to_dict` gives them; `plane` is a number."""
    factor = max(1, min(image.shape) // EDGE)
    blocks = block_sums(image, factor)
    scale = 255 * factor**2
    level = TISSUE_LEVEL
    if hu_range is not None and hu_range[0] <= BODY_HU < hu_range[1]:
        level = level_of(BODY_HU, hu_range)
    tissue, parts = large_parts(blocks > level * scale)
    if not tissue.any():
        return {"fill": 0.0, "grey": 0.0, "contrast": 0.0, "form": None, "symmetry": None, "cavities": [],
                "brightest": None, "tissues": None}  # fmt: skip
    holes = enclosed(tissue)
    body = tissue | (holes > 0)
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    values = blocks[tissue].astype(np.int64)
    section = SimpleNamespace(
        blocks=blocks, scale=scale, tissue=tissue, holes=holes, body=body, area=int(body.sum()), top=int(rows[0]),
        left=int(columns[0]), height=int(rows[-1] - rows[0]) + 1, width=int(columns[-1] - columns[0]) + 1,
        mean=int(values.sum()) / int(tissue.sum()) / scale,
    )  # fmt: skip
    variance = float((values * values).sum()) / len(values) / scale**2 - section.mean**2
    return {
        "fill": round(section.area / tissue.size, 4),
        "grey": round(section.mean, 4),
        "contrast": round(max(variance, 0.0) ** 0.5, 4),
        "form": form(section, parts, pixel_mm * factor),
        "symmetry": None if plane == 2 else symmetry(section),
        "cavities": cavities(section),
        "brightest": brightest(section),
        "tissues": tissues(blocks[body], scale, hu_range),
    }


def block_sums(image, factor):
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: rows * factor, : columns * factor].astype(np.int32)
    return whole.reshape(rows, factor, columns, factor).sum(axis=(1, 3), dtype=np.int32)


def level_of(hu, hu_range):
    return (hu - hu_range[0]) / (hu_range[1] - hu_range[0])


def large_parts(mask):
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask, count
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = sizes >= max(LARGE_PART * int(sizes.sum()), 4)
    return (large[labels], int(large.sum())) if large.any() else (mask, 0)


def enclosed(tissue):
    labels, count = ndimage.label(~tissue, structure=np.ones((3, 3), bool))
    touching = {0, *labels[0], *labels[-1], *labels[:, 0], *labels[:, -1]}
    inside = [number for number in range(1, count + 1) if number not in touching]
    return sum(((labels == number) * rank for rank, number in enumerate(inside, start=1)), np.zeros_like(labels))


def region(section, mask):
    rows, columns = np.nonzero(mask)
    grey = int(section.blocks[mask].sum(dtype=np.int64)) / len(rows) / section.scale
    return {
        "share": round(len(rows) / section.area, 4),
        "row": round((int(rows.sum()) / len(rows) + 0.5 - section.top) / section.height, 3),
        "column": round((int(columns.sum()) / len(rows) + 0.5 - section.left) / section.width, 3),
        "excess": round(grey - section.mean, 4),
    }


def form(section, parts, pixel_mm):
    longer, shorter = axes(section.body, section.area)
    known = pixel_mm > 0
    return {
        "parts": parts,
        "elongation": round((longer / shorter) ** 0.5, 3),
        "roundness": round(section.area / (4 * np.pi * (longer * shorter) ** 0.5), 3),
        "cut_sides": cut_sides(section),
        "width_mm": round(section.width * pixel_mm, 1) if known else None,
        "height_mm": round(section.height * pixel_mm, 1) if known else None,
        "area_mm2": round(section.area * pixel_mm**2, 1) if known else None,
    }


def cut_sides(section):
    if min(section.height, section.width) < CUT_FROM:
        return []
    box = section.body[section.top : section.top + section.height, section.left : section.left + section.width]
    sides = {"top": box[0], "bottom": box[-1], "left": box[:, 0], "right": box[:, -1]}
    return [name for name, side in sides.items() if 2 * int(side.sum()) > len(side)]


def axes(body, area):
    y, x = (index.astype(np.int64) for index in np.nonzero(body))
    yy = (int((y * y).sum()) * area - int(y.sum()) ** 2) / area**2 + 1 / 12
    xx = (int((x * x).sum()) * area - int(x.sum()) ** 2) / area**2 + 1 / 12
    xy = (int((x * y).sum()) * area - int(x.sum()) * int(y.sum())) / area**2
    half, root = (yy + xx) / 2, (((yy - xx) / 2) ** 2 + xy**2) ** 0.5
    return half + root, max(half - root, 1 / 12)


def symmetry(section):
    factor = max(1, min(section.body.shape) // SYMMETRY_EDGE)
    top = min(section.top, section.body.shape[0] - factor)
    rows = slice(top, max(section.top + section.height, top + factor))
    blocks = block_sums((section.blocks * section.body)[rows], factor)
    body = block_sums(section.body[rows], factor) > 0
    by_column = body.sum(axis=0)
    twice = round(2 * int(np.arange(len(by_column)) @ by_column) / max(1, int(by_column.sum())))
    reach = max(1, len(by_column) // 12)
    return max(mirrored(blocks, body, twice + shift) for shift in range(-reach, reach + 1))


def mirrored(blocks, body, twice):
    width = body.shape[1]
    beyond = ((0, 0), (max(0, width - 1 - twice), max(0, twice - width + 1)))
    either = np.pad(body, beyond)
    either = either | either[:, ::-1]
    ours = np.pad(blocks, beyond).astype(np.int64)
    num, total = int(either.sum()), int(ours.sum())
    spread = num * int((ours * ours).sum()) - total**2
    products = num * int((ours * ours[:, ::-1]).sum()) - total**2
    return round(products / spread, 3) if spread else 1.0


def cavities(section):
    numbers = range(1, int(section.holes.max()) + 1)
    sizes = {number: int((section.holes == number).sum()) for number in numbers}
    largest = sorted(numbers, key=lambda number: -sizes[number])[:3]
    return [region(section, section.holes == n) for n in largest if sizes[n] >= CAVITY * section.area]


def brightest(section):
    padded = np.pad(section.blocks, 1)
    height, width = section.blocks.shape
    smooth = sum(padded[i : i + height, j : j + width] for i in range(3) for j in range(3))
    values = np.sort(smooth[section.tissue])
    level = int(values[min(len(values) - 1, len(values) * BRIGHT_PERCENT // 100)])
    if level <= (section.mean + FLAT) * 9 * section.scale:
        level = (level + int(values[-1]) + 1) // 2
    labels, count = ndimage.label(section.tissue & (smooth >= level))
    sizes = [int((labels == number).sum()) for number in range(1, count + 1)]
    largest = int(np.argmax(sizes))
    return region(section, labels == largest + 1) if sizes[largest] >= ONE_REGION * sum(sizes) else None


def tissues(values, scale, hu_range):
    if hu_range is None:
        return None
    within = values[(values > 0) & (values < scale)]
    if not len(within) or np.bincount(within).max() > MASKED * len(values):
        return None
    shares = {}
    for name, low, high in TISSUES_HU:
        first, last = (level_of(edge, hu_range) * scale for edge in (low, high))
        if first >= scale or last <= 0 or (first < 0 and np.isfinite(low)) or (last > scale and np.isfinite(high)):
            continue
        shares[name] = round(int(((values >= first) & (values < last)).sum()) / len(values), 4)
    return shares
