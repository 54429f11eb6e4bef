"""What the objectives cost, and what the alignments alone can learn, on the rows of a store.

    python benchmarks/objectives.py STORE

Cost: forward and backward pass of each alignment over 256 slices, the least of five rounds, and the bytes that it
keeps for the backward pass; of the local terms over four volumes with eight slices each and 512 tokens of 768 (dense
only for a store with dense rows). Soft: how many targets a row has in effect (the exponential of their entropy) at
several temperatures, in batches of as many volumes as there are, up to 32, with eight slices each. Learning: a linear
map from a caption's row to its slice's, fitted to three quarters of the volumes; recall at 1 among the slices of the
others, captions that occur twice left out.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from m3di.config import ObjectiveConfig
from m3di.networks.encoders import EncoderOutput
from m3di.teachers.identity import dense_facts
from m3di.training.loader import Batch, BatchReader
from m3di.training.objectives import DenseSpec, LocalObjective, PooledObjective
from m3di.training.objectives.dense import shown_patches
from m3di.training.runtime import pick_device
from m3di.training.sampler import PlaneSliceSampler
from stores import Store
from stores.embeddings import EmbeddingStore

KINDS = ("infonce", "sigmoid", "soft", "transport")
SLICES, WIDTH, K, ROUNDS, STEPS, TOKEN_DIM, GRID = 256, 512, 8, 5, 300, 768, (8, 8, 8)
Terms = Callable[[], dict[str, torch.Tensor]]


def cost(terms: Terms) -> str:
    """Milliseconds of forward and backward, and MiB kept in between."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    best = float("inf")
    for _ in range(ROUNDS):
        kept = 0
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = sum(terms().values())
        loss.backward()
        if loss.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return f"{1000 * best:8.2f} ms {kept / 2**20:8.1f} MiB kept"


def pooled_costs(device: torch.device) -> None:
    """Cost of each alignment, image and text together."""
    targets = F.normalize(torch.randn(SLICES, 2, WIDTH, device=device), dim=-1)
    vectors = torch.randn(SLICES, WIDTH, device=device, requires_grad=True)
    number = torch.arange(SLICES, device=device)
    places = {"planes": number % 3, "slices": number // 3, "volumes": number // K}
    for kind in KINDS:
        objective = PooledObjective(ObjectiveConfig(kind=kind), WIDTH).to(device)
        print(f"{kind:16s} {cost(lambda objective=objective: objective(vectors, targets, **places))}")


def local_costs(batch: Batch, spec: DenseSpec | None, device: torch.device) -> None:
    """Cost of the dense and reconstruction terms on volumes of the store."""
    volumes, planes, slices = (part.to(device) for part in (batch.volumes.float(), batch.planes, batch.slices))
    cube_size = volumes.shape[-1]
    tokens = torch.randn(len(volumes), int(np.prod(GRID)), TOKEN_DIM, device=device, requires_grad=True)
    encoded = EncoderOutput(tokens, GRID, [])
    settings = {"reconstruction": ObjectiveConfig(reconstruction_weight=1.0)}
    patches = None
    if spec is not None and batch.patches is not None:
        patches = batch.patches.to(device)
        shown = shown_patches(volumes, planes, slices, grid=spec.grid)
        print(f"{shown.float().mean():.0%} of the patches of sampled slices show something")
        settings["dense, cosine"] = ObjectiveConfig(dense_weight=1.0)
        settings["dense, infonce"] = ObjectiveConfig(dense_weight=1.0, dense_kind="infonce")
    for name, config in settings.items():
        local = LocalObjective(config, TOKEN_DIM, cube_size, spec, token_stride=cube_size // GRID[0]).to(device)
        print(f"{name:16s} {cost(lambda local=local: local(encoded, volumes, planes, slices, patches))}")


def effective_targets(embeddings: EmbeddingStore) -> None:
    """How many targets a row has at a temperature, against images and texts."""
    sampler = PlaneSliceSampler(embeddings.index, slices_per_volume=K, seed=0)
    draw = sampler.draw(0, min(32, len(embeddings)))
    rows = torch.from_numpy(embeddings.gather(draw.volumes, draw.planes, draw.slices)).float().flatten(0, 1)
    print(f"targets in effect, of {len(rows)}:")
    for temperature in (0.01, 0.02, 0.05, 0.1, 0.2):
        counts = []
        for part in (0, 1):
            own = F.normalize(rows[:, part], dim=-1)
            shares = (own @ own.T / temperature).softmax(dim=1)
            counts.append(float(torch.special.entr(shares).sum(dim=1).exp().median()))
        print(f"  at {temperature:4.2f}: image {counts[0]:6.1f}, text {counts[1]:6.1f}")


def learning(embeddings: EmbeddingStore) -> None:
    """Recall at 1 of held-out slices by a linear map that each alignment has fitted."""
    cut = 3 * len(embeddings) // 4
    train, test = (
        torch.from_numpy(np.concatenate([embeddings.all_rows([name]) for name in names])).float()
        for names in (list(embeddings.index.volumes)[:cut], list(embeddings.index.volumes)[cut:])
    )
    test = test[np.unique(test[:, 1].numpy(), axis=0, return_index=True)[1]]
    print(f"recall at 1 among {len(test)} held-out slices, chance {1 / len(test):.1%}:")
    for kind in KINDS:
        torch.manual_seed(0)
        width = train.shape[-1]
        model = nn.Linear(width, width)
        objective = PooledObjective(replace(ObjectiveConfig(), kind=kind, text_weight=0.0), width)
        optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=1e-3)
        for _ in range(STEPS):
            number = torch.randperm(len(train))[:SLICES]
            rows, zeros = train[number], torch.zeros_like(number)
            terms = objective(model(rows[:, 1]), rows, planes=zeros, slices=number, volumes=zeros)
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
        with torch.no_grad():
            similarity = F.normalize(model(test[:, 1]), dim=-1) @ F.normalize(test[:, 0], dim=-1).T
        rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1)
        print(f"  {kind:16s} {(rank == 0).float().mean():.1%}")


def main(path: Path) -> None:
    """Print all of it."""
    device = pick_device("auto")
    print(f"{device}, {torch.get_num_threads()} threads")
    torch.manual_seed(0)
    pooled_costs(device)
    with Store(path) as store:
        teacher = store.current()["teacher"]
        facts, embeddings = dense_facts(store, teacher), store.embeddings(teacher)
        dense = store.embeddings(facts["fingerprint"]) if facts else None
        reader = BatchReader(store.volumes, embeddings, dense=dense)
        draw = PlaneSliceSampler(embeddings.index, slices_per_volume=K, seed=0).draw(0, 4)
        local_costs(reader.read(draw, reader.buffer(4)), DenseSpec.of(facts) if facts else None, device)
        effective_targets(embeddings)
        learning(embeddings)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
