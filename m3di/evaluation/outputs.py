"""What `m3di predict` writes: masks, maps, pictures, a table, and a note for each scan: what was made of what.

`OUT/ID.nii.gz` (or `.dcm`) is a mask, `OUT/ID.json` its note: label names, weights, volumes. The note is written
last: where it is, everything is, and a rerun with the same scan, weights and settings leaves it alone. Further maps
have folders of their own, so that names cannot meet and OUT holds masks only.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from stores import atomic
from stores.errors import RefusedError

SCHEMA: Final = "m3di.prediction/1"
TABLES: Final = {".csv": ",", ".tsv": "\t"}
TABLE: Final = "probabilities.csv"
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula


@dataclass(frozen=True)
class Outputs:
    """Where predictions go.

    Attributes:
        folder: The folder; None when only a table is wanted.
        table: The table of a classification.
    """

    folder: Path | None
    table: Path

    @classmethod
    def at(cls, out: Path) -> "Outputs":
        """The places in a folder, or a table alone when a `.csv` or `.tsv` is named."""
        if out.suffix.lower() in TABLES:
            return cls(None, out)
        return cls(out, out / TABLE)

    def relative(self, file: Path) -> str:
        """A file's path below the folder."""
        assert self.folder is not None
        return file.relative_to(self.folder).as_posix()

    def note(self, case: str) -> Path:
        """The note of a scan."""
        assert self.folder is not None
        return self.folder / f"{case}.json"

    def mask(self, case: str, *, suffix: str) -> Path:
        """The mask of a scan."""
        assert self.folder is not None
        return self.folder / f"{case}{suffix}"

    def probability(self, case: str, value: int) -> Path:
        """The probabilities of one class."""
        assert self.folder is not None
        return _within(self.folder / "probabilities" / case) / f"{value}.nii.gz"

    def uncertainty(self, case: str) -> Path:
        """The map of uncertainty."""
        assert self.folder is not None
        return _within(self.folder / "uncertainty") / f"{case}.nii.gz"

    def overview(self, case: str) -> Path:
        """The picture."""
        assert self.folder is not None
        return _within(self.folder / "overview") / f"{case}.png"

    def done(self, case: str, key: str) -> dict[str, Any] | None:
        """The note of a scan that was predicted already, by the same weights and settings; else None."""
        if self.folder is None:
            return None
        note = _read_note(self.note(case))
        if note is None or note.get("key") != key:
            return None
        files = [self.folder / name for name in note["files"].values()]
        return note if all(file.is_file() for file in files) else None

    def require_free(self, inputs: Sequence[Path], cases: Sequence[str]) -> None:
        """Refuse to overwrite scans, or JSON files of others.

        Args:
            inputs: Files of the scans and their label maps.
            cases: Ids of the scans.

        Raises:
            RefusedError: E_PATH.
        """
        places = {path.resolve() for path in inputs}
        hint = "choose another --out"
        if self.folder is None:
            if self.table.resolve() in places:
                raise RefusedError("E_PATH", f"{self.table} is one of the scans", hint=hint)
            return
        for case in cases:
            for path in (self.mask(case, suffix=".nii.gz"), self.mask(case, suffix=".dcm")):
                if path.resolve() in places:
                    raise RefusedError("E_PATH", f"the mask would overwrite {path}", hint=hint)
            note = self.note(case)
            if note.exists() and _read_note(note) is None:
                raise RefusedError("E_PATH", f"{note} is there, and no note of a prediction", hint=hint)


def write_note(path: Path, note: Mapping[str, Any]) -> None:
    """Write the note of a scan."""
    atomic.write_bytes(path, (json.dumps({"schema": SCHEMA, **note}, indent=2) + "\n").encode())


def write_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    atomic.write_bytes(path, buffer.getvalue())


def write_table(path: Path, classes: Sequence[str], notes: Sequence[Mapping[str, Any]]) -> None:
    """Write the class probabilities of scans, one line each; columns are parted by what the suffix says.

    Args:
        path: Ends in `.csv` or `.tsv`.
        classes: Class names, in the order of the probabilities.
        notes: Notes of the scans.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=TABLES[path.suffix.lower()], lineterminator="\n")
    uncertain = any(note["uncertainty"] is not None for note in notes)
    header = ["case", "class", *(f"probability of {name}" for name in classes)]
    writer.writerow([*map(_cell, header), *(["uncertainty"] if uncertain else [])])
    for note in notes:
        values = [*note["probabilities"], *([note["uncertainty"]] if uncertain else [])]
        writer.writerow([note["case"], _cell(note["class"]), *(f"{value:.6f}" for value in values)])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, buffer.getvalue().encode())


def _within(folder: Path) -> Path:
    """A folder that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula, on one line."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    is_number = line.replace(".", "", 1).lstrip("+-").isdigit()
    return f"'{line}" if line.startswith(FORMULA) and not is_number else line


def _read_note(path: Path) -> dict[str, Any] | None:
    """A note of ours; None for anything else."""
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.get("schema") == SCHEMA else None
