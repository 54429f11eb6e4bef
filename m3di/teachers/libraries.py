"""Imports open_clip, which reads once, at import, whether it may use the network."""

import importlib
import os
from typing import Any

__all__ = ["import_open_clip"]


def import_open_clip(*, offline: bool) -> Any:
    """Return the module open_clip.

    Args:
        offline: Set HF_HUB_OFFLINE first, unless the user has set it. It counts when huggingface_hub is imported;
            without it each call to a hub that cannot be reached waits for up to 48 s.
    """
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return importlib.import_module("open_clip")
