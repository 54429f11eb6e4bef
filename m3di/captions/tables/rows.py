"""Files of captions - CSV, TSV, JSONL, Parquet - read and written row by row, whatever their size.

Columns `volume` and `text`, and if it is not for the whole volume `plane` (axial, coronal, sagittal, or 0 to 2) and
`slice` (position in the cube). Others are left alone. A row that cannot be used is a `BadRow` with its line.
"""

import csv
import importlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from m3di.captions.text import sanitise
from stores.errors import RefusedError
from stores.geometry import PLANES

COLUMNS: Final = ("volume", "plane", "slice", "text")
REQUIRED: Final = ("volume", "text")
ENDINGS: Final = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_TEXT: Final = 20_000  # characters: a long report has some 5000, and no teacher reads more than 2000
MAX_LINE: Final = 1 << 20
MAX_NAME: Final = 255

_ESCAPED_BYTES: Final = range(0xDC80, 0xDD00)  # what `surrogateescape` makes of bytes that are not UTF-8
_NOT_UTF8: Final = "is not UTF-8"


@dataclass(frozen=True)
class Row:
    """A caption of a table.

    Attributes:
        line: Line in the file where it begins; in Parquet, number of the row.
        volume: Id.
        plane: Index into `stores.geometry.PLANES`; None for all planes.
        slice: Position in the cube; None for all slices.
        text: Sanitised, not empty.
        sanitised: Whether anything but blanks was taken out of the text.
    """

    line: int
    volume: str
    plane: int | None
    slice: int | None
    text: str
    sanitised: bool = False


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    why: str


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """Read a table of captions; the ending says which kind it is.

    Raises:
        RefusedError: E_MISSING, when there is no such file; E_CAPTION, when it is none of the kinds, or a column is
            missing; E_CONFIG, when it is Parquet and pyarrow is not installed.
    """
    require_ending(path)
    if not path.is_file():
        raise RefusedError("E_MISSING", f"{path} is not a file", hint="check the path of the table of captions")
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() == ".jsonl":
            yield from _json_rows(file)
        else:
            yield from _separated_rows(file, path)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, kind: str) -> None:
    """Write rows with the keys volume, plane, slice, text and source; JSONL also keeps `facts` where they are.

    Args:
        path: The file.
        rows: Read once, one at a time.
        kind: One of `ENDINGS`.

    Raises:
        RefusedError: E_CONFIG, for Parquet without pyarrow.
    """
    if kind == ".parquet":
        _write_parquet(path, rows)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == ".jsonl":
            file.writelines(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
            return
        names = (*COLUMNS, "source")
        delimiter = "\t" if kind == ".tsv" else ","
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(names)
        writer.writerows([row[name] for name in names] for row in rows)


def require_ending(path: Path) -> str:
    """The kind of table that a path's ending names.

    Raises:
        RefusedError: E_CAPTION, when it names none.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise RefusedError(
            "E_CAPTION", f"{path.name} does not end in {', '.join(ENDINGS)}", hint="name the table after its kind"
        )
    return ending


def _separated_rows(file: TextIO, path: Path) -> Iterator[Row | BadRow]:
    """Rows of CSV or TSV; a text in quotes may go over several lines."""
    first = file.readline(MAX_LINE)
    file.seek(0)
    marks = [mark for mark in ("\t", ";") if mark in first and "," not in first]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else next(iter(marks), ",")
    reader = csv.reader(_lines(file), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            where = f"cannot be divided into fields ({error}): is a quote not closed? The rest was not read"
            yield BadRow(line, where)
            return
        if cells is None:
            break
        if names is None:
            names = _header(cells, path)
        elif cells:
            yield _separated_row(line, names, cells)
        line = reader.line_num + 1
    if names is None:
        raise RefusedError("E_CAPTION", f"{path.name} is empty", hint=_COLUMNS_HINT)


def _separated_row(line: int, names: list[str], cells: list[str]) -> Row | BadRow:
    if any(ord(char) in _ESCAPED_BYTES for cell in cells if not cell.isascii() for char in cell):
        return BadRow(line, _NOT_UTF8)
    if len(cells) != len(names):
        return BadRow(line, f"has {len(cells)} fields, the header {len(names)}")
    return _row(line, dict(zip(names, cells, strict=True)))


def _header(cells: list[str], path: Path) -> list[str]:
    if any(ord(char) in _ESCAPED_BYTES for cell in cells for char in cell):
        raise RefusedError("E_CAPTION", f"{path.name} line 1 {_NOT_UTF8}", hint="save the table as UTF-8")
    names = [cell.strip().lower() for cell in cells]
    _require_columns(names, path)
    return names


def _json_rows(file: TextIO) -> Iterator[Row | BadRow]:
    """Rows of JSON Lines: one object a line."""
    for line, text in enumerate(_lines(file), start=1):
        if not text.isascii() and any(ord(char) in _ESCAPED_BYTES for char in text):
            yield BadRow(line, _NOT_UTF8)
        elif len(text) >= MAX_LINE:
            yield BadRow(line, f"has {MAX_LINE} characters or more; the rest was not read")
            return
        elif text.strip():
            yield _json_row(line, text)


def _json_row(line: int, text: str) -> Row | BadRow:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(line, f"is not JSON: {error}")
    if not isinstance(fields, dict):
        return BadRow(line, "is not a JSON object")
    missing = [name for name in REQUIRED if name not in fields]
    if missing:
        found = ", ".join(list(fields)[:8]) or "nothing"
        return BadRow(line, f"has no {' and no '.join(missing)}, but {found}")
    return _row(line, fields)


def _parquet_rows(path: Path) -> Iterator[Row | BadRow]:
    parquet = _import_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            names = {name.strip().lower(): name for name in file.schema_arrow.names}
            _require_columns(list(names), path)
            wanted = {name: names[name] for name in COLUMNS if name in names}
            number = 0
            for batch in file.iter_batches(batch_size=4096, columns=list(wanted.values())):
                for fields in batch.to_pylist():
                    number += 1
                    yield _row(number, {name: fields[given] for name, given in wanted.items()})
    except (ValueError, OSError) as error:  # pyarrow's own errors are among them
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise RefusedError(
            "E_CAPTION", f"{path.name} is not readable as Parquet: {why}", hint="write it again"
        ) from error


def _write_parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    parquet, arrow = _import_parquet(), importlib.import_module("pyarrow")
    text = arrow.string()
    types = {"volume": text, "plane": text, "slice": arrow.int32(), "text": text, "source": text}
    schema = arrow.schema(list(types.items()))
    with parquet.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append({name: row[name] for name in types})
            if len(batch) == 65536:
                writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
                batch.clear()
        writer.write_table(arrow.Table.from_pylist(batch, schema=schema))


def _import_parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        hint = 'pip install "m3di[parquet]", or use CSV or JSONL'
        raise RefusedError("E_CONFIG", "Parquet needs pyarrow, which is not installed", hint=hint) from error


_COLUMNS_HINT: Final = "name the columns volume, text and, for single slices, plane and slice"


def _require_columns(names: list[str], path: Path) -> None:
    missing = [name for name in REQUIRED if name not in names]
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if missing:
        found = ", ".join(name[:40] for name in names[:12]) or "none"
        message = f"{path.name} has no column {' and no column '.join(missing)}; its columns are {found}"
        raise RefusedError("E_CAPTION", message, hint=_COLUMNS_HINT)
    if twice:
        raise RefusedError("E_CAPTION", f"{path.name} has the column {twice[0]} twice", hint="remove one of the two")


def _lines(file: TextIO) -> Iterator[str]:
    """Lines as they are in the file, cut at `MAX_LINE` so that a file without line ends does not fill the memory."""
    while line := file.readline(MAX_LINE):
        yield line


def _row(line: int, fields: Mapping[str, Any]) -> Row | BadRow:
    """Check the cells of a row."""
    volume, text = fields["volume"], fields["text"]
    if isinstance(volume, int) and not isinstance(volume, bool):
        volume = str(volume)
    if not isinstance(volume, str) or not volume.strip():
        return BadRow(line, "names no volume")
    volume = volume.strip()
    if len(volume) > MAX_NAME or not volume.isprintable():
        return BadRow(line, "names a volume by what cannot be an id")
    plane, index = _plane(fields.get("plane")), _whole(fields.get("slice"))
    if plane == _BAD:
        return BadRow(line, f"has plane {str(fields['plane'])[:40]!r}, which is none of {', '.join(PLANES)}, 0, 1, 2")
    if index == _BAD:
        return BadRow(line, f"has slice {str(fields['slice'])[:40]!r}, which is no position in a cube")
    if index is not None and plane is None:
        return BadRow(line, f"has slice {index} but no plane")
    return _with_text(line, volume, (plane, index), text)


def _with_text(line: int, volume: str, place: tuple[int | None, int | None], text: object) -> Row | BadRow:
    if not isinstance(text, str):
        return BadRow(line, "has no text")
    if len(text) > MAX_TEXT:
        return BadRow(line, f"has a text of {len(text)} characters, over {MAX_TEXT}")
    clean, changed = sanitise(text)
    if not clean:
        return BadRow(line, "has an empty text")
    return Row(line, volume, *place, clean, changed)


_BAD: Final = -1


def _plane(value: object) -> int | None:
    if isinstance(value, str) and value.strip().lower() in PLANES:
        return PLANES.index(value.strip().lower())
    number = _whole(value)
    return number if number is None or number in range(len(PLANES)) else _BAD


def _whole(value: object) -> int | None:
    """A number of 0 or more, None for an empty cell, `_BAD` for anything else; tables write 12 as 12.0 too."""
    empty = isinstance(value, str) and not value.strip()
    if value is None or empty or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return _BAD
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _BAD
    return int(number) if 0 <= number < 1 << 16 and number.is_integer() else _BAD
