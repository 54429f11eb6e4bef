"""Tiny generated scans: smooth, different in every direction, with two label classes."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def head(shape=(20, 24, 18), *, spacing=(1.5, 1.25, 2.0), seed=0):
    """An ellipsoid with a bright anterior and a dark posterior part: (image float32, label uint8), RAS axes."""
    random = np.random.default_rng(seed)
    size = [n * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.meshgrid(*[(np.arange(n) + 0.5) * s - e / 2 for n, s, e in zip(shape, spacing, size, strict=True)],
                       indexing="ij")  # fmt: skip
    radii = [0.42 * e * random.uniform(0.85, 1.0) for e in size]
    inside = sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True))
    skull = 1 / (1 + np.exp(8 * (inside - 1)))

    def blob(centre, width):
        return np.exp(-sum((g - c * e) ** 2 for g, c, e in zip(grid, centre, size, strict=True)) / (2 * width**2))

    width = 0.13 * min(size)
    front = blob(np.array([0.08, 0.18, 0.02]) + random.normal(0, 0.01, 3), width)
    back = blob(np.array([-0.1, -0.16, 0.1]) + random.normal(0, 0.01, 3), width)
    image = 300 * skull + 500 * front - 150 * back + random.normal(0, 5, shape)
    label = np.zeros(shape, np.uint8)
    label[back > 0.5] = 2
    label[front > 0.5] = 1
    return image.clip(0).astype(np.float32), label


def ras_affine(spacing, origin=(0.0, 0.0, 0.0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def write_scan(path, array, *, affine):
    """Write an (i, j, k) array with a RAS+ affine as NIfTI."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = RAS_TO_LPS @ (affine[:3, :3] / spacing)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((RAS_TO_LPS @ affine[:3, 3]).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_msd_dataset(root: Path, num_cases: int, *, shape=(20, 24, 18), spacing=(1.5, 1.25, 2.0)) -> Path:
    """A Medical-Segmentation-Decathlon dataset of heads."""
    training = []
    for number in range(num_cases):
        image, label = head(shape, spacing=spacing, seed=number)
        names = f"imagesTr/head_{number:03d}.nii.gz", f"labelsTr/head_{number:03d}.nii.gz"
        for name, array in zip(names, (image, label), strict=True):
            write_scan(root / name, array, affine=ras_affine(spacing))
        training.append({"image": f"./{names[0]}", "label": f"./{names[1]}"})
    manifest = {
        "name": "Phantom heads",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "training": training,
    }
    (root / "dataset.json").write_text(json.dumps(manifest))
    return root
