"""What is known of the real sets, read from them; skipped where they are absent."""

import os
from pathlib import Path

import numpy as np
import pytest

from m3di.volumes.layouts import discover
from m3di.volumes.prepare import prepare
from m3di.volumes.preprocess import make_label_cube
from m3di.volumes.readers import read_label, read_volume
from stores.errors import CaseError, RefusedError
from stores.geometry import CubeChain
from stores.recipe import Recipe

DATA = Path(os.environ.get("M3DI_REAL_SETS", Path(__file__).parents[2] / "shared/data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real sets are not at {DATA}; set M3DI_REAL_SETS")


def centres(label, geometry, *values):
    """RAS+ mm of the centres of mass of classes of a label map on its scan's grid."""
    return [
        geometry.affine[:3, :3] @ np.argwhere(label == value).mean(axis=0) + geometry.affine[:3, 3]
        for value in values
    ]


def test_spacing_comes_from_positions_not_from_the_slice_thickness():
    (case,) = discover(DATA / "brain_tumor_dicom")
    volume = read_volume(case.image, modality=case.modality, member=case.member)
    assert volume.geometry.spacing_mm == pytest.approx((0.6875, 0.6875, 6.5), abs=1e-4), "SliceThickness is 5"
    assert volume.modality == "MR"
    assert CubeChain(volume.geometry, 128).thick_planes == (0,)


def test_one_scan_under_two_names_gives_one_cube():
    cases = {case.id: case for case in discover(DATA / "acdc_ed")}
    recipe = Recipe(cube_size=32, slice_size=0)
    first, second, other = (
        prepare(cases[f"patient{number}_frame01"], recipe, "").chunks["image"] for number in ("074", "076", "075")
    )
    assert first == second != other


def test_the_brain_lies_upright_with_its_label_map_on_it_and_one_hot_is_refused():
    (case,) = discover(DATA / "oasis")
    volume = read_volume(case.image, modality="MR")
    assert (volume.geometry.shape, volume.geometry.orientation) == ((256, 256, 256), "LIA")
    label = read_label(case.label, like=volume.geometry)
    assert (volume.data[label > 0] > 0).mean() > 0.99, "labels lie on brain"
    with pytest.raises(CaseError, match=r"E_NDIM .* x 13\)") as refused:
        read_volume(DATA / "oasis/c2fvit_image_A_seg35_onehot.nii.gz", modality="MR")
    assert "argmax" in refused.value.hint


def test_the_head_of_the_hippocampus_lies_anterior_in_scan_and_cube():
    for case in discover(DATA / "msd_hippocampus")[::25]:
        volume = read_volume(case.image, modality=case.modality)
        label = read_label(case.label, like=volume.geometry)
        head, tail = centres(label, volume.geometry, 1, 2)
        assert head[1] > tail[1]
        cube = make_label_cube(label, CubeChain(volume.geometry, 48))
        assert np.argwhere(cube == 1).mean(0)[1] > np.argwhere(cube == 2).mean(0)[1]


@pytest.mark.parametrize(
    "image, label",
    [
        ("example_ct", "example_seg_fast_force_split"),
        ("example_ct_sm", "example_seg"),
        ("example_mr_sm", "example_seg_mr"),
    ],
)
def test_the_liver_lies_on_the_patients_right_in_scan_and_cube(tmp_path, image, label):
    liver, stomach = 5, 6  # see label_names.json
    manifest = tmp_path / "scans.csv"
    for name in (image, label):
        (tmp_path / f"{name}.nii.gz").write_bytes((DATA / f"totalsegmentator_example/{name}.nii.gz").read_bytes())
    manifest.write_text(f"image,label\n{image}.nii.gz,{label}.nii.gz\n")
    (case,) = discover(manifest)
    volume = read_volume(case.image, modality=case.modality)
    mask = read_label(case.label, like=volume.geometry)
    right, left = centres(mask, volume.geometry, liver, stomach)
    assert right[0] > left[0]
    cube = make_label_cube(mask, CubeChain(volume.geometry, 64))
    assert np.argwhere(cube == liver).mean(0)[0] > np.argwhere(cube == stomach).mean(0)[0]


def test_pictures_are_no_scans():
    with pytest.raises(RefusedError, match="E_FORMAT no scan found"):
        discover(DATA / "oasis1_slices_2d")
