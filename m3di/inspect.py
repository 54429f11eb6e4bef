"""What a store holds: `m3di info`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stores import Store
from stores.geometry import PLANES
from stores.manifest import VOLUMES
from stores.recipe import Recipe
from stores.records import VolumeRecord


def describe_store(path: Path) -> dict[str, Any]:
    """Facts of a store, JSON-ready: volumes, rows, bytes, recipe, teacher, captioner, quarantine, digest.

    Raises:
        RefusedError, DamagedError: When there is no store, or it cannot be read.
    """
    with Store(path) as store:
        records = store.records()
        current = store.current_or_none() or {}
        rows = [store.rows_record(current["teacher"], r.volume) for r in records] if current else []
        parts = _bytes_by_part(path)
        teacher = (store.facts("teacher", current["teacher"]) or {}) if current else {}
        return {
            "store": str(path),
            "volumes": len(records),
            "subjects": len({(record.dataset, record.subject) for record in records}),
            "datasets": _counted(record.dataset for record in records),
            "modalities": _counted(record.modality for record in records),
            "planes of thick slices": _counted(
                PLANES[plane] for record in records for plane in record.chain(store.recipe).thick_planes
            ),
            "rows": sum(sum(row.num_rows) for row in rows if row is not None),
            "volumes with rows": sum(row is not None for row in rows),
            "bytes": sum(parts.values()),
            "bytes of cubes": sum(record.objects["image"].num_bytes for record in records),
            "teacher": f"{teacher['spec']} {teacher['fingerprint'][:16]}" if teacher else "none yet",
            "captioner": (store.facts("captioner", current["captioner"]) or {}).get("name")
            if current
            else "none yet",
            "non-finite voxels": sum(record.num_non_finite for record in records),
            "padding voxels": sum(record.num_padding for record in records),
            "quarantined": len(store.quarantined()),
            "digest": store.digest(),
            "recipe": store.recipe.to_dict(),
            "sets": _sets(records),
            "blank": blank_shares(records, store.recipe),
            "bytes by part": parts,
            "teacher card": teacher.get("card"),
            "quarantine": [vars(row) for row in store.quarantined()],
            "volume ids": [record.volume for record in records],
        }


def _sets(records: Sequence[VolumeRecord]) -> list[dict[str, Any]]:
    """Volumes, subjects and slices of each dataset, modality and body part."""
    groups: dict[tuple[str, str, str], list[VolumeRecord]] = {}
    for record in records:
        groups.setdefault((record.dataset, record.modality, record.body_part), []).append(record)
    return [
        {
            "dataset": dataset, "modality": modality, "body_part": body_part, "volumes": len(members),
            "subjects": len({record.subject for record in members}),
            "slices": sum(len(record.valid_slices(plane)) for record in members for plane in range(len(PLANES))),
        }
        for (dataset, modality, body_part), members in sorted(groups.items())
    ]  # fmt: skip


def blank_shares(records: Sequence[VolumeRecord], recipe: Recipe) -> dict[str, float]:
    """Per plane, the share of the positions on the stride that have no slice: padding, air, or outside the scan."""
    total = len(recipe.positions) * len(records)
    return {
        name: 1 - sum(len(record.valid_slices(plane)) for record in records) / total if total else 0.0
        for plane, name in enumerate(PLANES)
    }


def _bytes_by_part(path: Path) -> dict[str, int]:
    """Bytes of the files below a store by what they hold: the arrays one by one, rows, teachers, and the rest."""
    counts: Counter[str] = Counter()
    for file in path.rglob("*"):
        if file.is_file():
            parts = file.relative_to(path).parts
            name = "/".join(parts[:-1]) if parts[0] == VOLUMES else parts[0] if len(parts) > 1 else "other files"
            counts[name] += file.stat().st_size
    return dict(counts.most_common())


def _counted(values: Any) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(Counter(values).items()))
