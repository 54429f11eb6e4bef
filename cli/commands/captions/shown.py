"""How the nested facts of the captions' commands are laid out for people."""

from collections.abc import Mapping
from typing import Any


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Facts within facts as one level, their names joined; lists as text."""
    shown: dict[str, object] = {}
    for name, value in facts.items():
        full = f"{prefix} {name.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            shown |= flat(value, full)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for one in value:
                shown |= flat(one, f"{full} {' '.join(str(part) for part in list(one.values())[:1])}")
        else:
            shown[full] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return shown
