"""A run as a MONAI bundle: weights of MONAI's own class, metadata, and an inference that runs.

Layout and fields follow MONAI's bundle specification (docs.monai.io, `mb_specification`; schema of 2024-07-25).
"""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from m3di.config import ExportConfig
from m3di.exports.card import (
    METHOD,
    NOT_CLINICAL,
    TITLES,
    card,
    evaluation_of,
    intended_use,
    licence,
    preprocessing,
)
from m3di.exports.monai_networks import MonaiNetwork, monai_network
from m3di.exports.source import Source

SCHEMA: Final = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
BUNDLE_VERSION: Final = "0.1.0"
REQUIRED: Final = ("nibabel", "pytorch-ignite")  # beyond MONAI's own, for inference.json
TESTED_WITH: Final = {"nibabel": "5.4.2", "pytorch-ignite": "0.5.3"}
USAGE: Final = """\
Put scans into `data/`, then, in this folder:

```sh
pip install "monai[ignite,nibabel,fire]"
python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json --bundle_root .
```

{what} into `eval/`. `configs/inference.json` makes the cube by MONAI's transforms, which resample twice and take
their percentiles over all voxels: its cubes are close to m3di's own (`m3di.make_cube`), not equal.

```python
import torch
from monai.bundle import ConfigParser

parser = ConfigParser(ConfigParser.load_config_file("configs/inference.json"))
network = parser.get_parsed_content("network_def")  # {target}
network.load_state_dict(torch.load("models/model.pt", weights_only=True), strict=True)
```
"""
WRITES: Final = {
    "encoder": "It writes a vector of each scan",
    "segmentation": "It writes a mask of each scan",
    "classification": "It writes probabilities of each scan",
}


def prepare(source: Source, run: Path, settings: ExportConfig) -> Callable[[Path], None]:
    """Convert the network and make everything ready; returns what writes it into a folder.

    Raises:
        RefusedError: E_NETWORK, when MONAI has no such network.
    """
    found = monai_network(source)
    usage = USAGE.format(what=WRITES[source.kind], target=found.target)
    documents = {
        "configs/metadata.json": _json(metadata(source, found, run, settings)),
        "configs/inference.json": _json(inference(source, found)),
        "docs/README.md": card(source, run, settings, usage=usage),
        "LICENSE": licence(settings) + "\n",
    }

    def fill(folder: Path) -> None:
        for name, text in documents.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (folder / "models").mkdir()
        torch.save(found.state, folder / "models" / "model.pt")

    return fill


def metadata(source: Source, found: MonaiNetwork, run: Path, settings: ExportConfig) -> dict[str, Any]:
    """The fields of `metadata.json`."""
    evaluation = evaluation_of(run, source)
    means = {} if evaluation is None else evaluation["mean"]
    if source.kind == "segmentation" and means:
        scores = {f"mean_{metric}": values[0] for metric, values in means["scanner"]["all"].items()}
    else:
        scores = {metric: values[0] for metric, values in means.items()}
    cube = [source.recipe.cube_size] * 3
    image = {
        "type": "image", "format": "magnitude", "modality": source.modality, "num_channels": 1, "spatial_shape": cube,
        "dtype": "float32", "value_range": [0, 1], "is_patch_data": False, "channel_def": {"0": "image"},
    }  # fmt: skip
    channels = {str(number): name for number, name in enumerate(source.classes.values())}
    pred = {
        "type": "image" if source.kind == "segmentation" else "probabilities",
        "format": "segmentation" if source.kind == "segmentation" else source.kind,
        "num_channels": found.num_channels, "spatial_shape": cube if source.kind == "segmentation" else [],
        "dtype": "float32", "value_range": [], "is_patch_data": False, "channel_def": channels,
    }  # fmt: skip
    return {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: "exported by m3di"},
        "name": f"m3di {source.name}",
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": TESTED_WITH,
        "task": f"{TITLES[source.kind]}. {NOT_CLINICAL.replace('*', '')}",
        "description": f"{intended_use(source)} Input: {preprocessing(source)}",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": settings.data or "not stated",
        "license": settings.license or "not stated",
        "intended_use": f"{intended_use(source)} {NOT_CLINICAL.replace('*', '')}",
        "references": [METHOD],
        "eval_metrics": {name: value for name, value in scores.items() if value is not None},
        "m3di": dict(source.provenance),
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def inference(source: Source, found: MonaiNetwork) -> dict[str, Any]:
    """The least that runs: scans of `data/` to masks, or to a table of probabilities or vectors, in `eval/`."""
    network = {"_target_": found.target, **found.arguments}
    part = {"network_whole": network, "network_def": f"$@network_whole.{found.part}"} if found.part else {
        "network_def": network
    }  # fmt: skip
    plain = found.output == "y"
    call = f"$lambda x, network, *args, **kwargs: (lambda y: {found.output})(network(x, *args, **kwargs))"
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        **part,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _to_cube(source)},
        "dataset": {
            "_target_": "Dataset", "data": "$[{'image': path} for path in @datalist]", "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"} if plain else call,
        "postprocessing": {"_target_": "Compose", "transforms": _from_cube(source)},
        "handlers": [
            {
                "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"}, "map_location": "@device",
            },
            *_table_writer(source),
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@dataloader",
            "network": "@network", "inferer": "@inferer", "postprocessing": "@postprocessing",
            "val_handlers": "@handlers", "amp": False,
        },
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _to_cube(source: Source) -> list[dict[str, Any]]:
    """MONAI's transforms that come nearest to our cube: the scan at 1 mm, then J voxels along its longest side."""
    recipe, image = source.recipe, {"keys": "image"}
    if source.modality == "CT":
        low, high = recipe.ct_window_hu
        scale = {"_target_": "ScaleIntensityRanged", **image, "a_min": low, "a_max": high, "b_min": 0, "b_max": 1}
    else:
        lower, upper = recipe.mr_percentiles
        scale = {
            "_target_": "ScaleIntensityRangePercentilesd", **image, "lower": lower, "upper": upper, "b_min": 0,
            "b_max": 1,
        }  # fmt: skip
    return [
        {"_target_": "LoadImaged", **image, "ensure_channel_first": True},
        {"_target_": "Orientationd", **image, "axcodes": "RAS", "labels": None},
        {**scale, "clip": True},
        {"_target_": "Spacingd", **image, "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
        {
            "_target_": "Resized", **image, "spatial_size": recipe.cube_size, "size_mode": "longest",
            "mode": "trilinear", "anti_aliasing": True,
        },
        {"_target_": "SpatialPadd", **image, "spatial_size": [recipe.cube_size] * 3},
        {"_target_": "EnsureTyped", **image, "dtype": "$torch.float32"},
    ]  # fmt: skip


def _from_cube(source: Source) -> list[dict[str, Any]]:
    if source.kind == "encoder":
        return [{"_target_": "EnsureTyped", "keys": "pred"}]
    softmax = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    if source.kind == "classification":
        return [softmax]
    values, indices = list(source.classes), list(range(len(source.classes)))
    label = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    mapping = {"_target_": "MapLabelValued", "keys": "pred", "orig_labels": indices, "target_labels": values}
    mapped = [] if values == indices else [mapping]
    return [
        softmax,
        {
            "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
            "nearest_interp": False, "to_tensor": True,
        },
        label,
        *mapped,
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "resample": False},
    ]  # fmt: skip


def _table_writer(source: Source) -> list[dict[str, Any]]:
    if source.kind == "segmentation":
        return []
    name = "probabilities.csv" if source.kind == "classification" else "vectors.csv"
    return [
        {
            "_target_": "ClassificationSaver", "output_dir": "@output_dir", "filename": name,
            "batch_transform": "$lambda batch: [item['image'].meta for item in batch]",
            "output_transform": "$monai.handlers.from_engine(['pred'])",
        }
    ]  # fmt: skip


def _json(value: object) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
