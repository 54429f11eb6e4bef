"""A pretrained encoder in your own training loop: tell two kinds of scans apart by a linear map over its tokens.

    python examples/own_loop.py runs/first scans.csv

The table has a line a scan: `image` (a path, beside the table or absolute) and `class` (any two or more words), and
if you like `modality` (CT or MR). The encoder stays frozen here; leave out `requires_grad_` to train it too.
"""

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F

import m3di


def read_table(table, recipe):
    """Cubes (n, 1, d, h, w) as the encoder saw them in pretraining, class numbers (n,), and the classes' names."""
    rows = list(csv.DictReader(table.read_text().splitlines()))
    names = sorted({row["class"] for row in rows})
    cubes = []
    for row in rows:
        scan = m3di.read_volume(table.parent / row["image"], modality=row.get("modality") or "unknown")
        cubes.append(torch.from_numpy(m3di.make_cube(scan, recipe).data)[None].float())
    return torch.stack(cubes), torch.tensor([names.index(row["class"]) for row in rows]), names


def main():
    """Train for some steps and print the loss, then how many scans are told right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a pretraining run")
    parser.add_argument("table", type=Path, help="a CSV file: image, class")
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()

    torch.manual_seed(0)
    encoder = m3di.load_encoder(given.run).requires_grad_(False)
    cubes, classes, names = read_table(given.table, m3di.recipe_of(given.run))
    head = torch.nn.Sequential(torch.nn.LayerNorm(encoder.token_dim), torch.nn.Linear(encoder.token_dim, len(names)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for step in range(given.steps):
        batch = torch.randperm(len(cubes))[:4]
        tokens = encoder(cubes[batch]).tokens  # (b, n, c), one token a block of the volume
        loss = F.cross_entropy(head(tokens.mean(dim=1)), classes[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    with torch.no_grad():
        told = torch.cat([head(encoder(cube[None]).tokens.mean(dim=1)) for cube in cubes]).argmax(dim=1)
    print(f"{int((told == classes).sum())} of {len(classes)} training scans told right")


if __name__ == "__main__":
    main()
