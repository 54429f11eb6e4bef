"""The settings of a run that are not what everybody gets."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from m3di.config import load_config
from m3di.report.page import Paragraph, Section, Table
from m3di.tasks.registry import TASKS

USED: Final = (
    "seed",
    "volumes",
    "encoder",
    "finetune",
    "split",
)  # what fine-tuning reads; the rest is other commands'


def settings_section(settings: Mapping[str, Any], task: str) -> Section:
    """Settings that differ from those of preset `default` for the task.

    Args:
        settings: Those of the run, as `config.json` has them.
        task: Name of its task, whose own settings are defaults too.
    """
    own = TASKS[task].settings if task in TASKS else {}
    rows = differences(settings, load_config(defaults=own).to_dict())
    if not rows:
        return Section("Settings", [Paragraph("All as preset default has them.")])
    return Section(
        "Settings", [Table(("setting", "this run", "default"), rows, "Settings that differ from defaults")]
    )


def differences(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, default) of each setting of fine-tuning that differs, by dotted name."""
    mine, theirs = (
        dict(_flat({name: found[name] for name in USED if name in found})) for found in (settings, defaults)
    )
    names = dict.fromkeys([*theirs, *mine])
    return [
        (name, _written(mine, name), _written(theirs, name)) for name in names if mine.get(name) != theirs.get(name)
    ]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _written(values: Mapping[str, Any], name: str) -> str:
    """A value as a TOML file would have it, as far as JSON is the same."""
    value = values.get(name)
    if value is None:
        return "none"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
