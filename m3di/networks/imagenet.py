"""ImageNet weights of torchvision's 2D networks, where they already lie on the disk; nothing is ever downloaded."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch

from m3di.types import Tensor
from stores.errors import RefusedError


def find_imagenet(url: str, *, wanted: bool | None) -> Mapping[str, Tensor] | None:
    """Read weights from torch's folder of checkpoints, if they are there.

    Args:
        url: Where torchvision publishes them.
        wanted: True refuses to go without them, None takes them where they are, False never looks.

    Returns:
        The state dict, or None.

    Raises:
        RefusedError: E_WEIGHTS, if wanted weights are not there, or a file is not what torchvision published.
    """
    if wanted is False:
        return None
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if path.is_file():
        _require_published(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    if wanted is None:
        return None
    raise RefusedError("E_WEIGHTS", f"no ImageNet weights at {path}", hint=f"put {url} there, or leave imagenet out")


def _require_published(path: Path) -> None:
    """Check the digest whose first digits torchvision writes into the name: `NAME-DIGEST.pth`."""
    published = path.stem.rpartition("-")[2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(published):
        message = f"{path} has sha256 {digest[:8]}..., not {published}..."
        raise RefusedError("E_WEIGHTS", message, hint="delete the file, or fetch it again")
