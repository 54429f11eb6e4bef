"""A picture of a prediction: three planes through the thick of it, each with the outlines of the structures."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from m3di.report.pictures import PALETTE, montage, overlay
from m3di.volumes.preprocess import window_of
from m3di.volumes.readers import Volume
from stores.geometry import NORMAL_AXIS, CubeChain
from stores.recipe import Recipe

Pixels = npt.NDArray[np.uint8]

SIDE: Final = 320  # pixels of the longest side of a plane
LINE: Final = 16  # pixels of a line of the legend
MAX_NAME: Final = 40  # letters of a name
MAX_NAMES: Final = 24


def draw_overview(
    volume: Volume, mask: npt.NDArray[np.uint8], names: Mapping[int, str], recipe: Recipe, *, title: str
) -> Pixels:
    """Axial, coronal and sagittal plane where the mask is largest, or the middle without a mask.

    Planes are as radiologists look at them: the patient's right is left, anterior or superior is above.

    Args:
        volume: The scan.
        mask: Along the scan's own axes.
        names: Structure name by label value, background left out.
        recipe: Its intensity window is shown.
        title: First line of the legend.

    Returns:
        RGB, [y, x, 3].
    """
    chain, window = CubeChain(volume.geometry, 1), window_of(volume, recipe)
    data, labels = chain.to_canonical(volume.data), chain.to_canonical(mask)
    numbers = {value: number for number, value in enumerate(names, start=1)}
    planes = []
    for axis in NORMAL_AXIS:
        sums = np.count_nonzero(labels, axis=tuple(other for other in range(3) if other != axis))
        index = int(sums.argmax()) if sums.any() else len(sums) // 2
        grey = np.rint(255 * window.apply(np.take(data, index, axis))).astype(np.uint8)
        step_mm = [spacing for other, spacing in enumerate(chain.canonical_spacing_mm) if other != axis]
        planes.append(draw_plane(grey, np.take(labels, index, axis), step_mm, numbers))
    sheet = montage(planes, columns=3, gap=4)
    present = {names[value] for value in numbers if (labels == value).any()}
    return np.concatenate([sheet, _legend(list(names.values()), present, title, sheet.shape[1])])


def draw_plane(
    grey: Pixels, labels: Pixels, step_mm: Sequence[float], numbers: Mapping[int, int],
    *, style: Literal["fill", "contour"] = "contour",
) -> Pixels:  # fmt: skip
    """One plane, upright, in square pixels, with its structures.

    Args:
        grey: [first, second] along right or anterior, and anterior or superior.
        labels: Of the same shape.
        step_mm: Distance between voxel centres along both.
        numbers: Number of each label value, from 1, which says its colour; others are not drawn.
        style: As for `m3di.report.overlay`.

    Returns:
        RGB, [y, x, 3], the longer side `SIDE` pixels.
    """
    size_mm = [count * step for count, step in zip(grey.shape, step_mm, strict=True)]
    scale = SIDE / max(size_mm)
    width, height = (max(1, round(side * scale)) for side in size_mm)
    picture = np.asarray(_upright(grey).resize((width, height), Image.Resampling.BILINEAR))
    numbered = np.zeros(labels.shape, np.uint8)
    for value, number in numbers.items():
        numbered[labels == value] = 1 + (number - 1) % (len(PALETTE) - 1)
    outlined = np.asarray(_upright(numbered).resize((width, height), Image.Resampling.NEAREST))
    return overlay(picture, outlined, style=style)


def _upright(plane: Pixels) -> Image.Image:
    """A plane [first, second] along right or anterior, and anterior or superior, as a picture [y, x]."""
    return Image.fromarray(np.ascontiguousarray(plane.T[::-1, ::-1]))


def _legend(names: list[str], present: set[str], title: str, width: int) -> Pixels:
    shown = names[:MAX_NAMES]
    image = Image.new("RGB", (width, LINE * (1 + len(shown)) + 8))
    draw: Any = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    draw.text((4, 2), _plain(title), fill="white", font=font)
    for number, name in enumerate(shown):
        top = LINE * (number + 1) + 2
        colour = tuple(int(part) for part in PALETTE[1 + number % (len(PALETTE) - 1)])
        draw.rectangle((4, top + 3, 14, top + 11), fill=colour)
        draw.text((20, top), _plain(name) + ("" if name in present else " (not found)"), fill="white", font=font)
    return np.asarray(image)


def _plain(text: str) -> str:
    """One short line that the font can show."""
    line = "".join(letter if letter.isprintable() else "?" for letter in text)
    return line if len(line) <= MAX_NAME else f"{line[: MAX_NAME - 3]}..."
