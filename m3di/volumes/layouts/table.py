"""A CSV or TSV manifest: a line a scan, with whatever its columns tell.

Columns: `image` (required, may be called `file` or `path`; a path below the manifest's folder), `id`, `label`,
`subject`, `modality`, `sequence`, `body_part`, `dataset`, and `group`, `cdr`, `diagnosis` for
tasks. Other columns are left alone.
"""

from pathlib import Path
from typing import Final

from m3di.volumes.cases import (
    ATTRIBUTES,
    MODALITIES,
    SEQUENCE,
    Case,
    LabelMap,
    body_part_of,
    modality_of,
    safe_id,
    sequence_of,
)
from m3di.volumes.layouts.names import is_scan, stem_of, subject_of
from m3di.volumes.manifests import inside, read_table
from stores.errors import RefusedError

IMAGES: Final = ("image", "file", "path")
COLUMNS: Final = (*IMAGES, "id", "label", "subject", "modality", "sequence", "body_part", "dataset", *ATTRIBUTES)


def matches(root: Path) -> bool:
    """Whether this is a table."""
    return root.is_file() and root.suffix.lower() in (".csv", ".tsv")


def has_images(root: Path) -> bool:
    """Whether this is a table of scans, and no other table that lies beside them."""
    return matches(root) and bool(image_column(read_table(root)))


def image_column(rows: list[dict[str, str]]) -> str:
    """The column of the scans' paths, in small letters; empty when there is none."""
    present = {name.lower() for name in rows[0]} if rows else set()
    return next((name for name in IMAGES if name in present), "")


def cases(root: Path) -> list[Case]:
    """The scans that the table lists, in its order."""
    rows = [{name.lower(): value for name, value in row.items()} for row in read_table(root)]
    column = image_column(rows)
    if rows and not column:
        message = f"{root.name} has no column 'image' (it has: {', '.join(rows[0])})"
        raise RefusedError("E_MANIFEST", message, hint="name the column of the scans' paths 'image'")
    return [_case(row | {"image": row[column]}, root) for row in rows]


def _case(row: dict[str, str], root: Path) -> Case:
    folder = root.parent
    image = inside(folder, row["image"], links=True)  # `discover` knows whether links may lead out of the folder
    stem = stem_of(image) if is_scan(image) else image.name.removesuffix(".dcm")
    modality = row.get("modality", "")
    if modality and modality.lower() not in MODALITIES:
        message = f"{root.name} gives {row['image']!r} the modality {modality!r}"
        raise RefusedError("E_MANIFEST", message, hint=f"use one of {', '.join(MODALITIES)}, or leave it empty")
    sequence = row.get("sequence", "")
    if sequence and not SEQUENCE.fullmatch(sequence):
        message = f"{root.name} gives {row['image']!r} the sequence {sequence!r}"
        raise RefusedError("E_MANIFEST", message, hint="name it in letters and digits, for example T1w or FLAIR")
    name = row.get("dataset") or root.stem
    return Case(
        id=safe_id(row.get("id") or stem),
        subject=safe_id(row.get("subject") or subject_of(row.get("id") or stem)),
        dataset=name,
        modality=MODALITIES[modality.lower()] if modality else modality_of(stem, name),
        body_part=row.get("body_part") or body_part_of(stem) or body_part_of(name),
        image=image,
        label=LabelMap(inside(folder, row["label"], links=True)) if row.get("label") else None,
        root=folder,
        attributes={column: row[column] for column in ATTRIBUTES if row.get(column)},
        sequence=sequence or sequence_of(modality) or sequence_of(stem),
    )
