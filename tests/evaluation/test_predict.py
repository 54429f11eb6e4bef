import csv
import io
import json
import shutil
from importlib.util import find_spec

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from m3di.config import PredictConfig
from m3di.evaluation.dicom_seg import write_segmentation
from m3di.evaluation.inference import load_predictor
from m3di.evaluation.outputs import Outputs, write_table
from m3di.evaluation.overview import draw_overview
from m3di.evaluation.predict import load_ensemble, predict_scans
from m3di.events import ignore
from m3di.report.pictures import PALETTE
from m3di.training import checkpoint
from m3di.volumes.readers import Volume, read_volume
from stores.errors import RefusedError
from stores.geometry import Geometry
from stores.recipe import Recipe
from tests.dicoms import write_series
from tests.evaluation.runs import LEARNT, train
from tests.evaluation.test_inference import turned
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI
SHAPE, SPACING = (20, 24, 18), (1.5, 1.25, 2.0)
NEEDS_HIGHDICOM = pytest.mark.skipif(find_spec("highdicom") is None, reason="highdicom is not installed")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Two seeds that learnt a little, with mirror images."""
    root = tmp_path_factory.mktemp("heads")
    data = write_msd_dataset(root / "data", 8)
    for seed in (0, 1):
        run = root / f"runs/repeats/repeat-{seed}"
        train("msd", data, run, *LEARNT, "finetune.flip_axes=['x']", seed=seed)
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    data = trees.write_table(root / "data", classes=("=1+1", "b c", "-3"))
    return train("table", data, root / "run")


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "scans/one.nii.gz", head(seed=9)[0], affine=ras_affine(SPACING, (5, 6, 7)))


def predict(scans, runs, out, report=ignore, **settings):
    return predict_scans(scans, runs, out, settings=PredictConfig(**settings), device="cpu", report=report)


class Events:
    """Keeps what is reported."""

    def __init__(self):
        self.all = []

    def __call__(self, event, /, **facts):
        self.all.append((event, facts))

    def named(self, name):
        return [facts for event, facts in self.all if event == name]


def table_of(path, delimiter=","):
    return list(csv.reader(io.StringIO(path.read_bytes().decode(), newline=""), delimiter=delimiter))


def run_of(root, seed=0):
    return root / f"runs/repeats/repeat-{seed}"


def test_a_mask_lies_on_the_scans_grid_and_its_note_names_the_labels(heads, tmp_path, scan):
    found = predict([scan], [run_of(heads)], tmp_path / "out")
    assert found.written == (tmp_path / "out/one.nii.gz",)
    mask, source = nibabel.load(found.written[0]), nibabel.load(scan)
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-5)
    assert mask.shape == source.shape
    note = json.loads((tmp_path / "out/one.json").read_text())
    assert note["schema"] == "m3di.prediction/1"
    assert note["labels"] == {"0": "background", "1": "front", "2": "back"}
    values = np.asarray(mask.dataobj)
    assert {0, 1, 2} == set(np.unique(values))
    for value in (1, 2):
        expected = float((values == value).sum() * np.prod(SPACING) / 1000)
        assert note["volumes_ml"][str(value)] == pytest.approx(expected, abs=1e-3)
    picture = np.asarray(Image.open(tmp_path / "out/overview/one.png"))
    assert picture.ndim == 3


def test_a_rotated_oblique_scan_gives_a_mask_on_its_own_grid(heads, tmp_path):
    affine = turned((2.0, 1.5, 1.25), degrees=20, axes=(2, 0, 1), signs=(-1, 1, -1))
    scan = write_scan(tmp_path / "turned.nii.gz", head((18, 20, 24))[0], affine=affine)
    found = predict([scan], [run_of(heads)], tmp_path / "out")
    np.testing.assert_allclose(nibabel.load(found.written[0]).affine, affine, atol=1e-4)
    assert nibabel.load(found.written[0]).shape == (18, 20, 24)


def test_probabilities_are_kept_where_wanted_and_fit_the_mask(heads, tmp_path, scan):
    predict([scan], [run_of(heads)], tmp_path / "out", probabilities=True)
    maps = [nibabel.load(tmp_path / f"out/probabilities/one/{value}.nii.gz") for value in range(3)]
    np.testing.assert_allclose(maps[1].affine, nibabel.load(scan).affine, atol=1e-5)
    stack = np.stack([one.get_fdata() for one in maps])
    np.testing.assert_allclose(stack.sum(axis=0), 1, atol=2e-3)  # half precision
    mask = np.asarray(nibabel.load(tmp_path / "out/one.nii.gz").dataobj)
    best = np.take_along_axis(stack, mask[None].astype(int), axis=0)[0]
    assert (best >= stack.max(axis=0) - 1e-3).all()


def test_repeats_are_averaged_and_may_tell_how_far_they_disagree(heads, tmp_path, scan):
    both = load_ensemble([heads / "runs/repeats"], PredictConfig(), device="cpu")
    alone = [load_predictor(checkpoint.load(run_of(heads, seed), kind="finetune"), device="cpu") for seed in (0, 1)]
    cube = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    expected = np.mean([one.scores(cube) for one in alone], axis=0)
    np.testing.assert_allclose(both.scores(cube), expected, atol=1e-6)
    predict([scan], [heads / "runs/repeats"], tmp_path / "out", uncertainty="runs")
    found = nibabel.load(tmp_path / "out/uncertainty/one.nii.gz")
    values = found.get_fdata()
    assert values.shape == SHAPE
    assert 0 <= values.min() < values.max() <= 1.585  # bits of three classes
    mask = np.asarray(nibabel.load(tmp_path / "out/one.nii.gz").dataobj)
    inside = values[mask > 0] if (mask > 0).any() else values
    note = json.loads((tmp_path / "out/one.json").read_text())
    assert note["uncertainty"] == pytest.approx(inside.mean(), rel=1e-4)
    with pytest.raises(RefusedError, match="needs several runs"):
        predict([scan], [run_of(heads)], tmp_path / "other", uncertainty="runs")
    assert not (tmp_path / "other").exists()


def test_flips_are_those_of_the_training(heads, tmp_path, scan):
    predict([scan], [run_of(heads)], tmp_path / "out", uncertainty="flips")
    assert nibabel.load(tmp_path / "out/uncertainty/one.nii.gz").get_fdata().max() > 0
    upright = train("msd", heads / "data", tmp_path / "upright", "finetune.max_steps=1")
    with pytest.raises(RefusedError, match="without mirror images"):
        predict([scan], [upright], tmp_path / "other", uncertainty="flips")


def test_a_finished_scan_is_left_alone_until_something_of_it_changes(heads, tmp_path, scan):
    out, events = tmp_path / "out", Events()

    def again(run, **settings):
        events.all.clear()
        predict([scan], [run], out, report=events, **settings)
        return [name for name in ("up to date", "committed") if events.named(name)]

    assert again(run_of(heads)) == ["committed"]
    before = (out / "one.nii.gz").stat().st_mtime_ns
    assert again(run_of(heads)) == ["up to date"]
    assert (out / "one.nii.gz").stat().st_mtime_ns == before
    assert again(run_of(heads), probabilities=True) == ["committed"], "other settings"
    assert again(run_of(heads, 1)) == ["committed"], "other weights"
    (out / "overview/one.png").unlink()
    assert again(run_of(heads, 1)) == ["committed"], "a file is gone"
    write_scan(scan, head(seed=10)[0], affine=ras_affine(SPACING))
    assert again(run_of(heads, 1)) == ["committed"], "another scan under the name"


def test_nothing_that_was_given_is_overwritten(heads, tmp_path, scan):
    before = scan.read_bytes()
    for place in (scan.parent, scan.parent / "../scans"):
        with pytest.raises(RefusedError, match="overwrite") as error:
            predict([scan], [run_of(heads)], place)
        assert error.value.code == "E_PATH"
    assert scan.read_bytes() == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out/one.json").write_text('{"RepetitionTime": 2}')
    with pytest.raises(RefusedError, match="no note of a prediction"):
        predict([scan], [run_of(heads)], tmp_path / "out")
    assert (tmp_path / "out/one.json").read_text() == '{"RepetitionTime": 2}'


def test_a_scan_that_fails_is_named_and_the_others_go_on(heads, tmp_path, scan):
    (scan.parent / "broken.nii.gz").write_bytes(b"no scan")
    events = Events()
    found = predict([scan.parent], [run_of(heads)], tmp_path / "out", report=events)
    assert [path.name for path in found.written] == ["one.nii.gz"]
    assert [(one["case"], one["code"]) for one in found.refused] == [("broken", "E_NOT_NIFTI")]
    assert [facts["volume"] for facts in events.named("quarantined")] == ["broken"]


def test_names_of_files_cannot_lead_out_of_the_folder(heads, tmp_path, scan):
    hostile = scan.with_name("a;rm -rf $(x) `y` ..\n\x1b[31m<b>.nii.gz")
    shutil.copy(scan, hostile)
    found = predict([hostile], [run_of(heads)], tmp_path / "out")
    assert len(found.written) == 1
    assert found.written[0].parent == tmp_path / "out"
    assert all(letter.isalnum() or letter in "._-" for letter in found.written[0].name)
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "out"}


def test_a_scan_wider_than_any_in_training_is_predicted_by_windows(heads, tmp_path):
    wide = np.concatenate([head(seed=seed)[0] for seed in range(3)], axis=2)
    scan = write_scan(tmp_path / "wide.nii.gz", wide, affine=ras_affine(SPACING))
    events = Events()
    found = predict([scan], [run_of(heads)], tmp_path / "out", report=events)
    assert events.named("windows") == [{"volume": "wide", "windows": 5, "width_mm": 36.0}]
    assert found.notes[0]["windows"] == 5
    assert any("108 mm wide" in facts["message"] for facts in events.named("warning"))
    predict([scan], [run_of(heads)], tmp_path / "whole", report=events, windows_beyond=4.0)
    assert len(events.named("windows")) == 1


def test_another_modality_is_a_warning(heads, tmp_path):
    write_series(tmp_path / "ct", (head()[0] - 500).astype(np.int16), affine=ras_affine(SPACING), modality="CT")
    events = Events()
    found = predict([tmp_path / "ct"], [run_of(heads)], tmp_path / "out", report=events)
    assert found.notes[0]["warnings"] == ["it is CT, the network was trained on MR"]
    (warning,) = events.named("warning")
    assert "it is CT" in warning["message"]


def test_a_classification_gives_a_table_that_is_harmless(classes, tmp_path, scan):
    found = predict([scan.parent], [classes], tmp_path / "out")
    assert found.written == (tmp_path / "out/probabilities.csv",)
    rows = table_of(tmp_path / "out/probabilities.csv")
    (note,) = found.notes
    assert rows[0] == ["case", "class", "probability of -3", "probability of =1+1", "probability of b c"]
    assert [row[0] for row in rows[1:]] == ["one"]
    values = [float(value) for value in rows[1][2:]]
    np.testing.assert_allclose(values, note["probabilities"], atol=1e-6)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert note["class"] == note["classes"][int(np.argmax(values))]


def test_a_table_alone_is_written_as_its_suffix_says(classes, tmp_path, scan):
    for name, delimiter in (("classes.csv", ","), ("classes.TSV", "\t")):
        found = predict([scan], [classes], tmp_path / name)
        assert found.written == (tmp_path / name,)
        header = table_of(tmp_path / name, delimiter)[0]
        assert header[:2] == ["case", "class"]
        assert len(header) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.TSV", "classes.csv", "scans"]


def test_a_segmentation_is_no_table(heads, tmp_path, scan):
    with pytest.raises(RefusedError, match="makes masks"):
        predict([scan], [run_of(heads)], tmp_path / "out.csv")


def test_class_names_are_no_formulas_in_a_table(tmp_path):
    names = ["=cmd|' /C calc'!A0", 'b,\t"c"\r\n@x', "-3"]
    notes = [
        {"case": str(number), "class": name, "probabilities": [0.5, 0.25, 0.25], "uncertainty": None}
        for number, name in enumerate(names)
    ]
    write_table(tmp_path / "t.csv", names, notes)
    rows = table_of(tmp_path / "t.csv")
    assert len(rows) == 4
    assert rows[1][1] == "'=cmd|' /C calc'!A0"
    assert rows[2][1] == 'b, "c"  @x'
    assert rows[3][1] == "-3", "a number stays one"
    assert all(cell[:1] not in ("=", "@", "\t", "\r") for row in rows for cell in row)


def test_names_of_labels_cannot_break_the_picture():
    image, label = head(SHAPE, spacing=SPACING)
    volume = Volume(image, Geometry(SHAPE, ras_affine(SPACING)), "MR")
    names = {1: "\x1b[31m" + "Ω🫀" * 100, 2: "back\n\n\x00"}
    picture = draw_overview(volume, label, names, Recipe(), title="<b>&\n" * 50)
    for number in (1, 2):
        assert (picture == PALETTE[number]).all(axis=2).any(), "both outlines are drawn"
    plain = draw_overview(volume, label, {1: "front", 2: "back"}, Recipe(), title="x")
    assert picture.shape == plain.shape
    empty = draw_overview(volume, np.zeros_like(label), names, Recipe(), title="x")
    height = empty.shape[0] - 3 * 16 - 8
    assert not (empty[:height] == PALETTE[1]).all(axis=2).any()


def test_a_picture_shows_the_patients_right_on_the_left_and_anterior_above():
    image = np.full((20, 20, 20), 10, np.float32)
    image[:, :, 0] = 0
    label = np.zeros((20, 20, 20), np.uint8)
    label[14:18, 13:17, 8:12] = 1  # to the right, in front
    volume = Volume(image + label, Geometry((20, 20, 20), ras_affine((1.0, 1.0, 1.0))), "MR")
    picture = draw_overview(volume, label, {1: "x"}, Recipe(), title="x")
    axial = (picture[:320, :320] == PALETTE[1]).all(axis=2)
    rows, columns = np.nonzero(axial)
    assert columns.mean() < 160
    assert rows.mean() < 160


def test_dicom_series_are_read_and_masks_written_as_nifti(heads, tmp_path):
    affine = ras_affine(SPACING, (1, 2, 3))
    write_series(tmp_path / "series", head()[0].astype(np.int16), affine=affine, modality="MR")
    found = predict([tmp_path / "series"], [run_of(heads)], tmp_path / "out")
    mask = nibabel.load(found.written[0])
    source = read_volume(tmp_path / "series", modality="MR").geometry
    np.testing.assert_allclose(mask.affine, source.affine, atol=1e-4)


def test_without_highdicom_dicom_seg_is_refused_before_anything_is_written(heads, tmp_path, scan, monkeypatch):
    monkeypatch.setattr("m3di.evaluation.dicom_seg.find_spec", lambda name: None)
    with pytest.raises(RefusedError, match="highdicom is not installed") as error:
        predict([scan], [run_of(heads)], tmp_path / "out", format="dicom-seg")
    assert "m3di[dicomseg]" in error.value.hint
    assert not (tmp_path / "out").exists()


@NEEDS_HIGHDICOM
@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom and highdicom, on what the phantom's slices leave out
def test_dicom_seg_lies_on_its_series_with_named_segments(tmp_path):
    from highdicom.seg import segread  # noqa: PLC0415

    affine = turned((1.5, 1.25, 2.0), degrees=15)
    image, label = head()
    write_series(tmp_path / "series", image.astype(np.int16), affine=affine, modality="MR", change=complete)
    names = {2: "back\\\x1b" + "x" * 100, 1: "Vorderhäuptchen"}
    write_segmentation(tmp_path / "seg.dcm", label, names, tmp_path / "series")
    made = segread(tmp_path / "seg.dcm")
    told = [made.get_segment_description(number).segment_label for number in made.segment_numbers]
    assert told == [("back??" + "x" * 100)[:64], "Vorderh?uptchen"]
    volume = made.get_volume(combine_segments=True)
    to_voxel = np.linalg.inv(affine) @ np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    places = np.argwhere(volume.array > 0)
    there = places @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    np.testing.assert_allclose(there, np.rint(there), atol=0.02)
    i, j, k = np.rint(there).astype(int).T
    np.testing.assert_array_equal(label[i, j, k], 3 - volume.array[volume.array > 0], "segment 1 is label 2")
    assert len(places) == (label > 0).sum()


@NEEDS_HIGHDICOM
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_masks_of_dicom_scans_are_dicom_seg_where_wanted_and_of_others_refused(heads, tmp_path, scan):
    image = head()[0].astype(np.int16)
    write_series(tmp_path / "series", image, affine=ras_affine(SPACING), modality="MR", change=complete)
    found = predict([tmp_path / "series", scan], [run_of(heads)], tmp_path / "out", format="dicom-seg")
    assert [(one["case"], one["code"]) for one in found.refused] == [("one", "E_NOT_DICOM")]
    assert found.written == (tmp_path / "out/series.dcm",)
    assert pydicom.dcmread(found.written[0]).Modality == "SEG"
    assert json.loads((tmp_path / "out/series.json").read_text())["files"]["mask"] == "series.dcm"


def complete(one, k):
    """What a segmentation takes over from its series."""
    one.StudyInstanceUID, one.FrameOfReferenceUID = "1.2.3", "1.2.4"
    one.StudyID, one.StudyDate, one.StudyTime = "1", "20200101", "000000"
    one.AccessionNumber, one.ReferringPhysicianName, one.PatientSex = "", "", "O"


def test_outputs_of_one_scan_cannot_be_those_of_another(tmp_path):
    outputs = Outputs.at(tmp_path)
    files = {outputs.mask("a", suffix=".nii.gz"), outputs.probability("a", 1), outputs.uncertainty("a")}
    others = {outputs.mask("a-1", suffix=".nii.gz"), outputs.probability("a-1", 1), outputs.uncertainty("a-1")}
    assert len(files | others) == 6
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == []
