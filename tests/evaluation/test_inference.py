import os
from pathlib import Path

import numpy as np
import pytest
import torch

from m3di.evaluation.inference import allowed_mirrors
from m3di.training.checkpoint import Checkpoint
from m3di.volumes.layouts import discover
from m3di.volumes.preprocess import chain_of, make_label_cube
from m3di.volumes.readers import Volume, read_label, read_volume
from stores.errors import RefusedError
from stores.geometry import Geometry
from stores.recipe import Recipe
from tests.evaluation.stand_ins import Constant, Oracle, Sided, Soft, Threshold, predictor
from tests.phantoms import head, ras_affine

DATA = Path(os.environ.get("M3DI_REAL_SETS", Path(__file__).parents[3] / "shared/data"))
LARGE = 1000  # voxels of a structure that has to come back
NAMES = {0: "background", **{value: str(value) for value in range(1, 5)}}


def turned(spacing, *, degrees, axes=(0, 1, 2), signs=(1, 1, 1)):
    """An affine whose array axes run along permuted, flipped axes of a frame that is turned about two axes."""
    angle = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    about_z = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (about_x @ about_z)[:, list(axes)] * np.array(signs) * np.array(spacing)
    affine[:3, 3] = (-30, 12, 55)
    return affine


def back_and_forth(volume, label, cube_size, resampling="direct"):
    """Dice of each large structure between a label map and what comes back of its cube."""
    recipe = Recipe(cube_size=cube_size, resampling=resampling)
    cube = make_label_cube(label, chain_of(volume, recipe))
    there = predictor(Oracle(cube, len(NAMES)), cube_size=cube_size, classes=NAMES)
    mask = there.mask(volume)
    assert mask.shape == volume.geometry.shape
    values, counts = np.unique(label, return_counts=True)
    large = [value for value, count in zip(values, counts, strict=True) if value and count > LARGE]
    return [2 * ((mask == v) & (label == v)).sum() / ((mask == v).sum() + (label == v).sum()) for v in large]


@pytest.mark.parametrize(
    "axes, signs",
    [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1)), ((0, 2, 1), (-1, 1, 1))],
)
@pytest.mark.parametrize("degrees", [0, 17])
def test_a_rotated_anisotropic_scan_comes_back_on_its_own_grid(axes, signs, degrees):
    spacing = np.array([0.9, 1.0, 3.0])[list(axes)]
    shape = tuple(np.array([76, 80, 24])[list(axes)].tolist())
    image, label = head(shape, spacing=spacing, seed=3)
    affine = turned(spacing, degrees=degrees, axes=axes, signs=signs)
    dice = back_and_forth(Volume(image, Geometry(shape, affine), "MR"), label, 64)
    assert len(dice) == 2
    assert min(dice) > 0.95


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real sets are not at {DATA}; set M3DI_REAL_SETS")
@pytest.mark.parametrize("name, cube_size", [("acdc_ed", 128), ("msd_hippocampus", 64)])
@pytest.mark.slow
def test_structures_of_real_scans_come_back(name, cube_size):
    cases = [case for case in discover(DATA / name) if case.label is not None][:5]
    dice = []
    for case in cases:
        volume = read_volume(case.image, modality=case.modality, member=case.member)
        dice += back_and_forth(volume, read_label(case.label, like=volume.geometry), cube_size)
    assert dice
    assert min(dice) > 0.95


def volume_of(shape=(20, 24, 18)):
    image, _ = head(shape)
    return Volume(image, Geometry(shape, ras_affine((1.5, 1.25, 2.0))), "MR")


def test_a_network_that_mirrors_as_its_scan_does_has_no_uncertainty_by_flips():
    mirrors = ((), (0,), (1,), (0, 1))
    equivariant = predictor(Soft(), cube_size=16, mirrors=mirrors, measures_uncertainty=True)
    cube = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    scores = equivariant.scores(cube)
    assert scores.shape == (3, 16, 16, 16)
    assert scores[2].max() < 1e-5
    np.testing.assert_allclose(scores[:2], predictor(Soft(), cube_size=16).scores(cube), atol=1e-6)


def test_a_network_that_tells_sides_is_uncertain_where_its_mirror_image_contradicts():
    sided = predictor(Sided(), cube_size=16, mirrors=((), (0,)), measures_uncertainty=True)
    scores = sided.scores(np.random.default_rng(0).random((16, 16, 16)).astype(np.float32))
    np.testing.assert_allclose(scores[:2], 0.5)
    np.testing.assert_allclose(scores[2], 1, atol=1e-6)  # bits: two sure members, two classes
    upright = predictor(Sided(), cube_size=16, mirrors=((), (1,), (2,)), measures_uncertainty=True)
    assert upright.scores(np.zeros((16, 16, 16), np.float32))[2].max() < 1e-6


def test_uncertainty_of_runs_is_the_mutual_information_of_class_and_run():
    logits = [(0.0, np.log(3)), (0.0, 0.0)]  # probabilities of bright 3/4 and 1/2, mean 5/8
    both = predictor(*(Constant(*one) for one in logits), cube_size=8, measures_uncertainty=True)
    scores = both.scores(np.zeros((8, 8, 8), np.float32))
    np.testing.assert_allclose(scores[1], 5 / 8, rtol=1e-6)

    def bits(p):
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    np.testing.assert_allclose(scores[2], bits(5 / 8) - (bits(3 / 4) + 1) / 2, rtol=1e-4)
    one = predictor(Constant(*logits[0]), cube_size=8)
    assert one.scores(np.zeros((8, 8, 8), np.float32)).shape[0] == 2, "nothing is measured that is not asked for"


def test_only_mirror_images_that_training_had_are_allowed(tmp_path):
    def found(**finetune):
        return Checkpoint(tmp_path / "run/checkpoints/8", {"config": {"finetune": finetune}})

    assert allowed_mirrors(found(flip_axes=["z", "x"])) == ((), (0,), (2,), (0, 2))
    for facts in ({"flip_axes": []}, {}):
        with pytest.raises(RefusedError, match="without mirror images") as error:
            allowed_mirrors(found(**facts))
        assert error.value.code == "E_CONFIG"


def test_a_scan_unlike_the_training_data_is_told():
    edges = {"smallest": 36.0, "median": 36.0, "largest": 40.0}
    same = predictor(Threshold(), edges_mm=edges)
    volume = volume_of()  # 36 mm wide
    assert same.doubts(volume) == []
    ct = Volume(volume.data, volume.geometry, "CT")
    assert same.doubts(ct) == ["it is CT, the network was trained on MR"]
    small = predictor(Threshold(), edges_mm={"smallest": 90.0, "median": 90.0, "largest": 100.0})
    assert small.doubts(volume) == ["it is 36 mm wide, those in training were 90 to 100 mm"]
    large = predictor(Threshold(), edges_mm={"smallest": 9.0, "median": 9.0, "largest": 20.0})
    assert large.doubts(volume) == ["it is 36 mm wide, those in training were 9 to 20 mm"]
    assert predictor(Threshold()).doubts(volume) == [], "of an early run nobody knows"


def test_cubes_are_rounded_as_the_store_rounds_them():
    network = Threshold()
    predictor(network, cube_size=8).scores(np.full((8, 8, 8), 1 / 3, np.float32))
    assert network.seen[0].dtype == torch.float32
    assert float(network.seen[0].max()) == float(np.float16(1 / 3))
