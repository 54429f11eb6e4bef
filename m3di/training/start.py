"""Where fine-tuning starts: which network, what its encoder has learnt already, and how scans become cubes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import nn

from m3di.config import Config
from m3di.networks.registry import (
    CLASSIFICATION,
    SEGMENTATION,
    Classification,
    Segmentation,
    create_classification,
    create_segmentation,
    options_of,
)
from m3di.networks.weights import RULES, load_public_weights
from m3di.tasks.task import Kind
from m3di.training import checkpoint
from m3di.types import Tensor
from stores.errors import RefusedError
from stores.recipe import Recipe

INTENSITIES: Final = ("ct_window_hu", "mr_percentiles")  # an encoder can get used to others
UNSTORED: Final = ("slice_size", "slice_stride", "labels")  # of no matter to cubes
PARTS: Final = ("best", "ema", "network")  # a checkpoint's weights, those to be used first


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from.

    Attributes:
        network: Name of the network.
        encoder: Name of its encoder; empty for a network that has none.
        options: Of the network's constructor.
        recipe: How scans become cubes.
        origin: What is told of the encoder's weights: kind (`scratch`, `run`, `file`, `public`), path, and digest.
        weights: The encoder's weights; None when they are drawn, or public.
        public: `FAMILY:PATH` of public weights.
        pretrained_on: Content digest of each scan that the encoder was pretrained on; None when nobody knows.
        pretrained_people: Dataset and subject of each of them, as far as they are known.
        teachers_fitted_on: Content digest, dataset and subject of each scan that the teachers of its pretraining were
            fitted to; None when nobody knows.
        pretraining_store: Where the store of its pretraining was; empty when nobody knows.
        note: What a user should know of it.
    """

    network: str
    encoder: str
    options: Mapping[str, Any]
    recipe: Recipe
    origin: Mapping[str, str] = field(default_factory=lambda: {"kind": "scratch"})
    weights: Mapping[str, Tensor] | None = None
    public: str = ""
    pretrained_on: Mapping[str, str] | None = field(default_factory=dict)
    pretrained_people: Mapping[str, Sequence[str]] = field(default_factory=dict)
    teachers_fitted_on: Mapping[str, Sequence[str]] | None = field(default_factory=dict)
    pretraining_store: str = ""
    note: str = ""


def start_of(kind: Kind, network: str | None, init: str | Path | None, config: Config) -> Start:
    """Find out what to start from.

    Args:
        kind: Of the task.
        network: Name of the network; None for the one that fits the encoder.
        init: A pretraining run, a safetensors file of an encoder's weights, or public weights as `FAMILY:PATH`; None
            to start from scratch.
        config: All settings.

    Raises:
        RefusedError: E_NETWORK, when network and encoder do not fit; E_CONFIG, when the recipes do not; E_WEIGHTS,
            when there are no such weights.
    """
    if init is not None and Path(init).is_dir():
        return _from_run(kind, network, Path(init), config)
    name = network or fitting_network(kind, config.encoder.name)
    encoder = _halves(kind, name).encoder or ""
    if not encoder and config.finetune.freeze_fraction:
        hint = "leave finetune.freeze_fraction out, or choose a network with an encoder"
        raise RefusedError("E_NETWORK", f"network {name!r} has no encoder to freeze", hint=hint)
    start = Start(name, encoder, _options(kind, name, config), config.volumes)
    if init is None:
        return start
    if not encoder:
        raise RefusedError(
            "E_NETWORK", f"network {name!r} has no encoder to give weights to", hint="leave out --init"
        )
    family, colon, path = str(init).partition(":")
    if colon and family in RULES:
        origin = {"kind": "public", "path": str(init), "sha256": _digest(Path(path))}
        return replace(start, origin=origin, public=str(init), pretrained_on=None)
    file = Path(init)
    if file.suffix != ".safetensors":
        families = ", ".join(sorted(RULES))
        hint = f"give a pretraining run, a .safetensors file, or FAMILY:PATH with a family of {families}"
        raise RefusedError("E_WEIGHTS", f"--init {init} is no run and no weights", hint=hint)
    origin = {"kind": "file", "path": str(file), "sha256": _digest(file)}
    return replace(start, origin=origin, weights=_read(file), pretrained_on=None)


def fitting_network(kind: Kind, encoder: str) -> str:
    """The network around an encoder.

    Raises:
        RefusedError: E_NETWORK, when there is none.
    """
    if kind == "classification":
        return encoder  # every encoder, whoever wrote it, makes a network of its name with a pooled head
    for name, halves in SEGMENTATION.items():
        if halves.encoder == encoder:
            return name
    hint = f"name one by --network: {', '.join(SEGMENTATION)}"
    raise RefusedError("E_NETWORK", f"no segmentation network is built on encoder {encoder!r}", hint=hint)


def build_network(kind: Kind, start: Start, *, num_classes: int, seed: int) -> nn.Module:
    """A network with the start's encoder, the rest of its weights drawn; the global generator is left alone.

    Raises:
        RefusedError: E_NETWORK or E_WEIGHTS, when options or weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(kind, start.network, start.recipe.cube_size, num_classes, start.options)
    if start.public:
        load_public_weights(model.get_submodule("encoder"), start.public)
    if start.weights is not None:
        _load_encoder(model.get_submodule("encoder"), start)
    return model


def load_network(found: checkpoint.Checkpoint, *, named: str = "") -> nn.Module:
    """Rebuild the network of a fine-tuning checkpoint, in evaluation mode, with the weights that are to be used.

    These are the best ones in validation, else the moving average, else the last ones.

    Args:
        found: The checkpoint. A segmentation network gives a `SegmentationOutput`, a classification network logits.
        named: The encoder that the user names, where it is no code that is known here (`Checkpoint.encoder`).

    Raises:
        DamagedError: E_WEIGHTS, when the weights are damaged.
        RefusedError: E_NETWORK, when the network is code that only the run names.
    """
    facts = found.facts
    if ":" in facts["network"]:
        found.encoder(named=named)
    options = dict(facts.get("options", facts["encoder"]["options"]))  # early runs had those of the encoder alone
    kind = facts.get("task_kind", "segmentation")
    if "imagenet" in options_of(_halves(kind, facts["network"])):
        options["imagenet"] = False  # all weights come from the checkpoint
    cube_size, num_classes = Recipe.from_dict(facts["recipe"]).cube_size, len(facts["class_values"])
    model = _create(kind, facts["network"], cube_size, num_classes, options)
    model.load_state_dict(found.weights(weights_used(found)))
    return model.eval()


def weights_used(found: checkpoint.Checkpoint) -> str:
    """Which weights of a checkpoint `load_network` takes: `best`, `ema` or `network`."""
    return next(part for part in PARTS if found.has(part))


def _from_run(kind: Kind, network: str | None, run: Path, config: Config) -> Start:
    found = checkpoint.load(run, kind="pretrain")
    encoder = found.encoder(named=config.encoder.name)
    name = network or fitting_network(kind, encoder["name"])
    if _halves(kind, name).encoder != encoder["name"]:
        message = f"network {name!r} has no {encoder['name']!r} encoder, which {found.folder} holds"
        raise RefusedError("E_NETWORK", message, hint=f"use --network {fitting_network(kind, encoder['name'])}")
    seen = Recipe.from_dict(found.facts["recipe"])
    recipe = _recipe_of(seen, run, config)
    differences = recipe.differences(seen)
    return Start(
        name,
        encoder["name"],
        {**_own_options(kind, name, config), **encoder["options"]},
        recipe,
        origin={"kind": "run", "path": str(run), "checkpoint": found.folder.name},
        weights=found.encoder_weights(),
        pretrained_on=dict(found.facts["trained_on"]) if "trained_on" in found.facts else None,  # a hub folder
        pretrained_people=dict(found.facts.get("people", {})),
        teachers_fitted_on=found.facts.get("teachers_fitted_on"),
        pretraining_store=found.facts.get("store", ""),
        note=f"the encoder was pretrained on other intensities: {'; '.join(differences)}" if differences else "",
    )


def _recipe_of(recipe: Recipe, run: Path, config: Config) -> Recipe:
    """The recipe of a pretraining run, with the intensities that a task or user sets.

    Raises:
        RefusedError: E_CONFIG, when the settings want other cubes than the run has seen.
    """
    asked, standard, theirs = config.volumes.to_dict(), Recipe().to_dict(), recipe.to_dict()
    set_here = {name: value for name, value in asked.items() if value not in (standard[name], theirs[name])}
    wrong = [name for name in set_here if name not in (*INTENSITIES, *UNSTORED)]
    if wrong:
        message = f"{run} was pretrained with another recipe: volumes.{wrong[0]} is {theirs[wrong[0]]}"
        raise RefusedError("E_CONFIG", message, hint=f"leave volumes.{wrong[0]} out, it is taken from the run")
    return replace(recipe, **{name: getattr(config.volumes, name) for name in set_here if name in INTENSITIES})


def _options(kind: Kind, network: str, config: Config) -> dict[str, Any]:
    """Options of a network from scratch: its own, and those set for an encoder as far as they are meant for it.

    `encoder.options` are of `encoder.name`; a network on another encoder takes them when it knows all of them.
    """
    halves = _halves(kind, network)
    set_for_encoder = config.encoder.options
    meant = halves.encoder == config.encoder.name or set_for_encoder.keys() <= options_of(halves)
    return {**(set_for_encoder if meant else {}), **_own_options(kind, network, config)}


def _own_options(kind: Kind, network: str, config: Config) -> dict[str, Any]:
    """What the settings of fine-tuning say of the network."""
    settings, halves = config.finetune, _halves(kind, network)
    options = dict(settings.options)
    if isinstance(halves, Segmentation) and halves.supervises and settings.deep_supervision:
        options.setdefault("deep_supervision", True)
    if isinstance(halves, Classification) and settings.freeze_fraction == 1 and "pooling" in options_of(halves):
        options.setdefault("pooling", "mean")  # a class token could not learn to ask a frozen encoder
    return options


def _halves(kind: Kind, network: str) -> Segmentation | Classification:
    """How a network is made; one that only `create_classification` can tell is a pooled head over that encoder."""
    if kind == "segmentation":
        if network in SEGMENTATION:
            return SEGMENTATION[network]
        create_segmentation(network, cube_size=16, num_classes=2)  # refuses it, and says what is known
    return CLASSIFICATION.get(network, Classification(network, CLASSIFICATION["resnet50"].head))


def _create(
    kind: Kind, network: str, cube_size: int, num_classes: int, options: Mapping[str, Any]
) -> nn.Module:  # fmt: skip
    create = create_segmentation if kind == "segmentation" else create_classification
    return create(network, cube_size=cube_size, num_classes=num_classes, **options)


def _load_encoder(encoder: nn.Module, start: Start) -> None:
    """Load weights that must fill the encoder exactly.

    Raises:
        RefusedError: E_WEIGHTS, naming the first that does not fit.
    """
    given, wanted = start.weights or {}, encoder.state_dict()
    if not given.keys() & wanted.keys():  # a whole network's, where the encoder is a part
        given = {name.removeprefix("encoder."): value for name, value in given.items() if name.startswith("encoder.")}
    wrong = sorted(given.keys() ^ wanted.keys())
    wrong += [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if wrong:
        name = wrong[0]
        shapes = [tuple(one[name].shape) if name in one else "missing" for one in (given, wanted)]
        message = f"{start.origin['path']} does not fit the encoder {start.encoder!r}: {len(wrong)} weights differ"
        detail = f"{message}, the first is {name}: {shapes[0]} there, {shapes[1]} here"
        hint = "name its network by --network, and its sizes by --set finetune.options.NAME=VALUE"
        raise RefusedError("E_WEIGHTS", detail, hint=hint)
    encoder.load_state_dict(dict(given))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise RefusedError("E_WEIGHTS", f"cannot read {file}: {error}", hint="check the file") from error


def _digest(file: Path) -> str:
    """The sha256 of a file of weights.

    Raises:
        RefusedError: E_WEIGHTS, when it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise RefusedError("E_WEIGHTS", f"cannot read {file}: {error}", hint="check --init") from error
