"""Checkpoints: folders of safetensors weights, JSON facts and the optimiser's state, written aside and renamed."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m3di.networks.registry import ENTRY_POINTS
from stores import atomic
from stores.errors import DamagedError, RefusedError

FORMAT_VERSION: Final = 1
FACTS: Final = "facts.json"
OPTIMIZER: Final = "optimizer.pt"
HUB_CONFIG: Final = "config.json"  # facts and weights of a folder that `m3di.exports.hub` wrote
HUB_WEIGHTS: Final = "model.safetensors"
HUB_SCHEMA: Final = "m3di.hub/1"
KEEP: Final = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        folder: Where it is.
        facts: What was saved beside the weights: kind, samples_seen, recipe, settings, digests of the files.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def samples_seen(self) -> int:
        """The clock when it was written."""
        return int(self.facts["samples_seen"])

    @property
    def run(self) -> Path:
        """The folder of its run; a hub folder is both."""
        return self.folder if self.facts.get("schema") == HUB_SCHEMA else self.folder.parent.parent

    def has(self, module: str) -> bool:
        """Whether one module's weights are in it."""
        return f"{module}.safetensors" in self.facts["files"]

    def encoder_weights(self) -> dict[str, Tensor]:
        """State dict of a pretrained encoder as others shall use it: the moving average where the run kept one.

        Raises:
            DamagedError: E_WEIGHTS, when the file is missing or not what was written.
        """
        if not self.has("ema"):
            return self.weights("encoder")
        prefix = "encoder."
        averaged = self.weights("ema").items()
        return {name.removeprefix(prefix): value for name, value in averaged if name.startswith(prefix)}

    def encoder(self, *, named: str) -> dict[str, Any]:
        """Name and options of the encoder, for building it again.

        A run may come from anybody: code that it alone names, as `module:factory`, is not to be imported.

        Args:
            named: The encoder that the user names (`encoder.name`). Those of m3di, and those that installed packages
                declare, need not be named.

        Raises:
            RefusedError: E_NETWORK, when the user does not name it and no installed package declares it.
        """
        found = dict(self.facts["encoder"])
        name = found["name"]
        if ":" in name and name != named and name not in {point.value for point in entry_points(group=ENTRY_POINTS)}:
            message = f"{self.folder} was trained with encoder {name!r}, which is code that only the run names"
            raise RefusedError("E_NETWORK", message, hint=f"if you trust it: --set encoder.name={name}")
        return found

    def weights(self, module: str) -> dict[str, Tensor]:
        """State dict of one module, the file's digest verified.

        Raises:
            DamagedError: E_WEIGHTS, when the file is missing or not what was written.
        """
        path = self._checked(f"{module}.safetensors")
        try:
            return load_file(path)
        except SafetensorError as error:
            raise DamagedError("E_WEIGHTS", f"{path} is damaged: {error}", hint="use an older checkpoint") from error

    def optimizer_state(self) -> dict[str, Any]:
        """State dict of the optimiser, the file's digest verified; nothing in it is unpickled as code."""
        return torch.load(self._checked(OPTIMIZER), weights_only=True)

    def _checked(self, name: str) -> Path:
        in_hub = self.facts.get("schema") == HUB_SCHEMA and name in self.facts["files"]
        path = self.folder / (HUB_WEIGHTS if in_hub else name)
        hint = "use an older checkpoint of the run, or train again"
        if not path.is_file():
            raise DamagedError("E_WEIGHTS", f"{path} is missing", hint=hint)
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.facts["files"].get(name):
            raise DamagedError("E_WEIGHTS", f"{path} is not what was written (sha256)", hint=hint)
        return path


def save(
    run: Path, samples_seen: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, facts: Any
) -> Path:
    """Write `run/checkpoints/SAMPLES` durably and keep the last two."""
    folder = run / "checkpoints" / f"{samples_seen:012d}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_folder(folder, lambda target: _fill(target, samples_seen, modules, optimizer, facts))
    for old in _folders(run)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, or what a hub folder holds; None when there is none.

    Raises:
        DamagedError: E_WEIGHTS or E_VERSION, when its facts cannot be read.
    """
    folders = _folders(run)
    if not folders and not (run / HUB_WEIGHTS).is_file():
        return None
    path = folders[-1] / FACTS if folders else run / HUB_CONFIG
    try:
        facts = json.loads(path.read_bytes())
        version = int(facts["version"])
    except (OSError, ValueError, KeyError) as error:
        hint = f"remove {path.parent} to fall back to the one before" if folders else "export the run again"
        raise DamagedError("E_WEIGHTS", f"{path} is damaged: {error}", hint=hint) from error
    if version > FORMAT_VERSION:
        raise DamagedError("E_VERSION", f"{path} has version {version}", hint="use a newer m3di")
    return Checkpoint(path.parent, facts)


def load(run: Path, *, kind: str) -> Checkpoint:
    """The newest checkpoint of a run of some kind (`pretrain` or `finetune`).

    Raises:
        RefusedError: E_WEIGHTS, when there is none, or it is of another kind.
    """
    found = latest(run)
    if found is None:
        raise RefusedError("E_WEIGHTS", f"there is no checkpoint in {run}", hint=f"name the folder of a {kind} run")
    if found.facts["kind"] != kind:
        message = f"{run} is a {found.facts['kind']} run, not a {kind} run"
        raise RefusedError("E_WEIGHTS", message, hint=f"name the folder of a {kind} run")
    return found


def _fill(
    folder: Path, samples_seen: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, facts: Any
) -> None:
    for name, module in modules.items():
        state = {key: value.detach().contiguous().clone() for key, value in module.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    all_facts = {"version": FORMAT_VERSION, "samples_seen": samples_seen, "files": files, **facts}
    (folder / FACTS).write_text(json.dumps(all_facts, indent=2))


def _folders(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())
