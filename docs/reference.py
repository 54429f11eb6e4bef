"""Writes the reference pages from the code: `settings.md`, `commands.md`, `api.md`. Run it after changing either.

    python docs/reference.py

A setting's meaning is the sentences of its class's docstring that name it; a setting that none names is an error.
"""

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
import typer

import m3di
from cli.app import app
from cli.options import Common
from m3di.config import PRESETS, Config, load_config

FOLDER = Path(__file__).parent
MADE = "<!-- Made by docs/reference.py: change the code, not this page. -->"
BOUNDS = {
    annotated_types.Gt: "over",
    annotated_types.Ge: "at least",
    annotated_types.Lt: "under",
    annotated_types.Le: "at most",
}
COMMON = {f"--{field.name}" for field in dataclasses.fields(Common)} | {"--help"}


def pages() -> dict[str, str]:
    """Name and text of each page."""
    return {"settings.md": settings_page(), "commands.md": commands_page(), "api.md": api_page()}


def settings_page() -> str:
    """Every setting: values, default, other presets, meaning."""
    lines = [
        "# Settings", "", MADE, "",
        "Any of them by `--set KEY=VALUE`, in a TOML file (`--config FILE.toml`) or in `m3di.toml` in the working",
        "directory, where `[pretrain]` with `batch_size = 8` below it is `pretrain.batch_size=8`. Later ones win:",
        "preset, `m3di.toml`, `--config`, `--set`, then a command's own options. The default is preset `default`'s.",
    ]  # fmt: skip
    presets = {name: load_config(preset=name) for name in PRESETS}
    lines += _section(Config, presets, "")
    return "\n".join(lines) + "\n"


def _section(cls: Any, values: dict[str, Any], prefix: str) -> list[str]:
    fields = [
        (field, typing.get_type_hints(cls, include_extras=True)[field.name]) for field in dataclasses.fields(cls)
    ]
    plain = [(field, hint) for field, hint in fields if not dataclasses.is_dataclass(hint)]
    lead, meanings = _meanings(cls, [field.name for field, _ in plain])
    lines = ["", f"## {prefix.rstrip('.')}" if prefix else "## All commands", "", lead, ""]
    lines += ["| setting | values | default | other presets | meaning |", "|---|---|---|---|---|"]
    for field, hint in plain:
        shown = {preset: _value(getattr(value, field.name)) for preset, value in values.items()}
        default = shown.pop("default")
        others = ", ".join(f"{preset} {value}" for preset, value in shown.items() if value != default)
        cells = (f"`{prefix}{field.name}`", _type(hint), default, others, meanings[field.name])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for field, hint in fields:
        if dataclasses.is_dataclass(hint):
            inner = {preset: getattr(value, field.name) for preset, value in values.items()}
            lines += _section(hint, inner, f"{prefix}{field.name}.")
    return lines


def _meanings(cls: Any, names: list[str]) -> tuple[str, dict[str, str]]:
    """The docstring's sentences that name no setting, and those that name each."""
    text, _, attributes = inspect.getdoc(cls).partition("Attributes:")
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(text.split()))
    named = {name: [one for one in sentences if re.search(rf"`{name}`", one)] for name in names}
    for entry in re.split(r"\n {4}(?=\w)", attributes):
        name, _, words = entry.partition(":")
        if name in named:
            named[name].append(" ".join(words.split()))
    silent = [name for name in names if not named[name]]
    if silent:
        raise SystemExit(f"the docstring of {cls.__name__} does not say what {', '.join(silent)} means")
    lead = [one for one in sentences if not any(one in said for said in named.values())]
    return " ".join(lead), {name: " ".join(said) for name, said in named.items()}


def _type(hint: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = " and ".join(f"{BOUNDS[type(one)]} {next(iter(vars_of(one)))}" for one in hint.__metadata__)
        return f"{_type(arguments[0])} {bounds}"
    if origin is typing.Literal:
        return ", ".join(_value(one) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join("nothing" if one is type(None) else _type(one) for one in arguments)
    if origin is tuple:
        is_open = arguments[-1] is Ellipsis
        return f"list of {_type(arguments[0])}" if is_open else f"list of {len(arguments)}: {_type(arguments[0])}"
    return {bool: "true, false", int: "whole number", float: "number", str: "text"}.get(hint, "table")


def vars_of(bound: Any) -> list[Any]:
    """The number of a bound such as `Gt(0)`."""
    return [getattr(bound, field.name) for field in dataclasses.fields(bound)]


def _value(value: Any) -> str:
    """A value as TOML has it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return "`[" + ", ".join(_value(one).strip("`") for one in value) + "]`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{name} = {_value(one).strip('`')}" for name, one in value.items()) + "}`"
    return f"`{value}`"


def commands_page() -> str:
    """Every command: what it does, usage, arguments, options, an example."""
    group = typer.main.get_command(app)
    commands = dict(_commands(group, "m3di"))
    shared = [parameter for parameter in next(iter(commands.values())).params if _name(parameter) in COMMON]
    lines = ["# Commands", "", MADE, "", "Options that every command has:", "", *_table(shared)]
    for name, command in commands.items():
        own = [parameter for parameter in command.params if _name(parameter) not in COMMON]
        arguments = [_usage(one) for one in own if one.param_type_name == "argument"]
        lines += ["", f"## {name}", "", " ".join(inspect.cleandoc(command.help).split()), ""]
        lines += [
            f"`{' '.join([name, *arguments, '[OPTIONS]'])}`. {command.epilog.replace('Example: ', 'Example: `')}`",
            "",
        ]
        lines += _table(own) if own else []
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, prefix: str) -> Any:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _table(parameters: list[Any]) -> list[str]:
    rows = [(f"`{_usage(one)}`", (one.help or "").strip()) for one in parameters]
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return ["| | |", "|---|---|", *cells]


def _usage(parameter: Any) -> str:
    """An argument or option as it is typed."""
    metavar = parameter.metavar or parameter.name.upper().rstrip("_")
    if parameter.param_type_name == "argument":
        metavar = metavar.removesuffix("...") + ("..." if parameter.nargs == -1 else "")
        return metavar if parameter.required else f"[{metavar}]"
    names = ", ".join(parameter.opts) + "".join(f" / {name}" for name in parameter.secondary_opts)
    return names if parameter.is_flag else f"{names} {metavar}"


def _name(parameter: Any) -> str:
    return next((name for name in parameter.opts if name.startswith("--")), parameter.name)


def api_page() -> str:
    """Every public name: its signature and the first line of its docstring."""
    lines = [
        "# Python", "", MADE, "",
        "`import m3di` offers these; each is imported at its first use. Errors that are raised on purpose are",
        "`M3diError`, with `code`, `message` and `hint` ([troubleshooting](troubleshooting.md)). What happens",
        "meanwhile goes to `report`, a function `report(event, /, **facts)`; `m3di.events.ignore` is one. Examples:",
        "`examples/own_loop.py`, `examples/own_encoder.py`.",
    ]  # fmt: skip
    for name in m3di.__all__:
        value = getattr(m3di, name)
        place = m3di._PLACES[name]
        lines += ["", f"## {name}", "", f"```text\n{_signature(name, value)}\n```", ""]
        lines += [f"{' '.join(inspect.getdoc(value).split(chr(10) * 2)[0].split())} (`{place}`)"]
    return "\n".join(lines) + "\n"


def _signature(name: str, value: Any) -> str:
    """How it is called; types are left out, as the docstring has them in words."""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return name
    if getattr(value, "_is_protocol", False) or (isinstance(value, type) and issubclass(value, Exception)):
        return name
    parameters = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    if name == "Config":
        return f"{name}(...)"
    return f"{name}{signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)}"


if __name__ == "__main__":
    for page, text in pages().items():
        (FOLDER / page).write_text(text)
