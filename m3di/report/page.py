"""What a page consists of: plain facts, checked where they are stated; how they look is the templates' business."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from m3di.report.chart import Chart, Charts
from m3di.report.numbers import Cell, format_column


@dataclass(frozen=True)
class Paragraph:
    """Running text; it is escaped, never markup."""

    template: ClassVar[str] = "paragraph.html"
    text: str


@dataclass(frozen=True)
class Notice:
    """What must not be overlooked.

    Attributes:
        title: What it is about, in a word or two.
        text: One or two sentences.
        tone: `sound`, or `doubt` where numbers may be too good or things are wrong.
    """

    template: ClassVar[str] = "notice.html"
    title: str
    text: str
    tone: Literal["sound", "doubt"] = "sound"


@dataclass(frozen=True)
class Link:
    """A way to a file beside the page.

    Attributes:
        text: What is to be found there.
        path: Relative to the page, with `/`.

    Raises:
        ValueError: For a path that is not relative: a page refers to nothing elsewhere.
    """

    text: str
    path: str

    def __post_init__(self) -> None:
        if not self.path or self.path.startswith("/"):
            raise ValueError(f"link {self.text!r} to {self.path!r} is not relative")

    @property
    def href(self) -> str:
        """The address; every letter that could make it anything but a path is encoded."""
        return quote(os.fsencode(self.path))


@dataclass(frozen=True)
class Links:
    """Ways to files beside the page."""

    template: ClassVar[str] = "links.html"
    items: Sequence[Link]


@dataclass(frozen=True)
class Facts:
    """A list of names with their values.

    Attributes:
        rows: Pairs of name and value; floats are shown with at most four significant digits.
    """

    template: ClassVar[str] = "facts.html"
    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Order:
    """The order that a table's rows come in.

    Attributes:
        column: Number of the column that they are ordered by.
        descending: Whether the largest comes first.
    """

    column: int
    descending: bool = False

    @property
    def aria(self) -> str:
        """The order as `aria-sort` has it."""
        return "descending" if self.descending else "ascending"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names the row.

    Attributes:
        columns: Heads, the first one over the rows' names.
        rows: As many cells each as there are columns; floats of a column are shown with equal decimals. Of a text
            with a second line the first one stands out.
        caption: What the table shows.
        order: How the rows are ordered; readers may then order them by any other column. None for a fixed order.

    Raises:
        ValueError: Without columns, or when a row has another number of cells.
    """

    template: ClassVar[str] = "table.html"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    order: Order | None = None

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
    def values(self) -> list[tuple[float | int | None, ...]]:
        """The numbers that rows are ordered by; None for text and for what is not known."""
        return [tuple(None if isinstance(c, str) or math.isnan(c) else c for c in row) for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers only and is set to the right."""
        return [bool(cells) and not any(isinstance(cell, str) for cell in cells) for cells in self._cells]

    @property
    def _cells(self) -> list[list[Cell]]:
        return [[row[index] for row in self.rows] for index in range(len(self.columns))]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: counts with their share of the row, which is shown as shade as well.

    Attributes:
        names: Of the classes.
        counts: By true class, then by predicted class.
        caption: What the table shows.

    Raises:
        ValueError: When it is not square.
    """

    template: ClassVar[str] = "matrix.html"
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    caption: str

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.counts), *map(len, self.counts)}
        if len(sizes) != 1:
            raise ValueError(f"matrix {self.caption!r} is not square: sides {sorted(sizes)}")

    @property
    def shares(self) -> list[list[float]]:
        """Counts as shares of their row; 0 in an empty one."""
        return [[count / max(sum(row), 1) for count in row] for row in self.counts]


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
class Legend:
    """What the colours of the pictures after it stand for."""

    template: ClassVar[str] = "legend.html"
    key: Sequence[ColourKey]


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side.

    Attributes:
        items: At least one picture.
        columns: Pictures in a row on a wide screen.
        key: What the colours stand for.
        title: Heading over them; empty for none.

    Raises:
        ValueError: Without pictures or columns.
    """

    template: ClassVar[str] = "pictures.html"
    items: Sequence[Picture]
    columns: int
    key: Sequence[ColourKey] = ()
    title: str = ""

    def __post_init__(self) -> None:
        if not self.items or self.columns < 1:
            raise ValueError(f"{len(self.items)} pictures cannot be shown in {self.columns} columns")


@dataclass(frozen=True)
class Commands:
    """Lines as typed into a shell."""

    template: ClassVar[str] = "commands.html"
    lines: Sequence[str]


Block = Paragraph | Notice | Links | Facts | Table | Matrix | Legend | Pictures | Chart | Charts | Commands


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

    @property
    def is_sortable(self) -> bool:
        """Whether some table can be ordered by its readers, which takes a script."""
        blocks = [block for section in self.sections for block in section.blocks]
        return any(isinstance(block, Table) and block.order is not None for block in blocks)
