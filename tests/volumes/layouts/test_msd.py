import json

import nibabel
import numpy as np
import pytest

from m3di.volumes.layouts import discover, survey
from m3di.volumes.layouts.msd import label_names
from m3di.volumes.prepare import identify
from m3di.volumes.readers import read_volume
from stores.errors import CaseError, RefusedError
from stores.recipe import Recipe
from tests.phantoms import head, ras_affine, write_msd_dataset
from tests.volumes.layouts import ids, touch

# name, modality and labels as the decathlon's own manifests have them: (folder, name, modality) -> (modality, part)
DECATHLON = {
    ("Task01_BrainTumour", "BRATS", ("FLAIR", "T1w", "t1gd", "T2w")): ("MR", "brain"),
    ("Task02_Heart", "LeftAtrium", ("MRI",)): ("MR", "heart"),
    ("Task03_Liver", "Liver", ("CT",)): ("CT", "liver"),
    ("Task04_Hippocampus", "Hippocampus", ("MRI",)): ("MR", "hippocampus"),
    ("Task05_Prostate", "PROSTATE", ("T2", "ADC")): ("MR", "prostate"),
    ("Task07_Pancreas", "Pancreas", ("CT",)): ("CT", "pancreas"),
    ("Task08_HepaticVessel", "HepaticVessel", ("CT",)): ("CT", "liver"),
    ("Task09_Spleen", "Spleen", ("CT",)): ("CT", "spleen"),
}


def write_manifest(root, *, training, **more):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"training": training, **more}))
    return root


def write_decathlon(root):
    """3DSeg-8: eight folders of one case each, with the tarballs' AppleDouble files beside the scans."""
    for number, (folder, name, modality) in enumerate(DECATHLON):
        stem = f"{name.lower()}_{number:03d}"
        write_manifest(
            root / folder,
            name=name,
            modality=dict(enumerate(modality)),
            labels={"0": "background", "1": "organ"},
            training=[{"image": f"./imagesTr/{stem}.nii.gz", "label": f"./labelsTr/{stem}.nii.gz"}],
            test=[f"./imagesTs/{name.lower()}_900.nii.gz"],
        )
        scans = [f"{place}/{dots}{stem}.nii.gz" for place in ("imagesTr", "labelsTr") for dots in ("", "._")]
        touch(root / folder, *scans, f"imagesTs/{name.lower()}_900.nii.gz", "._dataset.json")
    return root


def test_a_dataset_lists_its_cases(tmp_path):
    root = write_msd_dataset(tmp_path / "Task", 2)
    first, second = discover(root)
    assert (first.id, second.subject) == ("head_000", "head_001")
    assert (first.modality, first.body_part, first.dataset) == ("MR", "head", "Phantom heads")
    assert first.image == root / "imagesTr/head_000.nii.gz"
    assert first.label.path == root / "labelsTr/head_000.nii.gz"
    assert first.label.names == {1: "front", 2: "back"}
    assert discover(root / "dataset.json") == [first, second]


def test_each_dataset_of_3dseg8_has_its_own_modality_and_body_part(tmp_path):
    cases = discover(write_decathlon(tmp_path))
    assert [(case.root.name, case.modality, case.body_part) for case in cases] == [
        (folder, *expected) for (folder, _, _), expected in DECATHLON.items()
    ]
    assert [case.dataset for case in cases] == [name for _, name, _ in DECATHLON]


def test_test_scans_and_apple_double_files_are_left_out(tmp_path):
    cases = discover(write_decathlon(tmp_path))
    assert len(cases) == len(DECATHLON)
    assert all(case.image.parent.name == "imagesTr" and case.image.name[0] != "." for case in cases)


def test_scans_of_several_modalities_are_refused_one_by_one(tmp_path):
    root = write_msd_dataset(tmp_path, 2)
    image, _ = head()
    four = np.stack([image, image], axis=-1)
    nibabel.save(nibabel.Nifti1Image(four, ras_affine((1.5, 1.25, 2.0))), root / "imagesTr/head_000.nii.gz")
    first, second = discover(root)
    with pytest.raises(CaseError) as refused:
        read_volume(first.image, modality="MR")
    assert refused.value.code == "E_NDIM"
    assert "split" in refused.value.hint
    assert read_volume(second.image, modality="MR").geometry.shape == image.shape


@pytest.mark.parametrize("missing", ["imagesTr", "labelsTr"])
def test_a_missing_file_concerns_its_case_alone(tmp_path, missing):
    root = write_msd_dataset(tmp_path, 2)
    (root / missing / "head_000.nii.gz").unlink()
    first, second = discover(root)
    with pytest.raises(CaseError, match="E_MISSING"):
        identify(first, Recipe(labels=True))
    assert identify(second, Recipe(labels=True))


def test_a_missing_label_map_does_not_matter_where_none_is_used(tmp_path):
    root = write_msd_dataset(tmp_path, 1)
    (root / "labelsTr/head_000.nii.gz").unlink()
    assert identify(discover(root)[0], Recipe(labels=False))


def test_cases_without_label_maps_are_listed_by_image(tmp_path):
    cases = discover(write_manifest(tmp_path, training=["./a.nii.gz", {"image": "b/c.mha"}]))
    assert ids(cases) == ["a", "c"]
    assert [case.label for case in cases] == [None, None]


@pytest.mark.parametrize(
    "labels, names",
    [
        ({"0": "background", "1": "Anterior", "2": "Posterior"}, {1: "Anterior", 2: "Posterior"}),
        ({"background": 0, "liver": 1}, {1: "liver"}),
        ({"first": [1, 2], "second": [2, 3]}, {1: "first", 2: "first", 3: "second"}),
        (
            {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
            {1: "whole tumour", 2: "core", 3: "enhancing"},
        ),
    ],
)
def test_label_names_of_either_form_and_of_regions(labels, names):
    assert label_names({"labels": labels}) == names


@pytest.mark.parametrize("value", [256, -1, 1.5, None, "two", "\N{SUPERSCRIPT TWO}", "9" * 5000, [1, [2]]])
def test_label_values_that_are_no_whole_numbers_are_refused(value):
    with pytest.raises(RefusedError, match="E_MANIFEST"):
        label_names({"labels": {"liver": value}})


@pytest.mark.parametrize("linked, inside", [("scan", "label"), ("label", "scan")])
def test_links_out_of_a_dataset_need_the_setting(tmp_path, linked, inside):
    root = write_manifest(tmp_path / "set", training=[{"image": "scan.nii.gz", "label": "label.nii.gz"}])
    touch(tmp_path, "outside.nii.gz", f"set/{inside}.nii.gz")
    (root / f"{linked}.nii.gz").symlink_to(tmp_path / "outside.nii.gz")
    with pytest.raises(RefusedError, match="E_PATH"):
        discover(root)
    assert ids(discover(root, follow_links=True)) == ["scan"]


def test_hidden_folders_hold_no_dataset(tmp_path):
    write_manifest(tmp_path / "Task03", training=["a.nii.gz"])
    write_manifest(tmp_path / ".trash", training=["b.nii.gz"])
    assert ids(survey([tmp_path])[0].cases) == ["a"]


@pytest.mark.parametrize(("channels", "sequence"), [(("MRI",), ""), (("t1gd",), "T1gd"), (("T2", "ADC"), "")])
def test_one_channel_names_the_sequence(tmp_path, channels, sequence):
    training = [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    root = write_manifest(tmp_path, training=training, modality=dict(enumerate(channels)))
    assert [case.sequence for case in discover(touch(root, "imagesTr/a.nii.gz"))] == [sequence]
