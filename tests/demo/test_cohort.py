import hashlib
import importlib.util
import json
import sys
from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk

from m3di.demo.cohort import make_cohort
from stores.errors import RefusedError
from stores.geometry import Geometry

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None, reason="nilearn ships the template: pip install m3di[demo]"
)

SPACING_MM = 4.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "brains"
    return make_cohort(root, num_cases=8, seed=3, spacing_mm=SPACING_MM)


def read(path):
    return sitk.ReadImage(str(path))


def read_ras(root, number):
    """Image and labels of a case along RAS axes, [x, y, z]."""
    names = [root / folder / f"brain_{number:03d}.nii.gz" for folder in ("imagesTr", "labelsTr")]
    return [sitk.GetArrayFromImage(sitk.DICOMOrient(read(name), "RAS")).T for name in names]


def geometry(image):
    """RAS+ affine of a SimpleITK image, whose own coordinates are LPS+."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Geometry(image.GetSize(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def digests(root):
    files = sorted(root.rglob("*.nii.gz"))
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_is_that_of_the_decathlon(cohort):
    facts = json.loads((cohort / "dataset.json").read_text())
    assert facts["name"] == "m3di demo brains"
    assert facts["modality"] == {"0": "MRI"}
    assert facts["labels"]["3"] == "cerebrospinal fluid"
    assert facts["numTraining"] == len(facts["training"]) == 8
    assert facts["training"][0] == {
        "image": "./imagesTr/brain_001.nii.gz",
        "label": "./labelsTr/brain_001.nii.gz",
    }
    assert all((cohort / path).is_file() for pair in facts["training"] for path in pair.values())


def test_grids_have_the_asked_spacing_and_share_their_centre_with_the_template(cohort):
    image = read(cohort / "imagesTr" / "brain_001.nii.gz")
    np.testing.assert_allclose(image.GetSpacing(), SPACING_MM)
    assert image.GetSize() == (50, 59, 48)
    # The template's 197 x 233 x 189 voxels of 1 mm start at (-98, -134, -72): its centre is voxel (98, 116, 94).
    np.testing.assert_allclose(geometry(image).affine @ [24.5, 29, 23.5, 1], (0, -18, 22, 1))


@pytest.mark.parametrize(("number", "orientation"), [(1, "RAS"), (4, "LPS"), (7, "RAS"), (8, "PIR")])
def test_some_cases_are_stored_in_another_orientation(cohort, number, orientation):
    image, labels = (read(cohort / f / f"brain_{number:03d}.nii.gz") for f in ("imagesTr", "labelsTr"))
    assert geometry(image).orientation == orientation
    assert geometry(image) == geometry(labels)


def test_orientation_changes_the_file_and_not_the_anatomy(cohort):
    _, straight = read_ras(cohort, 1)
    for number in (4, 8):
        _, turned = read_ras(cohort, number)
        overlap = 2 * np.sum((straight > 0) & (turned > 0)) / (np.sum(straight > 0) + np.sum(turned > 0))
        mirrored = turned[:, ::-1]
        wrong = 2 * np.sum((straight > 0) & (mirrored > 0)) / (np.sum(straight > 0) + np.sum(mirrored > 0))
        assert overlap > 0.85 > wrong


def test_tissues_have_an_adult_brains_volumes_and_the_contrast_of_t1(cohort):
    for number in range(1, 9):
        image, labels = read_ras(cohort, number)
        litres = [np.sum(labels == code) * SPACING_MM**3 / 1e6 for code in (1, 2, 3)]
        # The template's brain has 1.89 litres; three scales within 7% leave 1.5 to 2.4.
        assert 1.4 < sum(litres) < 2.4
        grey, white, csf = (volume / sum(litres) for volume in litres)
        assert 0.5 < grey < 0.7
        assert 0.25 < white < 0.45
        assert 0.03 < csf < 0.15
        medians = [np.median(image[labels == code]) for code in (3, 1, 2)]
        assert medians == sorted(medians)


def test_image_is_zero_exactly_outside_the_brain_but_for_dark_noise(cohort):
    for number in range(1, 9):
        image, labels = read_ras(cohort, number)
        assert not image[labels == 0].any()
        assert np.mean(image[labels > 0] > 0) > 0.999


def test_brain_stays_inside_the_field_of_view_but_for_the_cut_brain_stem(cohort):
    for number in range(1, 9):
        _, labels = read_ras(cohort, number)
        borders = [labels[0], labels[-1], labels[:, 0], labels[:, -1], labels[:, :, -1]]
        assert not any(border.any() for border in borders)


def within_tissue_variance(image, labels, shift):
    moved = np.roll(labels, shift, axis=(0, 1, 2))
    inside = (moved > 0) & (labels > 0)
    return sum(np.var(image[inside & (moved == code)]) * np.mean(moved[inside] == code) for code in (1, 2, 3))


def test_labels_fit_their_image_best_where_they_are(cohort):
    for number in (1, 4, 8):
        image, labels = read_ras(cohort, number)
        shifts = list(product((-1, 0, 1), repeat=3))
        assert min(shifts, key=lambda s: within_tissue_variance(image.astype(float), labels, s)) == (0, 0, 0)


def test_cases_differ_from_each_other(cohort):
    shapes = [read_ras(cohort, number)[1].tobytes() for number in range(1, 9)]
    assert len(set(shapes)) == 8


def test_a_smaller_cohort_is_the_start_of_a_larger_one(cohort, tmp_path):
    few = digests(make_cohort(tmp_path / "few", num_cases=2, seed=3, spacing_mm=SPACING_MM))
    many = digests(cohort)
    assert few == {name: many[name] for name in few}
    assert len(few) == 4


def test_another_seed_gives_other_cases(cohort, tmp_path):
    other = digests(make_cohort(tmp_path / "other", num_cases=1, seed=4, spacing_mm=SPACING_MM))
    assert not set(other.values()) & set(digests(cohort).values())


def test_facts_name_the_variation_of_each_case(cohort):
    facts = json.loads((cohort / "cohort.json").read_text())
    assert facts["schema"] == "m3di.cohort/1"
    assert facts["cases"]["brain_004"]["orientation"] == "LPS"
    assert all(0.9 <= case["gamma"] <= 1.8 for case in facts["cases"].values())
    assert set(facts["files"]) == {"dataset.json", *digests(cohort)}


def test_complete_cohort_is_reused(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*")}
    assert make_cohort(cohort, num_cases=8, seed=3, spacing_mm=SPACING_MM) == cohort
    assert {path: path.stat().st_mtime_ns for path in cohort.rglob("*")} == before


def test_cohort_of_other_parameters_is_not_overwritten(cohort):
    before = digests(cohort)
    with pytest.raises(RefusedError, match="E_PATH") as refusal:
        make_cohort(cohort, num_cases=8, seed=5, spacing_mm=SPACING_MM)
    assert "seed" in refusal.value.message
    assert digests(cohort) == before


@pytest.mark.parametrize("content", ["{}", "not json", '{"schema": "m3di.cohort/1"}'])
def test_folder_with_other_content_is_not_overwritten(tmp_path, content):
    (tmp_path / "cohort.json").write_text(content)
    with pytest.raises(RefusedError, match="E_PATH"):
        make_cohort(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort.json"]


def test_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RefusedError, match="E_PATH"):
        make_cohort(tmp_path / "file")


def test_cohort_with_a_missing_file_is_refused(tmp_path):
    root = make_cohort(tmp_path / "brains", num_cases=1, spacing_mm=8.0)
    (root / "labelsTr" / "brain_001.nii.gz").unlink()
    with pytest.raises(RefusedError, match="not the complete demo cohort"):
        make_cohort(root, num_cases=1, spacing_mm=8.0)


def test_empty_folder_is_filled_and_nothing_is_left_beside_it(tmp_path):
    root = tmp_path / "brains"
    root.mkdir()
    make_cohort(root, num_cases=1, spacing_mm=8.0)
    assert (root / "cohort.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["brains"]


@pytest.mark.parametrize(
    ("name", "value"), [("num_cases", 0), ("num_cases", 1000), ("seed", -1), ("spacing_mm", 0.5)]
)
def test_parameters_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(RefusedError, match=f"{name} of the demo cohort is {value}"):
        make_cohort(tmp_path / "brains", **{name: value})
    assert not (tmp_path / "brains").exists()


def test_spacing_that_is_not_a_number_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="E_CONFIG"):
        make_cohort(tmp_path / "brains", spacing_mm=float("nan"))


def test_missing_nilearn_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)  # how Python marks a package as absent
    with pytest.raises(RefusedError, match="nilearn") as refusal:
        make_cohort(tmp_path / "brains")
    assert refusal.value.code == "E_MISSING"
    assert refusal.value.hint == 'pip install "m3di[demo]"'
    assert list(tmp_path.iterdir()) == []
