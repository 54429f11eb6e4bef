"""A run as a folder for model hubs: config.json, model.safetensors and a model card.

The config holds what a checkpoint's facts hold, less all that names people, scans and places; so
`m3di.training.checkpoint` reads the folder as a run, and fine-tuning and prediction take it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file

from m3di.config import ExportConfig
from m3di.exports.card import card, data_facts, front_matter, training_facts
from m3di.exports.source import Source
from m3di.tasks.split import SHARES
from m3di.training.checkpoint import FORMAT_VERSION, HUB_CONFIG, HUB_SCHEMA, HUB_WEIGHTS

KEPT: Final = (
    "task", "task_kind", "loss", "metrics", "classes", "class_values", "background_values", "ignored_values",
    "modality", "edges_mm", "options",
)  # fmt: skip

IN_M3DI: Final = """\
```python
import m3di.exports

network = m3di.exports.load(".")  # the folder of this file
```
"""
IN_TORCH: Final = """\
With torch and safetensors alone, but for the class:

```python
import json
from pathlib import Path

import torch
from m3di import {create}
from safetensors.torch import load_file

config = json.loads(Path("config.json").read_text())
{sizes}
network = {create}({arguments})
network.load_state_dict(load_file("model.safetensors"))
network.eval()
with torch.no_grad():
    output = network(torch.zeros(1, 1, cube, cube, cube)){attribute}
print(tuple(output.shape))
```
"""
ON_A_SCAN: Final = """\
On a scan:

```python
import json
from pathlib import Path

import torch
from m3di import make_cube, read_volume
from m3di.exports import load
from stores.recipe import Recipe

recipe = Recipe.from_dict(json.loads(Path("config.json").read_text())["recipe"])
cube = torch.from_numpy(make_cube(read_volume(Path("scan.nii.gz"), modality="{modality}"), recipe).data)[None, None]
with torch.no_grad():
    output = load(".")(cube){attribute}
```
"""
COMMANDS: Final = {
    "encoder": "`m3di finetune --task TASK --data DIR --init FOLDER` trains a network that begins with it.",
    "segmentation": "`m3di predict SCAN --run FOLDER --out DIR` writes masks on each scan's own grid.",
    "classification": "`m3di predict SCAN --run FOLDER --out FILE.csv` writes probabilities.",
}


def prepare(source: Source, run: Path, settings: ExportConfig) -> Callable[[Path], None]:
    """Make everything ready; returns what writes it into a folder."""
    text = front_matter(source, settings) + "\n" + card(source, run, settings, usage=_usage(source))

    def fill(folder: Path) -> None:
        weights = folder / HUB_WEIGHTS
        state = {name: value.detach().contiguous().clone() for name, value in source.network.state_dict().items()}
        save_file(state, weights, metadata={"format": "pt"})
        config = config_of(source, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
        (folder / HUB_CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
        (folder / "README.md").write_text(text)

    return fill


def config_of(source: Source, *, sha256: str) -> dict[str, Any]:
    """The config: how to build the network, how to make its input, and facts without names."""
    facts, is_encoder = source.facts, source.kind == "encoder"
    encoder = {name: facts["encoder"][name] for name in ("name", "options")}
    found = {
        "schema": HUB_SCHEMA,
        "version": FORMAT_VERSION,
        "kind": facts["kind"],
        "encoder": encoder,
        "recipe": source.recipe.to_dict(),
        "config": _settings(facts),
        "samples_seen": source.provenance["samples_seen"],
        "files": {f"{'encoder' if is_encoder else 'network'}.safetensors": sha256},  # in HUB_WEIGHTS
        "provenance": dict(source.provenance),
        "data_facts": data_facts(facts),
        "training": training_facts(facts),
    }
    if is_encoder:
        return {**found, "teacher": facts["teacher"]}
    nobody: dict[str, Any] = {
        "split": {share: [] for share in SHARES}, "trained_on": {}, "pretrained_on": {}, "pretraining_known": False,
        "data": "", "init": {"kind": "file", "path": "the exported network"},
    }  # fmt: skip
    return {**found, **nobody, "network": source.name, **{name: facts[name] for name in KEPT if name in facts}}


def _settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that predictions ask for."""
    config = facts["config"]
    flips = config.get("finetune", {}).get("flip_axes", [])
    return {"seed": config["seed"], **({"finetune": {"flip_axes": flips}} if flips else {})}


def _usage(source: Source) -> str:
    attribute = {"encoder": ".tokens", "segmentation": ".logits", "classification": ""}[source.kind]
    network = 'config["network"], **config["options"], cube_size=cube, num_classes=classes'
    encoder = 'config["encoder"]["name"], **config["encoder"]["options"], cube_size=cube'
    sizes = ['cube = config["recipe"]["cube_size"]']
    if source.kind != "encoder":
        sizes.append('classes = len(config["class_values"])')
    arguments = encoder if source.kind == "encoder" else network
    create = f"create_{source.kind}"
    return "\n".join([
        IN_M3DI,
        IN_TORCH.format(create=create, arguments=arguments, sizes="\n".join(sizes), attribute=attribute),
        ON_A_SCAN.format(modality=source.modality, attribute=attribute),
        COMMANDS[source.kind],
    ])  # fmt: skip
