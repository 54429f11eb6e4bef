"""The logical key (volume, plane, slice) and how it becomes bytes; see FORMAT.md, section 4."""

import re
from typing import Final

from stores.errors import RefusedError
from stores.geometry import PLANES

VOLUME_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
FINGERPRINT_LENGTH: Final = 16  # hex digits of a fingerprint that go into keys and folder names


def check_volume_id(volume: str) -> str:
    """Return `volume` when it is a legal id.

    Raises:
        RefusedError: E_PATH, when it holds anything but letters, digits, dot, dash and underscore.
    """
    if not VOLUME_ID.fullmatch(volume) or volume.startswith("."):
        raise RefusedError(
            "E_PATH", f"volume id {volume!r} is not usable", hint="use letters, digits, '.', '_' and '-'"
        )
    return volume


def volume_key(volume: str) -> bytes:
    """Key of a volume's commit record, and of its quarantine row."""
    return check_volume_id(volume).encode("ascii")


def derived_key(fingerprint: str, volume: str) -> bytes:
    """Key of what a captioner or teacher, named by its fingerprint, made of a volume."""
    return f"{fingerprint[:FINGERPRINT_LENGTH]}/{check_volume_id(volume)}".encode("ascii")


def block_key(fingerprint: str, volume: str, plane: int) -> bytes:
    """Key of the block of rows of one plane of a volume."""
    return derived_key(fingerprint, volume) + f"/{plane}".encode("ascii")


def plane_number(name: str) -> int:
    """Number of a plane by its name.

    Raises:
        RefusedError: E_CONFIG, for a name that is no plane.
    """
    if name not in PLANES:
        raise RefusedError("E_CONFIG", f"no plane is called {name!r}", hint=f"use one of {', '.join(PLANES)}")
    return PLANES.index(name)
