"""A programme that takes a minute: phantom heads, the smallest network, both ways to begin, and their picture."""

import json
from dataclasses import replace
from pathlib import Path

from m3di.reproduce.programme import Comparison, Network, Programme, Table, named
from m3di.reproduce.small import SMALL
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan

SIZES = (
    "volumes.cube_size=16", "volumes.slice_size=32", "volumes.slice_stride=8", "teacher.fit_steps=2",
    "teacher.dense_dim=4", "psat.width=32", "psat.num_queries=4", "psat.num_heads=2", "pretrain.batch_size=4",
    "pretrain.max_steps=2", "pretrain.slices_per_volume=2", "finetune.max_steps=2",
)  # fmt: skip
ROW = Comparison("hippocampus", "vit", 1.0, (0,))
PROBE = Comparison("acdc-diagnosis", "vit", 1.0, (0,), ("scratch",), probe=True)
DIAGNOSED = Table("table2", "Diagnosed", "methods", (PROBE,))
SEEN = Table("figure2", "Seen", "pictures", (ROW,))
ONE = Table("table1", "One", "methods", (ROW,))
OPTIONS = "encoder.options={patch_size=8, hidden_size=32, mlp_dim=32, num_layers=1, num_heads=2}"
TINY: Programme = replace(
    SMALL, networks=named(Network("vit", "ViT", "vit", (OPTIONS,))), tables=named(ONE, DIAGNOSED, SEEN)
)  # fmt: skip


def write_hippocampi(root: Path, num_cases: int = 10) -> Path:
    """Phantoms under the folder and the names of the hippocampus set."""
    folder = write_msd_dataset(root / "msd_hippocampus", num_cases)
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["labels"] = {"0": "background", "1": "Anterior", "2": "Posterior"}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return root


def write_hearts(root: Path, num_cases: int = 10) -> Path:
    """Phantoms of two diagnoses, one of them brighter, under the folder and the names of the ACDC set."""
    lines = ["file\tgroup"]
    for number in range(num_cases):
        image, _ = head(seed=number)
        name, ill = f"patient{number:03d}_frame01.nii.gz", number % 2
        write_scan(root / "acdc_ed" / name, image * (1 + ill), affine=ras_affine((1.5, 1.25, 2.0)))
        lines.append(f"{name}\t{'ILL' if ill else 'NOR'}")
    (root / "acdc_ed/diagnosis.tsv").write_text("\n".join(lines) + "\n")
    return root
