"""What is done, what is to be made, and what is kept of it."""

import json

import pytest

from m3di.reproduce.datasets import DATASETS, digest_dataset, find_datasets, require_some
from m3di.reproduce.outcomes import scores_of
from m3di.reproduce.records import read_records
from m3di.reproduce.run import tables_of
from m3di.reproduce.scheduling import make_plan, written
from m3di.reproduce.workspace import Workspace
from stores.errors import DamagedError, LockedError, RefusedError
from tests.reproduce.made import TWO, grid, hearts, record, segmented
from tests.reproduce.tiny import TINY

DATA = {"hippocampus": "h", "acdc": "a"}


def plan_with(records, tmp_path, data=DATA, **more):
    cells = grid(TWO, **more).cells([TWO])
    return make_plan(cells, records, Workspace(tmp_path, {}), data)


def finished(tmp_path):
    """Records of every cell, with the digests that they would be made with."""
    plan = plan_with({}, tmp_path)
    return {
        name: record(name, cell.kind, {}, digest=plan.digests[name], facts=plan.facts[name])
        for name, cell in plan.cells.items()
    }


def leave_on_disk(name, tmp_path):
    plan = plan_with({}, tmp_path)
    workspace, cell = Workspace(tmp_path, {}), plan.cells[name]
    workspace.begin(cell, plan.digests[name])
    workspace.path(cell.folder).mkdir(parents=True)
    workspace.finish(cell)


def test_at_first_everything_is_to_be_made_and_then_nothing(tmp_path):
    assert len(plan_with({}, tmp_path).to_do) == 7
    assert plan_with(finished(tmp_path), tmp_path).to_do == ()


def test_what_was_made_from_other_data_or_settings_is_made_again_with_what_builds_on_it(tmp_path):
    records = finished(tmp_path)
    to_do = plan_with(records, tmp_path, data={**DATA, "hippocampus": "other"}).to_do
    assert set(to_do) == {name for name in records if "scratch" not in name}, "scratch needs neither it nor the store"
    to_do = plan_with(records, tmp_path, extra=("finetune.max_steps=7",)).to_do
    assert set(to_do) == set(records), "every command line has it"


def test_a_finished_cell_is_made_again_only_when_what_it_left_on_disk_is_needed_and_gone(tmp_path):
    records = finished(tmp_path)
    del records["acdc-vit-20pct-main-seed0"]
    chain = ("store-common", "pretrain-common-vit-main-seed0", "acdc-vit-20pct-main-seed0")
    assert plan_with(records, tmp_path).to_do == chain, "a fresh clone holds records, and no runs"
    leave_on_disk("pretrain-common-vit-main-seed0", tmp_path)
    assert plan_with(records, tmp_path).to_do == chain[2:], "the store is gone, and nothing needs it"


def test_the_remains_of_other_settings_are_cleared_away_and_of_the_same_kept(tmp_path):
    workspace, cell = Workspace(tmp_path, {}), grid(TWO).cells([TWO])["acdc-vit-20pct-scratch-seed0"]
    workspace.begin(cell, "first")
    (workspace.path(cell.folder) / "checkpoints").mkdir(parents=True)
    workspace.add_cost(cell, wall_s=1.0)
    workspace.begin(cell, "first")
    assert (workspace.path(cell.folder) / "checkpoints").exists(), "goes on where it was"
    assert workspace.costs(cell) == [{"wall_s": 1.0}], "what was spent already counts"
    workspace.begin(cell, "second")
    assert not workspace.path(cell.folder).exists()
    assert workspace.costs(cell) == []


def test_records_come_back_as_they_were_and_damage_is_named(tmp_path):
    one = segmented("a", 0.5, float("nan"))
    one.write(tmp_path)
    (found,) = read_records(tmp_path).values()
    assert (found.name, found.cost) == (one.name, one.cost)
    assert found.result["cases"][1]["dice"]["label 1"] is None, "strict JSON"
    (tmp_path / "b.json").write_text('{"schema": "m3di.cell/1"}')
    with pytest.raises(DamagedError, match=r"E_CORRUPT .*b\.json"):
        read_records(tmp_path)
    (tmp_path / "b.json").write_text(json.dumps({"schema": "m3di.cell/9"}))
    with pytest.raises(DamagedError, match="E_VERSION"):
        read_records(tmp_path)


def test_records_are_small_and_hold_no_path_of_this_machine(tmp_path):
    for one in finished(tmp_path).values():
        one.write(tmp_path / "cells")
    for path in (tmp_path / "cells").iterdir():
        assert str(tmp_path) not in path.read_text()
        assert path.stat().st_size < 20_000
    assert hearts().keys() == {path.stem for path in (tmp_path / "cells").iterdir()}


def test_a_command_line_can_be_pasted():
    command = ("finetune", "--run", "$OUT/work/runs/a", "--set", "encoder.options={patch_size=8, num_layers=1}")
    assert written(command) == (
        "m3di finetune --run $OUT/work/runs/a --set 'encoder.options={patch_size=8, num_layers=1}'"
    )  # fmt: skip


def test_places_are_found_below_any_of_their_names(tmp_path):
    (tmp_path / "Task04_Hippocampus").mkdir()
    found = find_datasets(tmp_path, ["hippocampus", "acdc"])
    assert found == {"hippocampus": (tmp_path / "Task04_Hippocampus").resolve()}
    workspace = Workspace(tmp_path / "out", found)
    assert workspace.resolve("$DATA/msd_hippocampus/imagesTr") == f"{found['hippocampus']}/imagesTr"
    assert workspace.resolve("$OUT/x") == f"{(tmp_path / 'out').resolve()}/x"
    assert workspace.resolve("vit") == "vit"


def test_the_digest_of_a_dataset_is_of_names_sizes_and_content(tmp_path):
    (tmp_path / "sub").mkdir()
    scan = tmp_path / "sub/scan.nii"
    scan.write_bytes(b"a" * 100)
    first = digest_dataset(tmp_path)
    (tmp_path / ".hidden").write_bytes(b"x")
    assert digest_dataset(tmp_path) == first
    scan.write_bytes(b"b" + b"a" * 99)
    second = digest_dataset(tmp_path)
    scan.rename(tmp_path / "sub/other.nii")
    assert len({first, second, digest_dataset(tmp_path)}) == 3


def test_without_any_dataset_it_is_said_where_to_get_each_and_how_to_lay_it_out(tmp_path):
    with pytest.raises(RefusedError, match="E_MISSING") as refused:
        require_some(tmp_path, {}, ["chaos", "mmwhs"])
    assert "zenodo" in refused.value.hint
    assert "CT/1" in refused.value.hint
    assert "MM-WHS: get it from" in refused.value.hint
    assert all(one.source.startswith(("http", "the sets")) for one in DATASETS.values())


def test_two_programmes_do_not_share_a_folder(tmp_path):
    with (
        Workspace(tmp_path, {}).locked(),
        pytest.raises(LockedError, match="E_LOCKED"),
        Workspace(tmp_path, {}).locked(),
    ):
        pass
    assert (tmp_path / "work/.gitignore").read_text() == "*\n"


def test_an_unknown_table_is_refused_with_those_that_are_known():
    with pytest.raises(RefusedError, match="no table is called 'table9'") as refused:
        tables_of(TINY, ["table9"])
    assert "table1" in refused.value.hint


def test_scores_are_kept_by_structure_and_subject():
    kept = scores_of({
        "classes": {"1": "RV"}, "leaks": "none",
        "cases": [{"case": "a", "dice": {"1": 0.12345678}}, {"case": "b", "subject": "p", "dice": {"1": None}}],
    })  # fmt: skip
    assert kept["cases"] == [
        {"case": "a", "subject": "a", "dice": {"RV": 0.123457}},
        {"case": "b", "subject": "p", "dice": {"RV": None}},
    ]
    kept = scores_of({
        "kind": "classification", "classes": {"0": "no", "1": "yes"}, "leaks": "none",
        "cases": [{"case": "a", "target": 1, "probabilities": [0.25, 0.75]}],
    })  # fmt: skip
    assert (kept["kind"], kept["classes"]) == ("classification", ["no", "yes"])
    assert kept["cases"][0]["probabilities"] == [0.25, 0.75]
