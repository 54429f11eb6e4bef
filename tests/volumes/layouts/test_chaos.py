import numpy as np
import pytest
from PIL import Image

from m3di.volumes.layouts import discover
from m3di.volumes.readers import read_label, read_volume
from stores.errors import CaseError
from tests.dicoms import write_series
from tests.phantoms import ras_affine
from tests.volumes.layouts import ids

SHAPE = (8, 6, 4)
AFFINE = ras_affine((1.5, 1.25, 5.0), (-20, -30, 40))
MR_GREYS = {63: 1, 126: 2, 189: 3, 252: 4}  # as the challenge draws liver, right kidney, left kidney, spleen
ALL_IDS = ["chaos_ct_1", "chaos_ct_2", "chaos_mr_1_t1dual_inphase", "chaos_mr_1_t1dual_outphase", "chaos_mr_1_t2spir"]


def write_images(folder, names, *, modality="CT", seed=0):
    """A series whose slice k is the file `names[k]`."""
    array = np.random.default_rng(seed).integers(0, 200, SHAPE).astype(np.int16)
    for path, name in zip(write_series(folder, array, affine=AFFINE, modality=modality), names, strict=True):
        path.rename(folder / name)


def write_masks(folder, names, greys, *, mode="L"):
    """(i, j, k) grey values as one picture a slice: rows run along j."""
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        Image.fromarray(np.ascontiguousarray(greys[:, :, k].T)).convert(mode).save(folder / name)


def drawn(values):
    """Grey values and nothing, in an order that no flip or permutation keeps."""
    return np.random.default_rng(5).choice([0, *values], SHAPE).astype(np.uint8)


def write_chaos(root):
    """A person in CT, one in MR, and a CT without masks for the test."""
    slices = range(SHAPE[2])
    train, person = root / "Train_Sets", root / "Train_Sets/MR/1"
    write_images(train / "CT/1/DICOM_anon", [f"i{k:04d},0000b.dcm" for k in slices])
    write_masks(train / "CT/1/Ground", [f"liver_GT_{k:03d}.png" for k in slices], drawn([255]), mode="1")
    even, odd = ([f"IMG-0004-{2 * k + n:05d}" for k in slices] for n in (2, 1))
    write_images(person / "T1DUAL/DICOM_anon/InPhase", [f"{name}.dcm" for name in even], modality="MR")
    write_images(person / "T1DUAL/DICOM_anon/OutPhase", [f"{name}.dcm" for name in odd], modality="MR", seed=1)
    write_masks(person / "T1DUAL/Ground", [f"{name}.png" for name in even], drawn(MR_GREYS))
    spir = [f"IMG-0002-{SHAPE[2] - k:05d}" for k in slices]  # names run against space
    write_images(person / "T2SPIR/DICOM_anon", [f"{name}.dcm" for name in spir], modality="MR", seed=2)
    write_masks(person / "T2SPIR/Ground", [f"{name}.png" for name in spir], drawn(MR_GREYS))
    write_images(root / "Test_Sets/CT/2/DICOM_anon", [f"i{k:04d},0000b.dcm" for k in slices], seed=3)
    return root


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    return write_chaos(tmp_path_factory.mktemp("chaos"))


def test_every_series_is_a_case_of_its_person(challenge):
    cases = discover(challenge)
    assert sorted(ids(cases)) == ALL_IDS
    assert {case.id: case.subject for case in cases if "mr" in case.id} == dict.fromkeys(ALL_IDS[2:], "chaos_mr_1")
    assert all((case.modality == "CT") == ("_ct_" in case.id) and case.body_part == "abdomen" for case in cases)
    assert [case.id for case in cases if case.label is None] == ["chaos_ct_2"]


@pytest.mark.parametrize(
    "place, found",
    [("Train_Sets", [0, 2, 3, 4]), ("Test_Sets", [1]), ("Train_Sets/CT", [0]), ("Train_Sets/MR", [2, 3, 4])],
)
def test_a_part_of_the_challenge_gives_the_same_ids(challenge, place, found):
    assert ids(discover(challenge / place)) == [ALL_IDS[index] for index in found]


@pytest.mark.parametrize("number", [0, 2, 3, 4])
def test_masks_lie_on_their_slices_with_their_classes(challenge, number):
    """Both phases share masks that are named as the files of one of them."""
    (case,) = (case for case in discover(challenge) if case.id == ALL_IDS[number])
    volume = read_volume(case.image, modality="unknown")
    greys = {255: 1} if number == 0 else MR_GREYS
    expected = np.vectorize({0: 0, **greys}.get)(drawn(greys))
    assert volume.modality == case.modality
    np.testing.assert_allclose(volume.geometry.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(read_label(case.label, like=volume.geometry), expected)
    assert case.label.names.keys() == set(greys.values())


def one_mr(root, grey):
    """A case whose masks hold one grey value, at one place."""
    greys = np.zeros(SHAPE, np.uint8)
    greys[3, 2, 1] = grey
    names = [f"IMG-{k}" for k in range(SHAPE[2])]
    write_images(root / "MR/7/T2SPIR/DICOM_anon", [f"{name}.dcm" for name in names], modality="MR")
    write_masks(root / "MR/7/T2SPIR/Ground", [f"{name}.png" for name in names], greys)
    (case,) = discover(root)
    return case


@pytest.mark.parametrize(
    "grey, value",
    [(55, 1), (70, 1), (110, 2), (135, 2), (175, 3), (200, 3), (240, 4), (255, 4)],
)
def test_grey_values_within_the_published_ranges_are_classes(tmp_path, grey, value):
    case = one_mr(tmp_path, grey)
    label = read_label(case.label, like=read_volume(case.image, modality="MR").geometry)
    assert (label[3, 2, 1], label.sum()) == (value, value)


@pytest.mark.parametrize("grey", [1, 54, 71, 109, 136, 174, 201, 239])
def test_grey_values_outside_are_refused(tmp_path, grey):
    case = one_mr(tmp_path, grey)
    with pytest.raises(CaseError, match=f"holds {grey} in 1 voxels") as refused:
        read_label(case.label, like=read_volume(case.image, modality="MR").geometry)
    assert refused.value.code == "E_LABEL_VALUES"


def test_masks_in_other_number_than_slices_are_refused(tmp_path):
    case = one_mr(tmp_path, 60)
    (case.label.path / "IMG-0.png").unlink()
    with pytest.raises(CaseError, match="3 masks for 4 slices") as refused:
        read_label(case.label, like=read_volume(case.image, modality="MR").geometry)
    assert refused.value.code == "E_LABEL_GEOMETRY"


def test_the_folder_names_the_sequence(challenge):
    found = {case.id: case.sequence for case in discover(challenge)}
    assert found == dict(zip(ALL_IDS, ["", "", "T1DUAL", "T1DUAL", "T2SPIR"], strict=True))
