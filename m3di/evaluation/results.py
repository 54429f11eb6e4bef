"""Results as files and other programs take them."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refusal:
    """A case that was not scored, and why."""

    case: str
    code: str
    message: str


def jsonable(value: Any) -> Any:
    """A value for strict JSON, which knows no NaN: what is not known is null, and tuples are lists."""
    if isinstance(value, dict):
        return {key: jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
