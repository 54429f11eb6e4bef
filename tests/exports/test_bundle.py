import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser, verify_net_in_out

from m3di.config import ExportConfig
from m3di.exports.bundle import prepare
from tests.exports.made import source
from tests.phantoms import head, ras_affine, write_scan

# What meta_schema_20240725.json requires, of the bundle and of every tensor.
FIELDS = {
    "schema": str, "version": str, "monai_version": str, "pytorch_version": str, "numpy_version": str,
    "required_packages_version": dict, "task": str, "description": str, "authors": str, "copyright": str,
    "network_data_format": dict, "changelog": dict, "eval_metrics": dict, "intended_use": str, "references": list,
    "data_source": str,
}  # fmt: skip
TENSOR = {
    "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list,
    "is_patch_data": bool, "channel_def": dict,
}  # fmt: skip
VIT = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 2}
KINDS = {
    "segmentation": ("nnunet", {"filters": (4, 6, 8)}),
    "classification": ("resnet10", {"stem_stride": 1}),
    "encoder": ("vit", VIT),
}
VALUES = {0: "background", 2: "front", 5: "back"}


def bundle(folder, kind):
    name, options = KINDS[kind]
    found = source(kind, name, **options)
    prepare(found, folder / "run", ExportConfig())(folder)
    return found


def settings(folder, name):
    return json.loads((folder / "configs" / f"{name}.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_has_the_fields_of_the_schema(kind, tmp_path):
    found = bundle(tmp_path, kind)
    metadata = settings(tmp_path, "metadata")
    assert {name: type(metadata[name]) for name in FIELDS} == FIELDS
    tensors = [
        *metadata["network_data_format"]["inputs"].values(),
        *metadata["network_data_format"]["outputs"].values(),
    ]
    for tensor in tensors:
        assert {name: type(tensor[name]) for name in TENSOR} == TENSOR
    assert tensors[1]["num_channels"] == (24 if kind == "encoder" else len(found.classes))
    assert (tmp_path / "LICENSE").read_text()
    assert "Not for clinical use" in (tmp_path / "docs" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_monai_finds_the_network_as_the_metadata_says(kind, tmp_path):
    bundle(tmp_path, kind)
    files = {f"{part}_file": str(tmp_path / "configs" / name) for part, name in (
        ("meta", "metadata.json"), ("config", "inference.json"),
    )}  # fmt: skip
    verify_net_in_out("network_def", device="cpu", **files)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_takes_the_saved_weights_strictly(kind, tmp_path):
    bundle(tmp_path, kind)
    network = ConfigParser(settings(tmp_path, "inference")).get_parsed_content("network_def")
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert network.load_state_dict(state, strict=True).missing_keys == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of MONAI's readers and evaluators, such as on codecs that are not there
def test_inference_runs(kind, tmp_path):
    pytest.importorskip("ignite", reason="pytorch-ignite, which MONAI's evaluators need, is not installed")
    bundle(tmp_path, kind)
    for number, seed in enumerate((1, 2)):
        image = head((20, 24, 18), seed=seed)[0]
        write_scan(tmp_path / "data" / f"scan-{number}.nii.gz", image, affine=ras_affine((1.5, 1.25, 2.0), (3, 4, 5)))
    parser = ConfigParser(settings(tmp_path, "inference"))
    parser["bundle_root"], parser["device"] = str(tmp_path), "$torch.device('cpu')"
    parser.get_parsed_content("run")
    if kind == "segmentation":
        masks = sorted((tmp_path / "eval").rglob("*.nii.gz"))
        scan, mask = sitk.ReadImage(tmp_path / "data" / "scan-0.nii.gz"), sitk.ReadImage(masks[0])
        assert len(masks) == 2
        assert mask.GetSize() == scan.GetSize()
        np.testing.assert_allclose(mask.GetOrigin(), scan.GetOrigin(), atol=1e-4)
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}
        return
    (table,) = (tmp_path / "eval").glob("*.csv")
    rows = list(csv.reader(table.open()))
    assert [len(row) for row in rows] == [1 + (24 if kind == "encoder" else 3)] * 2
    if kind == "classification":
        np.testing.assert_allclose([sum(map(float, row[1:])) for row in rows], 1, rtol=1e-4)


def test_labels_keep_their_values(tmp_path):
    name, options = KINDS["segmentation"]
    found = source("segmentation", name, **options)
    object.__setattr__(found, "classes", VALUES)
    prepare(found, tmp_path, ExportConfig())(tmp_path)
    (mapping,) = [
        transform for transform in settings(tmp_path, "inference")["postprocessing"]["transforms"]
        if transform["_target_"] == "MapLabelValued"
    ]  # fmt: skip
    assert (mapping["orig_labels"], mapping["target_labels"]) == ([0, 1, 2], [0, 2, 5])
