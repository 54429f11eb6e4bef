"""The networks by name. Families are imported when one of theirs is built: MONAI alone takes seconds.

To add an encoder, write a factory `f(*, cube_size, **options) -> Encoder` and name it in `ENCODERS`; with a pooled
head it is a classification network too. To add a segmentation network, write a decoder
`f(encoder, num_classes, **options)`, which gives a `SegmentationOutput` for a volume and its `EncoderOutput`, and
name both in `SEGMENTATION`.

Your own encoder needs no change here. It is an `nn.Module` that keeps the protocol of `m3di.networks.encoders`: it
has `token_dim`, `token_stride` and `cube_size`, is built from the keyword `cube_size` and options of its own, and
gives an `EncoderOutput` for volumes (b, 1, d, h, w). Name it as `module:factory` (the module must be importable, for
example by PYTHONPATH), or let your package declare it under a name of its own:

    [project.entry-points."m3di.encoders"]
    mine = "my_package.my_module:MyEncoder"

`check_outputs` runs it once and says what does not fit.
"""

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from m3di.networks.classification import ClassificationNetwork
from m3di.networks.encoders import Encoder, EncoderOutput, as_module
from m3di.networks.segmentation import SegmentationNetwork
from stores.errors import RefusedError

ENCODERS: Final = {
    "vit": "m3di.networks.vit:vit",
    "unetr": "m3di.networks.vit:unetr",
    "setr": "m3di.networks.vit:setr",
    "swin": "m3di.networks.swin:SwinEncoder",
    "video_swin": "m3di.networks.video_swin:VideoSwinEncoder",
    "nnformer": "m3di.networks.nnformer:NNFormerEncoder",
    "resnet10": "m3di.networks.convolutional:resnet10",
    "resnet18": "m3di.networks.convolutional:resnet18",
    "resnet34": "m3di.networks.convolutional:resnet34",
    "resnet50": "m3di.networks.convolutional:resnet50",
    "resnet101": "m3di.networks.convolutional:resnet101",
    "medicalnet": "m3di.networks.convolutional:MedicalNetEncoder",
    "densenet121": "m3di.networks.convolutional:DenseNet121Encoder",
    "unet": "m3di.networks.convolutional:UNetEncoder",
    "dynunet": "m3di.networks.convolutional:DynUNetEncoder",
    "attention_unet": "m3di.networks.attention_unet:AttentionUNetEncoder",
    "transunet": "m3di.networks.transunet:TransUNetEncoder",
}
ENTRY_POINTS: Final = "m3di.encoders"


class Segmentation(NamedTuple):
    """A segmentation network's two halves.

    Attributes:
        encoder: Name in `ENCODERS`: weights pretrained under it load strictly.
        decoder: Where the decoder's factory is, `module:name`.
        supervises: Whether the decoder has the option `deep_supervision`.
    """

    encoder: str
    decoder: str
    supervises: bool = False


SEGMENTATION: Final = {
    "unet": Segmentation("unet", "m3di.networks.unet:UNetDecoder"),
    "attention_unet": Segmentation("attention_unet", "m3di.networks.attention_unet:AttentionUNetDecoder"),
    "med3d": Segmentation("medicalnet", "m3di.networks.med3d:Med3DDecoder"),
    "transunet": Segmentation("transunet", "m3di.networks.transunet:TransUNetDecoder", supervises=True),
    "nnunet": Segmentation("dynunet", "m3di.networks.unet:DynUNetDecoder", supervises=True),
    "setr_pup": Segmentation("setr", "m3di.networks.setr:PUPDecoder", supervises=True),
    "setr_naive": Segmentation("setr", "m3di.networks.setr:NaiveDecoder", supervises=True),
    "setr_mla": Segmentation("setr", "m3di.networks.setr:MLADecoder", supervises=True),
    "unetr": Segmentation("unetr", "m3di.networks.unetr:UNETRDecoder"),
    "nnformer": Segmentation("nnformer", "m3di.networks.nnformer:NNFormerDecoder", supervises=True),
    "swin_unetr": Segmentation("swin", "m3di.networks.unetr:SwinUNETRDecoder"),
    "vit": Segmentation("vit", "m3di.networks.segmentation:ProgressiveUpsampling"),
}


class Classification(NamedTuple):
    """A classification network's two halves, or a whole network.

    Attributes:
        encoder: Name in `ENCODERS`: weights pretrained under it load strictly. None for a whole network.
        head: Where the factory of the head, or of the whole network, is: `module:name`.
    """

    encoder: str | None
    head: str


POOLED_HEAD: Final = "m3di.networks.classification:PooledHead"
CLASSIFICATION: Final = {
    **{name: Classification(name, POOLED_HEAD) for name in ENCODERS},
    "vit": Classification("vit", "m3di.networks.class_token:vit_head"),
    "mrnet": Classification(None, "m3di.networks.mrnet:MRNet"),
    "m3t": Classification(None, "m3di.networks.m3t:M3T"),
}


def create_encoder(name: str, *, cube_size: int, **options: Any) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: Name in `ENCODERS`, of an entry point, or `module:factory`.
        cube_size: Edge of the input cube in voxels.
        options: The family's own options, such as `patch_size` of `vit`.

    Raises:
        RefusedError: E_NETWORK, for an unknown name or option, sizes that do not fit together, or a foreign encoder
            that does not keep the protocol.
    """
    factory = _find(name)
    _require_options(name, options, factory)
    encoder = factory(cube_size=cube_size, **options)
    if name not in ENCODERS:
        _require_protocol(name, encoder, cube_size)
    return encoder


@torch.no_grad()
def check_outputs(encoder: Encoder) -> None:
    """Run an encoder once on a volume of zeros and compare what it gives with what it promises.

    Raises:
        RefusedError: E_NETWORK, naming the first thing that does not fit.
    """
    module = as_module(encoder)
    training = module.training
    output = module.eval()(torch.zeros(1, 1, *(encoder.cube_size,) * 3))
    module.train(training)
    if not isinstance(output, EncoderOutput):
        raise _foreign(encoder, f"gives {type(output).__name__}, not an EncoderOutput")
    expected = (1, math.prod(output.grid), encoder.token_dim)
    if tuple(output.tokens.shape) != expected:
        raise _foreign(encoder, f"gives tokens {tuple(output.tokens.shape)}, but grid and token_dim say {expected}")
    last = (1, encoder.token_dim, *output.grid)
    if not output.pyramid or tuple(output.pyramid[-1].shape) != last:
        shapes = [tuple(level.shape) for level in output.pyramid]
        raise _foreign(encoder, f"gives a pyramid {shapes}, whose last map is not {last}")


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


def create_classification(name: str, *, cube_size: int, num_classes: int, **options: Any) -> ClassificationNetwork:
    """Build a classification network with random weights; `mrnet` and `m3t` may begin with ImageNet's.

    Args:
        name: Name in `CLASSIFICATION`, or your own encoder's, as for `create_encoder`; it gets a pooled head.
        cube_size: Edge of the input cube in voxels.
        num_classes: Number of classes; 2 for yes and no.
        options: Options of the encoder and of the head, told apart by their names.

    Raises:
        RefusedError: E_NETWORK, as for `create_encoder`, or for fewer than two classes.
    """
    if ":" not in name:
        declared = entry_points(group=ENTRY_POINTS).names
        _require_known("classification network", name, CLASSIFICATION.keys() | declared)
    if num_classes < 2:
        message = f"{name} needs at least 2 classes, not {num_classes}"
        raise RefusedError("E_NETWORK", message, hint="count yes and no as two classes")
    encoder_name, head_place = CLASSIFICATION.get(name, Classification(name, POOLED_HEAD))
    head_factory = _load(head_place)
    for_head = _options(head_factory)
    if encoder_name is None:
        _require_known(f"option of network {name}", options, for_head)
        return ClassificationNetwork(None, head_factory(num_classes, cube_size=cube_size, **options))
    if encoder_name in ENCODERS:
        _require_known(f"option of network {name}", options, for_head | _options(_find(encoder_name)))
    of_encoder = {k: v for k, v in options.items() if k not in for_head}
    encoder = create_encoder(encoder_name, cube_size=cube_size, **of_encoder)
    head: nn.Module = head_factory(encoder, num_classes, **{k: v for k, v in options.items() if k in for_head})
    return ClassificationNetwork(encoder, head)


def options_of(network: Segmentation | Classification) -> set[str]:
    """Name the options of a network: those of its encoder and of its decoder or head.

    Raises:
        RefusedError: E_NETWORK, for an encoder that is not known.
    """
    place = network.decoder if isinstance(network, Segmentation) else network.head
    return _options(_load(place)) | (_options(_find(network.encoder)) if network.encoder else set())


def _find(name: str) -> Callable[..., Any]:
    """Find an encoder's factory: ours, a package's, or one named by its place."""
    if name in ENCODERS:
        return _load(ENCODERS[name])
    if ":" in name:
        return _import(name, partial(_load, name))
    declared: dict[str, EntryPoint] = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    _require_known("encoder", name, ENCODERS.keys() | declared.keys())
    return _import(name, declared[name].load)


def _load(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _import(name: str, load: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    try:
        return load()
    except (ImportError, AttributeError, ValueError) as error:
        hint = "name it as module:factory, and make the module importable (PYTHONPATH)"
        raise RefusedError("E_NETWORK", f"encoder {name!r} cannot be imported: {error}", hint=hint) from error


def _options(factory: Callable[..., Any]) -> set[str]:
    """Name the parameters of a factory, except what m3di gives and what a `partial` has bound."""
    parameters = inspect.signature(factory).parameters.values()
    bound = factory.keywords.keys() if isinstance(factory, partial) else set()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named - {"cube_size", "encoder", "num_classes"} - bound


def _require_options(name: str, options: Iterable[str], factory: Callable[..., Any]) -> None:
    """Refuse options that a factory does not name, unless it takes any."""
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    if "cube_size" not in parameters:
        raise _foreign(name, "takes no cube_size")
    _require_known(f"option of encoder {name}", options, _options(factory))


def _require_protocol(name: str, encoder: object, cube_size: int) -> None:
    if not isinstance(encoder, nn.Module):
        raise _foreign(name, f"is a {type(encoder).__name__}, not an nn.Module")
    for attribute in ("token_dim", "token_stride", "cube_size"):
        value = getattr(encoder, attribute, None)
        if not isinstance(value, int) or value < 1:
            raise _foreign(name, f"has {attribute} {value!r}, not a positive int")
    if encoder.cube_size != cube_size:
        raise _foreign(name, f"has cube_size {encoder.cube_size}, but was built for {cube_size}")


def _foreign(encoder: object, mistake: str) -> RefusedError:
    name = encoder if isinstance(encoder, str) else type(encoder).__name__
    hint = "see the protocol in m3di.networks.encoders"
    return RefusedError("E_NETWORK", f"encoder {name!r} {mistake}", hint=hint)


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
