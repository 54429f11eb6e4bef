"""Captions from a table: of slices, of planes, or one text a volume, such as a radiology report.

The row of a slice wins over that of its plane, and that over the one of its volume. A text that speaks for many
slices follows the slice's own plane and place, as the describer says them: so slices stay apart, and what is cut off
when a teacher reads but the beginning is the end of the report. A slice without a row gets the describer's text.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from m3di.captions.captioner import DESCRIBED, TABLE, ShownVolume, Written, opening_of
from m3di.captions.describe import Describer
from m3di.captions.identifiers import suspected_kinds
from m3di.captions.tables.rows import BadRow, Row, read_rows
from m3di.events import Check, Report
from stores.errors import RefusedError, ResourceError
from stores.geometry import PLANES
from stores.recipe import digest_of
from stores.records import VolumeRecord

VERSION: Final = 1  # raise whenever the same rows would give other captions
MAX_NAMED: Final = 20  # lines that are named one by one; of the others, the number is given

_ANY: Final = -1  # a plane or slice that a row leaves open
_SCHEMA: Final = (
    "CREATE TABLE texts (volume TEXT, plane INT, slice INT, line INT, text TEXT, PRIMARY KEY (volume, plane, slice))"
    " WITHOUT ROWID"
)


@dataclass
class Lines:
    """Lines of a file of which there is something to say: the first ones, and how many there are."""

    first: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0

    def add(self, line: int, what: str) -> None:
        """Take note of a line."""
        self.count += 1
        if len(self.first) < MAX_NAMED:
            self.first.append((line, what))

    def __str__(self) -> str:
        named = "; ".join(f"line {line} {what}" for line, what in self.first)
        more = self.count - len(self.first)
        return f"{named}; and {more} more" if more else named


@dataclass(frozen=True)
class Coverage:
    """What of a store a table speaks of.

    Attributes:
        rows: Rows of the table.
        volumes: Volumes that the table names.
        unknown: Those of them that the store does not have: the number, and the first ones with their likely names.
        uncovered: Volumes of the store of which some slice has no row.
        slices: Per plane, slices of the store, and how many of them have a text from the table.
        bad: Rows whose slice the store does not have.
    """

    rows: int
    volumes: int
    unknown: tuple[int, tuple[str, ...]]
    uncovered: tuple[str, ...]
    slices: tuple[tuple[int, int], ...]
    bad: Lines

    @property
    def complete(self) -> bool:
        """Whether every slice of the store has a text from the table."""
        return all(covered == total for total, covered in self.slices)


class TableTexts:
    """The texts of a table, checked and ready to be asked for by volume; kept on disk where they are many.

    Args:
        path: The table.

    Attributes:
        rows: How many there are.
        sanitised: Lines from whose text something was taken out.
        identifiers: Lines whose text may hold an identifier, with the kinds suspected.

    Raises:
        RefusedError: E_CAPTION, naming the bad rows by line; see also `read_rows`.
        ResourceError: E_DISK, when there is no room for them.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self.sanitised, self.identifiers = Lines(), Lines()
        self._path = path
        # A private database in a temporary file that SQLite opens only when its memory is full.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            self._database.execute(_SCHEMA)
            self._read()
        except sqlite3.OperationalError as error:
            hint = "make room in the temporary folder (TMPDIR)"
            raise ResourceError("E_DISK", f"cannot keep the texts of {path.name}: {error}", hint=hint) from error

    def of(self, volume: str) -> dict[tuple[int | None, int | None], str]:
        """The texts of a volume by plane and slice, None where a row leaves them open."""
        found = self._database.execute(
            "SELECT plane, slice, text FROM texts WHERE volume = ? ORDER BY plane, slice", (volume,)
        )
        return {(_opened(plane), _opened(index)): text for plane, index, text in found}

    def places(self) -> Iterator[tuple[str, int | None, int | None, int]]:
        """(volume, plane, slice, line) of all rows, by volume."""
        rows = self._database.execute("SELECT volume, plane, slice, line FROM texts ORDER BY volume, plane, slice")
        for volume, plane, index, line in rows:
            yield volume, _opened(plane), _opened(index), line

    def volumes(self) -> Iterator[str]:
        """Ids of the volumes that the table names, sorted."""
        for (volume,) in self._database.execute("SELECT DISTINCT volume FROM texts ORDER BY volume"):
            yield volume

    def refuse(self, bad: Lines) -> None:
        """Refuse the table for some of its rows, if there are any."""
        if bad.count:
            hint = "correct these lines; nothing was written"
            raise RefusedError("E_CAPTION", f"{self._path.name}: {bad}", hint=hint)

    def _read(self) -> None:
        bad = Lines()
        self._database.execute("BEGIN")
        for row in read_rows(self._path):
            self.rows += 1
            if isinstance(row, BadRow):
                bad.add(row.line, row.why)
            elif first := self._keep(row):
                bad.add(row.line, f"has the volume, plane and slice of line {first}")
            else:
                self._look_at(row)
        self._database.execute("COMMIT")
        if not self.rows:
            raise RefusedError("E_CAPTION", f"{self._path.name} has no rows", hint="write one row a text")
        self.refuse(bad)

    def _keep(self, row: Row) -> int:
        """Keep a row; returns the line of the one that is there already, 0 if there is none."""
        key = (row.volume, _closed(row.plane), _closed(row.slice))
        cursor = self._database.execute(
            "INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?)", (*key, row.line, row.text)
        )
        if cursor.rowcount:
            return 0
        where = "SELECT line FROM texts WHERE volume = ? AND plane = ? AND slice = ?"
        return int(self._database.execute(where, key).fetchone()[0])

    def _look_at(self, row: Row) -> None:
        if row.sanitised:
            self.sanitised.add(row.line, "had invisible or control characters")
        if kinds := suspected_kinds(row.text):
            self.identifiers.add(row.line, f"may hold an identifier: {', '.join(kinds)}")


class TableCaptioner:
    """The captioner that looks texts up in a table. The table is read once, when the first text is needed.

    Args:
        path: The table.
        records: Gives the volumes of the store, when the first volume is captioned.
        describer: Says where slices are, and describes those without a text.
        complete: Refuse a table that leaves some slice of the store without a text.

    Raises:
        RefusedError: From any method but `name` and `fingerprint`, E_CAPTION: see `TableTexts`, and for a table that
            does not fit the store, before the first volume is captioned.
    """

    def __init__(
        self,
        path: Path,
        records: Callable[[], Sequence[VolumeRecord]],
        *,
        describer: Describer,
        complete: bool = False,
    ) -> None:
        self._path = path
        self._records = records
        self._describer = describer
        self._complete = complete

    @property
    def name(self) -> str:
        """As in `--captioner`."""
        return "table"

    @property
    def fingerprint(self) -> str:
        """Hex digest of how rows become captions; the rows themselves count by volume, in `of_volume`."""
        return digest_of({"captioner": "table", "version": VERSION, "describer": self._describer.fingerprint})

    @cached_property
    def texts(self) -> TableTexts:
        """The table."""
        return TableTexts(self._path)

    @cached_property
    def coverage(self) -> Coverage:
        """What of the store the table speaks of; refused when it does not fit."""
        found = _coverage(self.texts, self._records())
        self.texts.refuse(found.bad)
        if found.unknown[0] == found.volumes:
            message = f"{self._path.name} names no volume of the store: {', '.join(found.unknown[1])}"
            raise RefusedError("E_CAPTION", message, hint="`m3di info --json` lists the store's volumes")
        if self._complete and not found.complete:
            message = f"{self._path.name} leaves slices without text in {len(found.uncovered)} volumes"
            hint = "add rows, or let the describer fill in: --set captions.complete=false"
            raise RefusedError("E_CAPTION", f"{message}, the first {found.uncovered[0]}", hint=hint)
        return found

    def begin(self, records: Sequence[VolumeRecord], *, report: Report, check: Check) -> None:
        """Refuse a table that does not fit, before a volume is captioned, and warn of its lines.

        Args:
            records: The volumes to caption; when there is none, nothing is new, and nobody is warned again.
            report: Receives the warnings.
            check: Not needed: looking a text up takes no time.
        """
        assert self.coverage is not None
        if records:
            self.warn(report)

    def summary(self) -> dict[str, Any]:
        """What the table gave, JSON-ready."""
        total, covered = (sum(counts) for counts in zip(*self.coverage.slices, strict=True))
        return {"rows": self.coverage.rows, "from_table": covered, "described": total - covered}

    def warn(self, report: Report) -> None:
        """Warn of lines with hidden characters or suspected identifiers, and of volumes that the store lacks."""
        for code, lines in (("W_TEXT_SANITIZED", self.texts.sanitised), ("W_PHI", self.texts.identifiers)):
            for line, what in lines.first:
                report("warning", code=code, line=line, message=what)
            if lines.count > len(lines.first):
                report("warning", code=code, message=f"and {lines.count - len(lines.first)} more lines")
        count, named = self.coverage.unknown
        if count:
            report("note", message=f"{count} volumes of the table are not in the store: {', '.join(named)}")

    def of_volume(self, volume: str) -> str:
        """Digest of the volume's rows; empty when it has none."""
        rows = self.texts.of(volume)
        return digest_of([[*place, text] for place, text in rows.items()]) if rows else ""

    def caption(self, shown: ShownVolume) -> Written:
        """Look up one text a slice."""
        assert self.coverage is not None  # refused here, when nobody has called `begin`
        rows = self.texts.of(shown.volume)
        described = self._describer.caption(shown)
        found = [
            [_text(rows, plane, index, said) for index, said in zip(seen.slices, described.texts[plane], strict=True)]
            for plane, seen in enumerate(shown.planes)
        ]
        axial, coronal, sagittal = (tuple(text for text, _ in plane) for plane in found)
        letters = ["".join(source for _, source in plane) for plane in found]
        return Written((axial, coronal, sagittal), (letters[0], letters[1], letters[2]), described.facts)


def _text(rows: dict[tuple[int | None, int | None], str], plane: int, index: int, described: str) -> tuple[str, str]:
    """The text of a slice and where it is from."""
    if own := rows.get((plane, index)):
        return own, TABLE
    if shared := rows.get((plane, None), rows.get((None, None))):
        return f"{opening_of(described)} {shared}", TABLE
    return described, DESCRIBED


def _coverage(texts: TableTexts, records: Sequence[VolumeRecord]) -> Coverage:
    valid = {record.volume: [record.valid_slices(plane) for plane in range(len(PLANES))] for record in records}
    bad = Lines()
    own: dict[str, list[list[int]]] = {}
    shared: dict[str, set[int]] = {}
    for volume, plane, index, line in texts.places():
        if volume not in valid:
            continue
        if plane is None:
            shared.setdefault(volume, set()).update(range(len(PLANES)))
        elif index is None:
            shared.setdefault(volume, set()).add(plane)
        elif index in valid[volume][plane]:
            own.setdefault(volume, [[] for _ in PLANES])[plane].append(index)
        else:
            bad.add(line, _no_slice(volume, plane, index, valid[volume][plane]))
    total, covered = Counter[int](), Counter[int]()
    uncovered = []
    for volume, planes in valid.items():
        reached = [
            len(planes[plane]) if plane in shared.get(volume, ()) else len(own.get(volume, [[]] * 3)[plane])
            for plane in range(len(PLANES))
        ]
        total.update({plane: len(planes[plane]) for plane in range(len(PLANES))})
        covered.update(dict(enumerate(reached)))
        if sum(reached) < sum(map(len, planes)):
            uncovered.append(volume)
    named = list(texts.volumes())
    return Coverage(
        rows=texts.rows,
        volumes=len(named),
        unknown=_unknown(named, list(valid)),
        uncovered=tuple(uncovered),
        slices=tuple((total[plane], covered[plane]) for plane in range(len(PLANES))),
        bad=bad,
    )


def _unknown(named: Sequence[str], known: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """How many volumes the store does not have, and the first three with their likely names."""
    strange = sorted(set(named) - set(known))
    shown = []
    for volume in strange[:3]:
        near = get_close_matches(volume, known[:10_000], n=1)
        shown.append(f"{volume!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return len(strange), tuple(shown)


def _no_slice(volume: str, plane: int, index: int, valid: np.ndarray) -> str:
    near = f"; the nearest is {valid[np.abs(valid - index).argmin()]}" if len(valid) else ""
    return f"has {PLANES[plane]} slice {index} of {volume}, which has no row{near}"


def _opened(number: int) -> int | None:
    return None if number == _ANY else number


def _closed(number: int | None) -> int:
    return _ANY if number is None else number
