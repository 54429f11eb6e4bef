"""Our segmentation metrics beside a literal reference and MONAI's, and how long one pair takes.

python benchmarks/metrics.py [REFERENCE.nii.gz ...] [--shift 2 1 0]

Prints a table of the largest deviations over random masks, empty ones, masks that touch the grid's edges, and
anisotropic spacing; then, for each label map given, the seconds that scoring it against a shifted copy takes, ours
and MONAI's four calls.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from m3di.evaluation.segmentation import METRICS, score_masks
from tests.references import surface

TOLERANCE_MM = 2.0


def main(paths: list[Path], shift: list[int]) -> None:
    """Print the table, then the times."""
    warnings.simplefilter("ignore")
    print("| masks | spacing mm | pairs | against | " + " | ".join(METRICS) + " |")
    print("|" + "---|" * (4 + len(METRICS)))
    for kind in ("random", "smooth, touching the edges", "smooth, within the grid", "one empty", "both empty"):
        for spacing in ((1.0, 1.0, 1.0), (0.7, 0.7, 5.0)):
            _compare(kind, spacing)
    for path in paths:
        _time(path, shift)


def _compare(kind: str, spacing: tuple[float, float, float], count: int = 20) -> None:
    found, literal, monai = [], [], []
    for seed in range(count):
        masks = _masks(kind, np.random.default_rng(seed))
        found.append(_ours(*masks, spacing))
        literal.append(surface.scores_of(*masks, spacing_mm=spacing, tolerance_mm=TOLERANCE_MM))
        monai.append([*_monais(*masks, spacing), np.nan])
    for name, table in (("literal", literal), ("MONAI", monai)):
        cells = [
            _deviation(column, other) for column, other in zip(np.transpose(found), np.transpose(table), strict=True)
        ]
        if name == "MONAI":
            cells[-1] = "has none"
        print(f"| {kind} | {' x '.join(f'{s:g}' for s in spacing)} | {count} | {name} | {' | '.join(cells)} |")


def _masks(kind: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shape = (14, 12, 9)
    if kind == "random":
        return random.random(shape) < 0.3, random.random(shape) < 0.2
    if kind == "both empty":
        return np.zeros(shape, bool), np.zeros(shape, bool)
    blobs = [_blob(random, shape) for _ in range(2)]
    if kind == "one empty":
        blobs[int(random.integers(2))][:] = False
    return tuple(np.pad(blob, 2) for blob in blobs) if "within" in kind else tuple(blobs)


def _blob(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    noise = random.normal(size=shape)
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise > np.quantile(noise, 0.7)


def _ours(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float]) -> list[float]:
    maps = prediction.astype(np.uint8), reference.astype(np.uint8)
    scores = score_masks(*maps, [1], spacing_mm=spacing, tolerance_mm=TOLERANCE_MM)[1]
    return [getattr(scores, name) for name in METRICS]


def _monais(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float]) -> list[float]:
    given = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    options = {"include_background": True, "spacing": spacing}
    values = [
        compute_dice(*given, include_background=True),
        compute_surface_dice(*given, class_thresholds=[TOLERANCE_MM], **options),
        compute_hausdorff_distance(*given, percentile=95, **options),
        compute_average_surface_distance(*given, symmetric=True, **options),
        compute_hausdorff_distance(*given, **options),
    ]
    return [float(value) for value in values]


def _deviation(ours: np.ndarray, others: np.ndarray) -> str:
    """Largest difference, or what the two give where one of them is not finite."""
    odd = ~np.isfinite(ours) | ~np.isfinite(others)
    if not odd.any():
        return f"{np.abs(ours - others).max():.1g}"
    pairs = sorted({f"{mine:.3g} / {other:.3g}" for mine, other in zip(ours[odd], others[odd], strict=True)})
    same = all(np.isnan(mine) and np.isnan(other) for mine, other in zip(ours[odd], others[odd], strict=True))
    return "nan, both" if same else f"ours / theirs: {', '.join(pairs)}"


def _time(path: Path, shift: list[int]) -> None:
    image = nibabel.load(path)
    reference = np.asarray(image.dataobj).astype(np.uint8)
    spacing = tuple(float(value) for value in image.header.get_zooms()[:3])
    prediction = np.roll(reference, shift, (0, 1, 2))
    values = [int(value) for value in np.unique(reference) if value]
    seconds = []
    for run in (
        lambda: score_masks(prediction, reference, values, spacing_mm=spacing),
        lambda: [_monais(prediction == value, reference == value, spacing) for value in values],
    ):
        run()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds.append(float(np.median(times)))
    shape = " x ".join(map(str, reference.shape))
    print(f"{path.name}, {shape}, {len(values)} classes: ours {seconds[0]:.3f} s, MONAI {seconds[1]:.3f} s,"
          f" ratio {seconds[1] / seconds[0]:.1f}")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("references", type=Path, nargs="*")
    parser.add_argument("--shift", type=int, nargs=3, default=[2, 1, 0])
    arguments = parser.parse_args()
    main(arguments.references, arguments.shift)
