"""Pictures from slices: label overlays, montages, enlargement, and the data URI that carries a picture in a page."""

import base64
import io
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

# Okabe and Ito's colours (Color Universal Design, 2008), told apart with every common colour vision deficiency.
# Row n is label n; row 0, the background, is never painted.
PALETTE: Final[Pixels] = np.array(
    [
        (0, 0, 0),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ],
    dtype=np.uint8,
)
PALETTE.setflags(write=False)


def overlay(
    image: Pixels,
    labels: Pixels,
    palette: Pixels = PALETTE,
    *,
    style: Literal["fill", "contour"] = "fill",
    alpha: float = 0.5,
) -> Pixels:
    """Paint labels over a slice.

    Args:
        image: Slice, [y, x].
        labels: Label of each pixel, 0 where nothing is painted, [y, x].
        palette: Colour of each label, [labels, 3].
        style: `fill` paints areas with `alpha`; `contour` paints only their outermost pixels, opaque.
        alpha: Share of the colour in a painted area, 0 to 1.

    Returns:
        RGB, [y, x, 3].

    Raises:
        ValueError: When the shapes differ or a label has no colour.
    """
    if image.ndim != 2 or image.shape != labels.shape:
        raise ValueError(f"image {image.shape} and labels {labels.shape} are not one [y, x]")
    if labels.size and labels.max() >= len(palette):
        raise ValueError(f"label {labels.max()} has no colour in a palette of {len(palette)}")
    painted, share = (labels > 0, alpha) if style == "fill" else (_edges(labels), 1.0)
    weight = (painted * share)[..., None]
    return np.rint(image[..., None] * (1 - weight) + palette[labels] * weight).astype(np.uint8)


def _edges(labels: Pixels) -> npt.NDArray[np.bool_]:
    """Mark the labelled pixels with a neighbour of another label above, below, left or right."""
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (labels > 0) & np.logical_or.reduce([labels != other for other in neighbours])


def montage(pictures: Sequence[Pixels], *, columns: int, gap: int = 2, background: int = 0) -> Pixels:
    """Lay pictures out in rows, each centred in a cell of the largest one's size.

    Args:
        pictures: Grey [y, x] or RGB [y, x, 3]; all grey gives a grey montage.
        columns: Cells in a row.
        gap: Pixels between cells.
        background: Grey value of gaps and margins.

    Returns:
        [y, x], or [y, x, 3] when any picture is RGB.

    Raises:
        ValueError: Without pictures or columns.
    """
    if not pictures or columns < 1:
        raise ValueError(f"cannot lay {len(pictures)} pictures out in {columns} columns")
    channels = 3 if any(picture.ndim == 3 for picture in pictures) else 1
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    sheet = np.full(shape, background, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top = index // columns * (height + gap) + (height - picture.shape[0]) // 2
        left = index % columns * (width + gap) + (width - picture.shape[1]) // 2
        cell = sheet[top : top + picture.shape[0], left : left + picture.shape[1]]
        cell[:] = picture.reshape(*picture.shape[:2], -1)
    return sheet[..., 0] if channels == 1 else sheet


def enlarge(picture: Pixels, factor: int, *, method: Literal["nearest", "bilinear"] = "nearest") -> Pixels:
    """Enlarge a small slice: `nearest` keeps its pixels visible and labels exact, `bilinear` smooths.

    Args:
        picture: [y, x] or [y, x, 3].
        factor: Whole number of times, at least 1.
        method: How new pixels get their value.

    Raises:
        ValueError: For a factor below 1.
    """
    if factor < 1:
        raise ValueError(f"cannot enlarge a picture {factor} times")
    if method == "nearest":
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = picture.shape[:2]
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def data_uri(picture: Pixels) -> str:
    """Return a picture, [y, x] or [y, x, 3], as PNG in a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
