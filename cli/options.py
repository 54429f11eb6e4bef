"""Options that every command has, the places it works on, and where their values come from."""

import functools
import inspect
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import Output
from stores.errors import RefusedError

if TYPE_CHECKING:
    from m3di.config import Config

SETTINGS_FILE = Path("m3di.toml")
PLACES = ("store", "data", "runs", "sources")  # keys of m3di.toml that are places, not settings


@dataclass(frozen=True)
class Common:
    """The options of every command; the annotations become command-line options."""

    preset: Annotated[str, typer.Option(help="default, paper, author or smoke")] = "default"
    config: Annotated[Path | None, typer.Option(help="TOML file with settings")] = None
    set: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="one setting; repeatable")] = None
    seed: Annotated[int | None, typer.Option(help="seed of everything random")] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto"
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but errors")] = False
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False

    @property
    def output(self) -> Output:
        """Where this command's output goes."""
        return Output(json=self.json, quiet=self.quiet, verbose=self.verbose)

    def load_config(self, *, defaults: Mapping[str, Any] | None = None, **overrides: Any) -> "Config":
        """Resolve the settings: defaults, preset, m3di.toml, --config, --set, then the command's own options.

        Args:
            defaults: Settings below the preset, such as those of a task.
            overrides: Values of the command's own options by dotted name, with `__` for the dot; None is not given.
        """
        from m3di.config import load_config

        settings = {name: value for name, value in settings_file().items() if name not in PLACES}
        pairs = [(name.replace("__", "."), value) for name, value in overrides.items()]
        return load_config(
            preset=self.preset,
            defaults=defaults,
            files=[self.config] if self.config else [],
            settings=self.set or [],
            overrides=[*pairs, ("seed", self.seed)],
            base=settings,
        )


StoreOption = Annotated[Path | None, typer.Option("--store", help="the store [env: M3DI_STORE; else ./store]")]
DataOption = Annotated[Path | None, typer.Option("--data", help="the dataset [env: M3DI_DATA, task's name below it]")]
RunOption = Annotated[Path | None, typer.Option("--run", help="the run's folder [else runs/<time>-<name>]")]
LeaveOutOption = Annotated[
    list[str] | None,
    typer.Option("--leave-out", metavar="TASK:DATA|RUN", help="keep the people out whom a task tests; repeatable"),
]
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a page to look at, too")]


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is a `Common`, the options that every command has."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        common = Common(**{field.name: options.pop(field.name) for field in fields(Common)})
        command(common, **options)

    own = list(inspect.signature(command).parameters.values())[1:]
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(Common)
    ]
    run.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keyword, *shared]}
    return run


def settings_file() -> dict[str, Any]:
    """The content of `m3di.toml` in the working directory; empty without one.

    Raises:
        RefusedError: E_CONFIG, when it is not TOML.
    """
    if not SETTINGS_FILE.exists():
        return {}
    try:
        return tomllib.loads(SETTINGS_FILE.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RefusedError("E_CONFIG", f"{SETTINGS_FILE} is not valid TOML: {error}", hint="correct it") from error


def store_path(given: Path | None) -> Path:
    """The store: --store, M3DI_STORE, m3di.toml, else `store` in the working directory."""
    return given or _place("store", "M3DI_STORE") or Path("store")


def data_path(given: Path | None, task: str) -> Path:
    """The dataset of a task: --data, else the task's name below M3DI_DATA or below m3di.toml's `data`.

    Raises:
        RefusedError: E_MISSING, when none of them is set.
    """
    if given:
        return given
    root = _place("data", "M3DI_DATA")
    if root is None:
        hint = f"give --data DIR, or set M3DI_DATA to a folder that holds {task}/"
        raise RefusedError("E_MISSING", f"no data for task {task!r}", hint=hint)
    return root / task


def data_root(given: Path | None) -> Path | None:
    """The folder that holds several datasets: --data, M3DI_DATA, or m3di.toml's `data`; None when nothing says."""
    return given or _place("data", "M3DI_DATA")


def source_paths(given: list[Path] | None) -> list[Path]:
    """The sources of a build: as given, else m3di.toml's `sources`, else every folder below M3DI_DATA.

    Raises:
        RefusedError: E_MISSING, when none of them is set.
    """
    if given:
        return given
    listed = settings_file().get("sources")
    if listed:
        return [Path(source) for source in listed]
    root = _place("data", "M3DI_DATA")
    if root is None or not root.is_dir():
        hint = "give SOURCE, set M3DI_DATA to a folder of datasets, or write `sources = [...]` into m3di.toml"
        raise RefusedError("E_MISSING", "no scans to build from", hint=hint)
    return sorted(entry for entry in root.iterdir() if entry.is_dir())


def new_run(given: Path | None, name: str) -> Path:
    """A run's folder: --run, else `runs/<time>-<name>`."""
    if given:
        return given
    runs = _place("runs", "M3DI_RUNS") or Path("runs")
    return runs / f"{datetime.now():%Y%m%d-%H%M%S}-{name}"


def _place(key: str, variable: str) -> Path | None:
    value = os.environ.get(variable) or settings_file().get(key)
    return Path(value).expanduser() if value else None
