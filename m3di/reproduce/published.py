"""The paper's own numbers (section 3, tables 1 to 3), as it prints them: percent."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Line:
    """A line of a published table.

    Attributes:
        method: As the paper calls it.
        pretrained: Whether it is the line below, `+ Med3DInsight`.
        values: By dataset, in the order of the table's columns.
    """

    method: str
    pretrained: bool
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        columns: Headings by dataset.
        lines: From top to bottom.
    """

    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[Line, ...]

    def value(self, method: str, dataset: str, column: str, *, pretrained: bool) -> float | None:
        """A number of the table; None when it has none of that kind."""
        for line in self.lines:
            if (line.method, line.pretrained) == (method, pretrained) and column in self.columns.get(dataset, ()):
                return line.values[dataset][self.columns[dataset].index(column)]
        return None


def published_table(name: str) -> Published | None:
    """A table of the paper by the name of its programme's table; None when the paper has no such numbers."""
    found = _all().get(name)
    if found is None:
        return None
    columns = {dataset: tuple(headings) for dataset, headings in found["columns"].items()}
    lines = tuple(
        Line(row["method"], row.get("pretrained", False), {one: tuple(row[one]) for one in columns})
        for row in found["rows"]
    )
    return Published(columns, lines)


@cache
def _all() -> dict[str, Any]:
    return tomllib.loads((resources.files("m3di.reproduce") / "published.toml").read_text())
