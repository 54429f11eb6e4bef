"""What the cube's resolution costs: Dice of label maps with what comes back of their cubes, on the scanner's grid.

It is the most that a network on cubes of that size can reach.

    python benchmarks/resolution.py DATASET... [--cases N] [--sizes 32 48 64 96 128]
"""

import argparse
from pathlib import Path

import numpy as np

from m3di.volumes.layouts import discover
from m3di.volumes.preprocess import chain_of, make_label_cube
from m3di.volumes.readers import read_label, read_volume
from m3di.volumes.resample import restore
from stores.recipe import Recipe

LARGE = 1000  # voxels


def main() -> None:
    """Print a line a dataset and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 48, 64, 96, 128])
    arguments = parser.parse_args()
    for dataset in arguments.datasets:
        scans = [case for case in discover(dataset) if case.label is not None][: arguments.cases]
        volumes = [read_volume(case.image, modality=case.modality, member=case.member) for case in scans]
        labels = [
            read_label(case.label, like=volume.geometry) for case, volume in zip(scans, volumes, strict=True)
        ]  # fmt: skip
        for size in arguments.sizes:
            rows = [row for volume, label in zip(volumes, labels, strict=True) for row in one(volume, label, size)]
            edges = [chain_of(volume, Recipe(cube_size=size)).voxel_mm for volume in volumes]
            large = [dice for _, count, dice in rows if count > LARGE]
            by_class = {value: np.mean([dice for v, _, dice in rows if v == value]) for value, *_ in sorted(rows)}
            told = "  ".join(f"class {value} {mean:.3f}" for value, mean in by_class.items())
            over = f"n {len(large)}, mean {np.mean(large):.3f}, lowest {min(large):.3f}" if large else "none"
            name = f"{dataset.name}  cube {size:3}  voxel {np.median(edges):.2f} mm"
            print(f"{name}  {told}  over {LARGE} voxels: {over}", flush=True)


def one(volume, label, size):
    """(class, its voxels, Dice) of a label map."""
    chain = chain_of(volume, Recipe(cube_size=size))
    values = np.unique(label)
    one_hot = (make_label_cube(label, chain)[None] == values.reshape(-1, 1, 1, 1)).astype(np.float32)
    mask = np.empty(chain.canonical_shape, np.uint8)
    for rows, scores in restore(one_hot, chain):
        mask[:, :, rows] = values[scores.argmax(axis=0)]
    mask = chain.from_canonical(mask)
    for value in values[values > 0]:
        found, true = mask == value, label == value
        yield int(value), int(true.sum()), 2 * (found & true).sum() / (found.sum() + true.sum())


if __name__ == "__main__":
    main()
