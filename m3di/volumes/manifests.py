"""Files that users write about their data - JSON, CSV, TSV - read within limits and checked before use."""

import csv
import io
import json
import math
import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Final

from stores.errors import RefusedError

MAX_BYTES: Final = 1 << 24
MAX_DEPTH: Final = 32
MAX_ROWS: Final = 1_000_000
MAX_NAME: Final = 255  # bytes of a file's name
MAX_PATH: Final = 1024  # bytes of a path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object: no key twice, neither too large nor too deep, no NaN.

    Raises:
        RefusedError: E_MISSING or E_MANIFEST.
    """
    text = _read_text(path)
    if _depth(text) > MAX_DEPTH:
        raise RefusedError("E_MANIFEST", f"{path.name} is nested over {MAX_DEPTH} deep", hint="correct the file")
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _unique_keys(pairs, path),
            parse_constant=_finite,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            "E_MANIFEST", f"{path.name} is not valid JSON: {error}", hint="correct the file"
        ) from error
    if not isinstance(value, dict):
        raise RefusedError("E_MANIFEST", f"{path.name} does not hold a JSON object", hint="correct the file")
    return value


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a table with a header line: tabs in .tsv, commas (or the one of `;` and tab that is there) in .csv.

    Raises:
        RefusedError: E_MISSING or E_MANIFEST.
    """
    text = _read_text(path)
    if "\0" in text:
        raise RefusedError("E_MANIFEST", f"{path.name} is not plain text", hint="save it as UTF-8")
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ("\t", ";") if mark in first and "," not in first), ",")
    reader = csv.reader(
        io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else delimiter, strict=True
    )
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        message = f"{path.name} line {reader.line_num} cannot be divided into fields"
        raise RefusedError("E_MANIFEST", message, hint="correct its quotes and line ends") from error
    if not lines or len(lines) > MAX_ROWS:
        raise RefusedError("E_MANIFEST", f"{path.name} has {len(lines)} lines", hint=f"write 1 to {MAX_ROWS}")
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) != len(header):
        raise RefusedError("E_MANIFEST", f"{path.name} names a column twice", hint="give each column its own name")
    for number, row in lines[1:]:
        if len(row) != len(header):
            message = f"{path.name} line {number} has {len(row)} fields, the header {len(header)}"
            raise RefusedError("E_MANIFEST", message, hint="correct the line")
    return [dict(zip(header, (value.strip() for value in row), strict=True)) for _, row in lines[1:]]


def inside(folder: Path, name: object, *, links: bool = False) -> Path:
    """The file that a manifest names: a relative path below its folder.

    Args:
        folder: The dataset's folder.
        name: What the manifest says.
        links: Whether symbolic links may lead out of the folder.

    Raises:
        RefusedError: E_MANIFEST or E_PATH.
    """
    if not isinstance(name, str) or not name:
        raise RefusedError("E_MANIFEST", f"an entry names {name!r} as a file", hint="name a path below the folder")
    pure = PurePosixPath(name)
    suspicious = re.search(r"[\x00-\x1f\x7f-\x9f\\$\ud800-\udfff]|^~|^[A-Za-z][A-Za-z0-9+.-]*:", name)
    too_long = _length(name) > MAX_PATH or any(_length(part) > MAX_NAME for part in pure.parts)
    if suspicious or too_long or pure.is_absolute() or ".." in pure.parts:
        hint = "use relative paths below the dataset's folder, without .. ~ $ or a scheme"
        raise RefusedError("E_PATH", f"{name[:100]!r} is not a path below the dataset's folder", hint=hint)
    return contained(folder, folder / pure, links=links)


def contained(folder: Path, path: Path, *, links: bool = False) -> Path:
    """A path that, links followed, still lies below a folder.

    Raises:
        RefusedError: E_PATH.
    """
    if not links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        hint = "copy the file, or allow links with --set sources.follow_links=true"
        raise RefusedError("E_PATH", f"{path.name!r} is a link that leaves the dataset's folder", hint=hint)
    return path


def _length(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise RefusedError("E_MISSING", f"{path} is missing", hint="check the path")
    if path.stat().st_size > MAX_BYTES:
        raise RefusedError("E_MANIFEST", f"{path.name} has over {MAX_BYTES} bytes", hint="is it a manifest?")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError("E_MANIFEST", f"{path.name} is not UTF-8 text", hint="save it as UTF-8") from error


def _depth(text: str) -> int:
    """How deep brackets are nested, those in strings left out."""
    depth = deepest = 0
    for mark in re.finditer(r'"(?:[^"\\]|\\.?)*+"?|[\[\]{}]', text, re.DOTALL):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = Counter(names).most_common(1)[0][0]
        message = f"{path.name} has the key {twice[:40]!r} twice"
        raise RefusedError("E_MANIFEST", message, hint="remove one of the two")
    return unique


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number that can be kept")
    return value
