"""m3di pretrains 3D medical image encoders with frozen 2D vision-language models (the Med3DInsight method).

The names below are the whole path from scans to predictions; `docs/api.md` lists them with their signatures. Each is
imported at its first use, so that `import m3di` costs next to nothing.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from m3di.build import build_store
    from m3di.config import Config, load_config
    from m3di.evaluation.evaluate import evaluate
    from m3di.evaluation.predict import predict_scans
    from m3di.networks.encoders import Encoder, EncoderOutput
    from m3di.networks.psat import PlaneSliceAwareTransformer
    from m3di.networks.registry import check_outputs, create_classification, create_encoder, create_segmentation
    from m3di.networks.weights import load_public_weights
    from m3di.query import Searcher, Wanted
    from m3di.training.finetune import finetune, load_network
    from m3di.training.loader import BatchReader, prefetch
    from m3di.training.pretrain import pretrain
    from m3di.training.pretrained import load_encoder, recipe_of
    from m3di.training.sampler import PlaneSliceSampler
    from m3di.volumes.layouts import discover
    from m3di.volumes.preprocess import make_cube
    from m3di.volumes.readers import read_volume
    from stores import Store
    from stores.errors import M3diError

__all__ = [
    "BatchReader",
    "Config",
    "Encoder",
    "EncoderOutput",
    "M3diError",
    "PlaneSliceAwareTransformer",
    "PlaneSliceSampler",
    "Searcher",
    "Store",
    "Wanted",
    "build_store",
    "check_outputs",
    "create_classification",
    "create_encoder",
    "create_segmentation",
    "discover",
    "evaluate",
    "finetune",
    "load_config",
    "load_encoder",
    "load_network",
    "load_public_weights",
    "make_cube",
    "predict_scans",
    "prefetch",
    "pretrain",
    "read_volume",
    "recipe_of",
]

_PLACES: Final = {
    "BatchReader": "m3di.training.loader",
    "Config": "m3di.config",
    "Encoder": "m3di.networks.encoders",
    "EncoderOutput": "m3di.networks.encoders",
    "M3diError": "stores.errors",
    "PlaneSliceAwareTransformer": "m3di.networks.psat",
    "PlaneSliceSampler": "m3di.training.sampler",
    "Searcher": "m3di.query",
    "Store": "stores",
    "Wanted": "m3di.query",
    "build_store": "m3di.build",
    "check_outputs": "m3di.networks.registry",
    "create_classification": "m3di.networks.registry",
    "create_encoder": "m3di.networks.registry",
    "create_segmentation": "m3di.networks.registry",
    "discover": "m3di.volumes.layouts",
    "evaluate": "m3di.evaluation.evaluate",
    "finetune": "m3di.training.finetune",
    "load_config": "m3di.config",
    "load_encoder": "m3di.training.pretrained",
    "load_network": "m3di.training.finetune",
    "load_public_weights": "m3di.networks.weights",
    "make_cube": "m3di.volumes.preprocess",
    "predict_scans": "m3di.evaluation.predict",
    "prefetch": "m3di.training.loader",
    "pretrain": "m3di.training.pretrain",
    "read_volume": "m3di.volumes.readers",
    "recipe_of": "m3di.training.pretrained",
}

if not TYPE_CHECKING:  # a checker that saw it would believe any name

    def __getattr__(name):
        """Import a public name at its first use."""
        if name not in _PLACES:
            raise AttributeError(f"module 'm3di' has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415

        value = globals()[name] = getattr(import_module(_PLACES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
