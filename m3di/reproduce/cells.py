"""From a programme's declarations to cells: small steps with a name, command lines, and what determines their result.

Command lines write places as `$DATA/FOLDER` and `$OUT/...`, so that they are the same on every machine and can be
pasted where these variables are set.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

from m3di.config import load_config
from m3di.reproduce.datasets import DATASETS
from m3di.reproduce.programme import SCRATCH, Arm, Comparison, Network, Programme, Stock, Table
from m3di.tasks.registry import task_settings
from stores.recipe import digest_of

CellKind = Literal["store", "pretrain", "finetune", "pictures"]
Command = tuple[str, ...]  # arguments of m3di

RECIPE_VERSION: Final = 1  # raise whenever the same settings and data would give another result
# The settings that a result of each kind depends on.
SECTIONS: Final[dict[CellKind, tuple[str, ...]]] = {
    "store": ("sources", "volumes", "captions", "teacher", "split", "seed"),
    "pretrain": ("encoder", "psat", "objective", "pretrain", "split", "seed"),
    "finetune": ("volumes", "encoder", "finetune", "split", "evaluate", "seed"),
    "pictures": (),
}
RUNS: Final = "$OUT/work/runs"


@dataclass(frozen=True)
class Cell:
    """One step of a programme.

    Attributes:
        name: Its name, of its files too.
        kind: What it does.
        seed: Of everything random in it.
        commands: Its command lines; of pictures there are none before the others are done.
        datasets: Names of the datasets that it reads.
        needs: Names of the cells that it builds on.
        settings: The resolved settings that its result depends on, by section.
    """

    name: str
    kind: CellKind
    seed: int
    commands: tuple[Command, ...]
    datasets: tuple[str, ...]
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Where it works."""
        return {"store": "$OUT/work/stores", "pictures": "$OUT/work/pictures"}.get(self.kind, RUNS) + f"/{self.name}"

    def facts(self, *, data: Mapping[str, str], needs: Mapping[str, str]) -> dict[str, Any]:
        """Everything that determines its result, JSON-ready.

        Args:
            data: Digest of each dataset.
            needs: Digest of each cell that it builds on.
        """
        return {
            "recipe_version": RECIPE_VERSION,
            "kind": self.kind,
            "commands": [list(command) for command in self.commands],
            "settings": dict(self.settings),
            "data": {name: data[name] for name in self.datasets},
            "needs": {name: needs[name] for name in self.needs},
        }


def digest_facts(facts: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> str:
    """Digest of a cell's facts.

    Args:
        facts: As the cell has them now.
        like: As they were when its result was made: a setting that did not exist then is no reason to make it
            again, since new settings default to what was done before.
    """
    settings = dict(facts["settings"])
    for section, then in (like["settings"] if like else {}).items():
        if isinstance(settings.get(section), Mapping) and isinstance(then, Mapping):
            settings[section] = {name: value for name, value in settings[section].items() if name in then}
    return digest_of({**facts, "settings": settings})


@dataclass(frozen=True)
class Grid:
    """Derives the cells of a programme's tables.

    Attributes:
        programme: The programme.
        available: Names of the datasets that are there.
        seeds: In place of those of every comparison; empty to keep them.
        extra: Settings that the user adds to every command.
    """

    programme: Programme
    available: frozenset[str]
    seeds: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()

    def comparisons(self, table: Table) -> list[Comparison]:
        """A table's comparisons whose dataset is there, with the seeds asked for."""
        targets = self.programme.targets
        there = [one for one in table.comparisons if targets[one.target].dataset in self.available]
        return [replace(one, seeds=self.seeds) for one in there] if self.seeds else there

    def arms(self, comparison: Comparison) -> list[str]:
        """Names of a comparison's arms that can be made: without a store there is scratch alone."""
        stock = self.programme.stocks[self.programme.targets[comparison.target].store]
        can_pretrain = bool(self.available.intersection(stock.datasets))
        return [name for name in comparison.arms if name == SCRATCH or can_pretrain]

    def cells(self, tables: Iterable[Table]) -> dict[str, Cell]:
        """The cells of some tables by name, in the order in which to make them.

        The first seed of everything comes first, and what a comparison needs directly before it, so that complete
        comparisons come early.
        """
        jobs = [(seed, table, one) for table in tables for one in self.comparisons(table) for seed in one.seeds]
        found: dict[str, Cell] = {}
        for seed, table, comparison in sorted(jobs, key=lambda job: job[0]):
            for arm in self.arms(comparison):
                found.update((cell.name, cell) for cell in self._chain(comparison, arm, seed))
            if table.shape == "pictures":
                cell = self.pictures(table, comparison.target, seed)
                found.pop(cell.name, None)  # behind everything that it shows
                found[cell.name] = cell
        return found

    def finetuning(self, comparison: Comparison, arm: str, seed: int) -> Cell:
        """The fine-tuning of a comparison from an arm."""
        return self._chain(comparison, arm, seed)[-1]

    def pretraining(self, comparison: Comparison, arm: str, seed: int) -> Cell | None:
        """The pretraining of a comparison's arm; None from scratch."""
        return None if arm == SCRATCH else self._chain(comparison, arm, seed)[-2]

    def pictures(self, table: Table, target: str, seed: int) -> Cell:
        """The pictures of a target: predictions of all methods for one test case."""
        shown = [one for one in self.comparisons(table) if one.target == target and seed in one.seeds]
        needs = tuple(self.finetuning(one, arm, seed).name for one in shown for arm in self.arms(one))
        dataset = self.programme.targets[target].dataset
        return Cell(f"{table.name}-{target}-seed{seed}", "pictures", seed, (), (dataset,), needs)

    def _chain(self, comparison: Comparison, arm_name: str, seed: int) -> list[Cell]:
        """What has to be done for one fine-tuning, in order, itself last."""
        target, network = self.programme.targets[comparison.target], self.programme.networks[comparison.network]
        if arm_name == SCRATCH:
            return [self._finetune(comparison, SCRATCH, None, seed)]
        arm = self.programme.arms[arm_name]
        if arm.same_as:
            arm = replace(self.programme.arms[arm.same_as], title=arm.title)
        store = self._store(self.programme.stocks[target.store], arm)
        pretrain = self._pretrain(store, target.store, network, arm, seed)
        return [store, pretrain, self._finetune(comparison, arm.name, pretrain, seed)]

    def _store(self, stock: Stock, arm: Arm) -> Cell:
        name = f"store-{stock.name}" + (f"-{arm.name}" if arm.stock_settings else "")
        datasets = tuple(one for one in stock.datasets if one in self.available)
        settings = (*stock.settings, *arm.stock_settings, *self.extra)
        places = [DATASETS[one].place for one in datasets]
        path = ("--store", f"$OUT/work/stores/{name}")
        common = self._common(self.programme.preset, settings, 0)
        commands = (("build-store", *places, *path, *common), ("info", *path))
        return self._cell(
            name, "store", seed=0, commands=commands, datasets=datasets, preset=self.programme.preset,
            settings=settings,
        )  # fmt: skip

    def _pretrain(self, store: Cell, stock: str, network: Network, arm: Arm, seed: int) -> Cell:
        name = f"pretrain-{stock}-{network.encoder}-{arm.name}-seed{seed}"
        own = () if arm.preset else self.programme.pretraining
        settings = (*network.settings, *own, *arm.settings, *self.extra)
        preset = arm.preset or self.programme.preset
        common = self._common(preset, settings, seed)
        command = ("pretrain", "--store", store.folder, "--run", f"{RUNS}/{name}", *common)
        return self._cell(
            name, "pretrain", seed=seed, commands=(command,), needs=(store.name,), preset=preset, settings=settings
        )  # fmt: skip

    def _finetune(self, comparison: Comparison, arm: str, pretrain: Cell | None, seed: int) -> Cell:
        target, network = self.programme.targets[comparison.target], self.programme.networks[comparison.network]
        probe = "-probe" if comparison.probe else ""
        name = f"{target.name}-{network.name}{probe}-{100 * comparison.label_fraction:g}pct-{arm}-seed{seed}"
        run, data = f"{RUNS}/{name}", DATASETS[target.dataset].place
        of_probe = self.programme.probe if comparison.probe else ()
        settings = (*network.settings, *network.decoder, *target.settings, *of_probe, *self.extra)
        begin = ("finetune", "--task", target.task, "--data", data, "--run", run, "--network", network.name)
        start = ("--init", pretrain.folder) if pretrain else ()
        fraction = ("--label-fraction", f"{comparison.label_fraction:g}")
        common = self._common(self.programme.preset, settings, seed)
        commands = ((*begin, *start, *fraction, *common), ("evaluate", "--run", run, "--data", data))
        needs = (pretrain.name,) if pretrain else ()
        return self._cell(
            name, "finetune", seed=seed, commands=commands, datasets=(target.dataset,), needs=needs,
            preset=self.programme.preset, settings=settings, task=target.task,
            label_fraction=comparison.label_fraction,
        )  # fmt: skip

    def _common(self, preset: str, settings: Sequence[str], seed: int) -> Command:
        """The options that say how a cell is made."""
        config = ("--config", f"$OUT/{self.programme.name}.toml")
        chosen = ("--preset", preset) if preset != "default" else ()
        return (*chosen, *config, "--seed", str(seed), *(part for one in settings for part in ("--set", one)))

    def _cell(
        self, name: str, kind: CellKind, *, seed: int, commands: tuple[Command, ...], datasets: tuple[str, ...] = (),
        needs: tuple[str, ...] = (), preset: str, settings: tuple[str, ...], task: str = "",
        label_fraction: float | None = None,
    ) -> Cell:  # fmt: skip
        resolved = _resolve(
            self.programme.name, preset, settings, seed=seed, task=task, label_fraction=label_fraction
        )  # fmt: skip
        material = {section: resolved[section] for section in SECTIONS[kind]}
        return Cell(name, kind, seed, commands, datasets, needs, material)


def sizes_of(scale: str) -> str:
    """The settings file of a scale, as text."""
    return (resources.files("m3di.reproduce.scales") / f"{scale}.toml").read_text()


@cache
def _resolve(
    scale: str, preset: str, settings: tuple[str, ...], *, seed: int, task: str, label_fraction: float | None
) -> dict[str, Any]:  # fmt: skip
    """All settings as a cell's command line resolves them."""
    config = load_config(
        preset=preset,
        defaults=task_settings(task) if task else None,
        base=tomllib.loads(sizes_of(scale)),
        settings=settings,
        overrides=[("seed", seed), ("finetune.label_fraction", label_fraction)],
    )
    return config.to_dict()
