"""Networks with weights that tell every layer from every other, and runs that hold them without any training."""

from pathlib import Path

import torch

from m3di.config import load_config
from m3di.exports.source import Source
from m3di.networks.registry import create_classification, create_encoder, create_segmentation
from m3di.training import checkpoint
from stores.recipe import Recipe

PROVENANCE = {
    "run_sha256": "0" * 64,
    "weights_sha256": "1" * 64,
    "weights": "best",
    "samples_seen": 8,
    "m3di_version": "0",
}
CREATE = {"segmentation": create_segmentation, "classification": create_classification}
PEOPLE = {"scan-anna": ["Clinic of Dr Grey", "anna"], "scan-bert": ["Clinic of Dr Grey", "bert"]}


@torch.no_grad()
def shaken(network, seed=0):
    """A network in evaluation with random norms and statistics: freshly made ones are all alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.add_(0.5 * noise if name.endswith("running_var") else 0.1 * (noise - 0.5))
    return network.eval()


def source(kind, name, *, cube_size=32, num_classes=3, modality="MR", voxel_mm=1.5, **options):
    """A network as exports take it."""
    if kind == "encoder":
        network = create_encoder(name, cube_size=cube_size, **options)
    else:
        network = CREATE[kind](name, cube_size=cube_size, num_classes=num_classes, **options)
    facts = {"kind": "pretrain" if kind == "encoder" else "finetune", "data_facts": {}, "training": {}}
    classes = {} if kind == "encoder" else {value: f"class {value}" for value in range(num_classes)}
    recipe = Recipe(cube_size=cube_size)
    return Source(kind, name, shaken(network), recipe, classes, modality, voxel_mm, facts, PROVENANCE)


def pretrained_run(run: Path, name="vit", *, cube_size=16, ema=False, **options):
    """A pretraining run of two people's scans."""
    encoder = shaken(create_encoder(name, cube_size=cube_size, **options))
    modules = {"encoder": encoder}
    if ema:
        modules["ema"] = torch.nn.ModuleDict(
            {"encoder": shaken(create_encoder(name, cube_size=cube_size, **options), 1)}
        )
    facts = {
        "kind": "pretrain", "encoder": {"name": name, "options": options},
        "recipe": Recipe(cube_size=cube_size).to_dict(), "config": load_config(preset="smoke").to_dict(),
        "teacher": "0" * 64, "store": str(run.parent / "hospital-store"),
        "trained_on": {"scan-anna": "a" * 64, "scan-bert": "b" * 64}, "people": PEOPLE,
    }  # fmt: skip
    checkpoint.save(run, 8, modules, torch.optim.AdamW(encoder.parameters()), facts)
    return run
