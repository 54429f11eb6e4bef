import json
from collections import Counter

import pytest

from cli.commands.finetune import TASKS as TOLD
from m3di.config import load_config
from m3di.tasks.registry import TASKS, load_task, task_settings
from stores.errors import RefusedError
from tests.tasks import trees

FIVE = ["left ventricle", "right ventricle", "left atrium", "right atrium", "ascending aorta"]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory):
    return trees.write_chaos(tmp_path_factory.mktemp("chaos"), ct=2, mr=2)


@pytest.fixture(scope="module")
def mmwhs(tmp_path_factory):
    return trees.write_mmwhs(tmp_path_factory.mktemp("mmwhs"), ct=2, mr=1)


@pytest.mark.parametrize("name", ["chaos", "chaos-ct"])
def test_chaos_is_the_liver_in_ct(chaos, name):
    task = load_task(name, chaos)
    assert task.classes == {0: "background", 1: "liver"}
    assert [case.id for case in task.cases] == ["chaos_ct_1", "chaos_ct_2"], "the test set has no label maps"
    assert (task.kind, task.modality, task.metrics[0]) == ("segmentation", "CT", "dice")


def test_chaos_mr_is_four_organs_in_three_series_of_a_person(chaos):
    task = load_task("chaos-mr", chaos)
    assert list(task.classes.values()) == ["background", "liver", "right kidney", "left kidney", "spleen"]
    assert Counter(case.subject for case in task.cases) == {"chaos_mr_1": 3, "chaos_mr_2": 3}
    assert task.modality == "MR"


@pytest.mark.parametrize("name, counts", [("mmwhs", (2, 0)), ("mmwhs-mr", (0, 1)), ("mmwhs-both", (2, 1))])
def test_mmwhs_has_five_of_seven_structures(mmwhs, name, counts):
    task = load_task(name, mmwhs)
    assert [structure for value, structure in task.classes.items() if value] == FIVE
    assert task.background == {5, 7}, "myocardium and pulmonary artery"
    found = Counter(case.modality for case in task.cases)
    assert (found["CT"], found["MR"]) == counts


def test_oasis_has_four_structures(tmp_path):
    task = load_task("oasis-seg", trees.write_oasis1(tmp_path, 2))
    assert len(task.cases) == 2
    assert sorted(task.classes) == [0, 1, 2, 3, 4]


def test_what_nobody_labelled_is_no_class(tmp_path):
    task = load_task("msd", trees.write_nnunet(tmp_path, 1))
    assert task.classes == {0: "background", 1: "front", 2: "back"}
    assert (task.layout, task.ignored) == ("nnunet", {3})


def test_msd_names_its_structures(tmp_path):
    task = load_task("msd", trees.write_msd(tmp_path, 2))
    assert (task.layout, task.classes) == ("msd", {0: "background", 1: "front", 2: "back"})
    manifest = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**manifest, "labels": {}}))
    with pytest.raises(RefusedError, match=r"E_MANIFEST .* names no structure"):
        load_task("msd", tmp_path)
    assert load_task("labelled", tmp_path).classes == {}, "which values there are is seen in the label maps"


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(RefusedError, match="E_CONFIG no task is called 'choas'") as refused:
        load_task("choas", tmp_path)
    assert refused.value.hint.startswith("did you mean 'chaos'?")


def test_data_without_labels_is_refused(tmp_path):
    trees.write_labelled(tmp_path, 1)
    (tmp_path / "case0_seg.nii.gz").unlink()
    with pytest.raises(RefusedError, match=r"E_MISSING .* has no case with a label map"):
        load_task("labelled", tmp_path)


def test_data_of_another_modality_is_refused_with_the_task_that_fits(tmp_path):
    with pytest.raises(RefusedError, match=r"E_MISSING .* label maps of MR only") as refused:
        load_task("chaos", trees.write_chaos(tmp_path, ct=0, mr=1))
    assert refused.value.hint == "use --task chaos-mr"


def test_data_in_another_layout_is_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"E_FORMAT .* is not laid out as chaos"):
        load_task("chaos", trees.write_labelled(tmp_path, 1))
    with pytest.raises(RefusedError, match=r"E_MISSING .* does not exist"):
        load_task("msd", tmp_path / "nowhere")


def test_every_declaration_is_sound():
    for name, declaration in TASKS.items():
        config = load_config(defaults=task_settings(name))
        low, high = config.volumes.ct_window_hu
        assert low < high
        assert (declaration.kind == "classification") == (declaration.diagnose is not None)


def test_a_tasks_own_settings_lie_below_presets_and_users():
    liver = task_settings("chaos")
    assert load_config(defaults=liver).volumes.ct_window_hu == (-160, 240)
    whole = load_config(defaults=liver, settings=["volumes.ct_window_hu=[-1000, 1000]"])
    assert whole.volumes.ct_window_hu == (-1000, 1000)
    brain = task_settings("oasis-seg")
    assert load_config(defaults=brain).finetune.flip_axes == ("x",)
    assert load_config(preset="paper", defaults=brain).finetune.flip_axes == (), "the paper augments nothing"


def test_the_command_line_tells_the_tasks():
    assert set(TOLD.split(", ")) == TASKS.keys() - {"chaos-ct", "mmwhs-ct", "mmwhs-both"}
