"""What a page consists of: plain facts, checked where they are stated; how they look is the templates' business."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m3di.report.chart import Chart
from m3di.report.numbers import Cell, format_column


@dataclass(frozen=True)
class Paragraph:
    """Running text; it is escaped, never markup."""

    template: ClassVar[str] = "paragraph.html"
    text: str


@dataclass(frozen=True)
class Facts:
    """A list of names with their values.

    Attributes:
        rows: Pairs of name and value; floats are shown with at most four significant digits.
    """

    template: ClassVar[str] = "facts.html"
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names the row.

    Attributes:
        columns: Heads, the first one over the rows' names.
        rows: As many cells each as there are columns; floats of a column are shown with equal decimals.
        caption: What the table shows.

    Raises:
        ValueError: Without columns, or when a row has another number of cells.
    """

    template: ClassVar[str] = "table.html"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"table {self.caption!r} has no columns")
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of table {self.caption!r} has {len(row)} cells for {len(self.columns)} columns"
                )

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """The rows as they are shown."""
        return list(zip(*map(format_column, self._cells), strict=True))

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers only and is set to the right."""
        return [bool(cells) and not any(isinstance(cell, str) for cell in cells) for cells in self._cells]

    @property
    def _cells(self) -> list[list[Cell]]:
        return [[row[index] for row in self.rows] for index in range(len(self.columns))]


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture.

    Attributes:
        pixels: uint8 [y, x] grey or [y, x, 3] RGB.
        caption: Shown below it.
        alt: Said in its place to who cannot see it.

    Raises:
        ValueError: For an array of another shape, an empty one, or without an alternative text.
    """

    pixels: npt.NDArray[np.uint8]
    caption: str
    alt: str

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.size == 0 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
            raise ValueError(f"picture {self.caption!r} has shape {shape}, not [y, x] or [y, x, 3]")
        if not self.alt.strip():
            raise ValueError(f"picture {self.caption!r} has no alternative text")


@dataclass(frozen=True)
class ColourKey:
    """What a colour of a picture stands for.

    Attributes:
        name: The thing.
        colour: Red, green, blue, 0 to 255; one row of a palette.
    """

    name: str
    colour: Sequence[int] | npt.NDArray[np.uint8]

    @property
    def hex(self) -> str:
        """The colour as `#rrggbb`."""
        red, green, blue = (int(value) for value in self.colour)
        return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side.

    Attributes:
        items: At least one picture.
        columns: Pictures in a row on a wide screen.
        key: What the colours stand for.

    Raises:
        ValueError: Without pictures or columns.
    """

    template: ClassVar[str] = "pictures.html"
    items: Sequence[Picture]
    columns: int
    key: Sequence[ColourKey] = ()

    def __post_init__(self) -> None:
        if not self.items or self.columns < 1:
            raise ValueError(f"{len(self.items)} pictures cannot be shown in {self.columns} columns")


@dataclass(frozen=True)
class Commands:
    """Lines as typed into a shell."""

    template: ClassVar[str] = "commands.html"
    lines: Sequence[str]


Block = Paragraph | Facts | Table | Pictures | Chart | Commands


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: Heading, and the window's title.
        lead: One or two sentences: what was done and what came out.
        sections: In reading order.
    """

    title: str
    lead: str
    sections: Sequence[Section]
