"""The networks by name. Families are imported when one of theirs is built: MONAI alone takes seconds.

To add an encoder, write a factory `f(*, cube_size, **options) -> Encoder` and name it in `ENCODERS`. To add a
segmentation network, write a decoder `f(encoder, num_classes, **options)` and name both in `SEGMENTATION`.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from torch import nn

from m3di.networks.encoders import Encoder
from m3di.networks.segmentation import SegmentationNetwork
from stores.errors import RefusedError

ENCODERS: Final = {
    "vit": "m3di.networks.vit:vit",
    "unetr": "m3di.networks.vit:unetr",
    "swin": "m3di.networks.swin:SwinEncoder",
}


class Segmentation(NamedTuple):
    """A segmentation network's two halves.

    Attributes:
        encoder: Name in `ENCODERS`: weights pretrained under it load strictly.
        decoder: Where the decoder's factory is, `module:name`.
    """

    encoder: str
    decoder: str


SEGMENTATION: Final = {
    "vit": Segmentation("vit", "m3di.networks.segmentation:ProgressiveUpsampling"),
    "unetr": Segmentation("unetr", "m3di.networks.unetr:UNETRDecoder"),
    "swin_unetr": Segmentation("swin", "m3di.networks.unetr:SwinUNETRDecoder"),
}


def create_encoder(name: str, *, cube_size: int, **options: Any) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: Name in `ENCODERS`.
        cube_size: Edge of the input cube in voxels.
        options: The family's own options, such as `patch_size` of `vit`.

    Raises:
        RefusedError: E_NETWORK, for an unknown name or option, or sizes that do not fit together.
    """
    _require_known("encoder", name, ENCODERS)
    factory = _load(ENCODERS[name])
    _require_known(f"option of encoder {name}", options, _options(factory))
    return factory(cube_size=cube_size, **options)


def create_segmentation(name: str, *, cube_size: int, num_classes: int, **options: Any) -> SegmentationNetwork:
    """Build a segmentation network with random weights.

    Args:
        name: Name in `SEGMENTATION`.
        cube_size: Edge of the input cube in voxels.
        num_classes: Number of classes, background included.
        options: Options of the encoder and of the decoder, told apart by their names.

    Raises:
        RefusedError: E_NETWORK, as for `create_encoder`, or for fewer than two classes.
    """
    _require_known("segmentation network", name, SEGMENTATION)
    if num_classes < 2:
        raise RefusedError(
            "E_NETWORK",
            f"{name} needs at least 2 classes, not {num_classes}",
            hint="count the background as a class",
        )
    encoder_factory, decoder_factory = _load(ENCODERS[SEGMENTATION[name].encoder]), _load(SEGMENTATION[name].decoder)
    for_encoder, for_decoder = _options(encoder_factory), _options(decoder_factory)
    _require_known(f"option of network {name}", options, for_encoder | for_decoder)
    encoder = encoder_factory(cube_size=cube_size, **{k: v for k, v in options.items() if k in for_encoder})
    decoder: nn.Module = decoder_factory(
        encoder, num_classes, **{k: v for k, v in options.items() if k in for_decoder}
    )
    return SegmentationNetwork(encoder, decoder)


def _load(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _options(factory: Callable[..., Any]) -> set[str]:
    """Name the keyword-only parameters of a factory, except the cube's size."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"cube_size"}


def _require_known(kind: str, given: str | Iterable[str], known: Iterable[str]) -> None:
    names = sorted(known)
    for name in [given] if isinstance(given, str) else given:
        if name in names:
            continue
        near = difflib.get_close_matches(name, names, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise RefusedError(
            "E_NETWORK", f"unknown {kind}: {name!r}", hint=f"{guess}known are {', '.join(names) or 'none'}"
        )
