"""What is exported: the network of a run with the weights that others shall use, and what is known of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

from torch import nn

from m3di.networks.encoders import as_module
from m3di.training import checkpoint
from m3di.training.pretrained import encoder_of
from m3di.training.repeats import runs_of
from m3di.training.start import load_network, weights_used
from stores import Store
from stores.errors import M3diError, RefusedError
from stores.recipe import Recipe

Kind = Literal["encoder", "segmentation", "classification"]


@dataclass(frozen=True, eq=False)
class Source:
    """A run as exports take it.

    Attributes:
        kind: What the network is.
        name: Name of the encoder, or of the whole network.
        network: In evaluation mode, on the CPU.
        recipe: How scans become its cubes.
        classes: Class name by label value; empty for an encoder.
        modality: `CT`, `MR` or `unknown`, of the scans that it was trained on.
        voxel_mm: Median edge of the voxels in its training cubes; None when nobody knows.
        facts: The checkpoint's facts.
        provenance: Where it came from, without names: digests of run and weights, the clock, m3di's version.
    """

    kind: Kind
    name: str
    network: nn.Module
    recipe: Recipe
    classes: Mapping[int, str]
    modality: str
    voxel_mm: float | None
    facts: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which is the whole network of a pretraining run."""
        return self.network if self.kind == "encoder" else self.network.get_submodule("encoder")


def load(folder: str | Path, *, named: str = "") -> nn.Module:
    """The network of a run or of a hub folder, in evaluation mode, on the CPU.

    Args:
        folder: A pretraining run, which gives an encoder; a fine-tuning run, which gives a whole network; or what
            `m3di export --to hub` made of one.
        named: The encoder that you name, where it is code that only the folder names.

    Raises:
        RefusedError: E_WEIGHTS, when there is no checkpoint; E_NETWORK, for code that only the folder names.
        DamagedError: E_WEIGHTS, when a file is not what was written.
    """
    return _network(_found(Path(folder)), named)


def load_source(run: Path, *, named: str = "") -> Source:
    """Find out what there is to export; raises as `load`."""
    found = _found(run)
    facts, network = found.facts, _network(found, named)
    common: dict[str, Any] = {
        "network": network, "recipe": Recipe.from_dict(facts["recipe"]), "facts": facts,
        "provenance": _provenance(found),
    }  # fmt: skip
    if facts["kind"] == "pretrain":
        modality, voxel_mm = _seen(facts)
        return Source(
            kind="encoder", name=facts["encoder"]["name"], classes={}, modality=modality, voxel_mm=voxel_mm, **common
        )
    edge_mm = facts.get("edges_mm", {}).get("median")
    return Source(
        kind=facts.get("task_kind", "segmentation"),
        name=facts["network"],
        classes={int(value): name for value, name in facts["classes"].items()},
        modality=facts["modality"],
        voxel_mm=edge_mm / common["recipe"].cube_size if edge_mm else None,
        **common,
    )


def _found(run: Path) -> checkpoint.Checkpoint:
    found = checkpoint.latest(run)
    if found is None:
        repeats = runs_of(run)
        hint = f"name one of its repeats: {repeats[0]}" if repeats != [run] else "name the folder of a run"
        raise RefusedError("E_WEIGHTS", f"there is no checkpoint in {run}", hint=hint)
    return found


def _network(found: checkpoint.Checkpoint, named: str) -> nn.Module:
    if found.facts["kind"] == "pretrain":
        return as_module(encoder_of(found, named=named))
    return load_network(found, named=named)


def _provenance(found: checkpoint.Checkpoint) -> dict[str, Any]:
    facts = found.facts
    if "provenance" in facts:  # of a hub folder: that of the run it was made of
        return dict(facts["provenance"])
    part = weights_used(found) if facts["kind"] == "finetune" else ("ema" if found.has("ema") else "encoder")
    clock = facts["progress"]["best_samples_seen"] if part == "best" else found.samples_seen
    return {
        "run_sha256": hashlib.sha256((found.folder / checkpoint.FACTS).read_bytes()).hexdigest(),
        "weights_sha256": facts["files"][f"{part}.safetensors"],
        "weights": part,
        "samples_seen": clock,
        "m3di_version": version("m3di"),
    }


def _seen(facts: Mapping[str, Any]) -> tuple[str, float | None]:
    """Modality and voxels of the cubes of pretraining, from its store while it is at hand."""
    place = Path(facts.get("store") or "")
    if not facts.get("store") or not place.is_dir():
        return "unknown", None
    try:
        with Store(place) as store:
            records = [record for record in store.records() if record.volume in facts["trained_on"]]
            voxels = [record.chain(store.recipe).voxel_mm for record in records]
    except M3diError:
        return "unknown", None  # it is no store of ours any more
    modalities = {record.modality for record in records}
    return modalities.pop() if len(modalities) == 1 else "unknown", median(voxels) if voxels else None
