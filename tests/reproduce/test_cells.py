from dataclasses import replace

import pytest
import typer.main

from cli.app import app
from m3di.config import load_config
from m3di.networks.registry import CLASSIFICATION, ENCODERS, SEGMENTATION
from m3di.reproduce.arms import ABLATIONS
from m3di.reproduce.cells import Grid, digest_facts
from m3di.reproduce.literal import LITERAL
from m3di.reproduce.run import PAPERS
from m3di.reproduce.small import SMALL
from m3di.tasks.registry import TASKS
from tests.reproduce.made import EVERYTHING, HEARTS, TWO, grid


def small(*names, **more):
    return grid(**more).cells([SMALL.tables[name] for name in names])


def test_the_small_segmentation_programme_is_the_one_that_was_promised():
    cells = small("table1").values()
    assert sum(cell.kind == "finetune" for cell in cells) == 2 * 2 * ((5 + 5 + 3) + 3 + 3), "sets, starts, seeds"
    assert sum(cell.kind == "pretrain" for cell in cells) == 5 + 3 + 3
    assert sum(cell.kind == "store" for cell in cells) == 1


def test_every_task_of_the_small_programme_is_learnt_by_three_networks_from_scratch_and_pretrained():
    cells = {cell.name for cell in small("table1", "table2").values() if cell.kind == "finetune"}
    of_kind = {"segmentation": ("vit", "setr_mla", "unet"), "classification": ("vit", "setr", "unet")}
    for task, fraction in (("hippocampus", 20), ("acdc", 20), ("acdc-diagnosis", 100), ("adrenal", 100)):
        for network in of_kind[SMALL.targets[task].kind]:
            for arm in ("scratch", "main"):
                assert {f"{task}-{network}-{fraction}pct-{arm}-seed{seed}" for seed in range(3)} <= cells
    assert len(small(*PAPERS)) == 193


@pytest.mark.parametrize("programme", [SMALL, LITERAL])
def test_networks_that_share_a_pretrained_encoder_have_it_in_one_size(programme):
    sizes = {(one.encoder, one.settings) for one in programme.networks.values() if one.encoder}
    assert len(sizes) == len({encoder for encoder, _ in sizes})


def test_the_first_seed_of_everything_comes_first_and_every_cell_behind_what_it_needs():
    cells = list(small(*PAPERS).values())
    seeds = [cell.seed for cell in cells if cell.kind != "store"]
    assert seeds == sorted(seeds)
    places = {cell.name: place for place, cell in enumerate(cells)}
    assert all(places[needed] < places[cell.name] for cell in cells for needed in cell.needs)


def test_what_says_the_same_in_other_words_shares_its_cells():
    names = small("table3").keys()
    assert not any("ex3" in name for name in names)
    assert {"hippocampus-vit-20pct-infonce-seed0", "hippocampus-vit-20pct-ex1-seed0"} <= names


def test_pretraining_sees_no_label_and_splits_as_fine_tuning_does():
    cells = small(*PAPERS, *ABLATIONS).values()
    splits = {str(cell.settings["split"]) for cell in cells if "split" in cell.settings}
    assert len(splits) == 1
    for cell in cells:
        if cell.kind == "store":
            assert not cell.settings["volumes"]["labels"]
            assert not cell.settings["captions"]["structures"]
    assert not SMALL.preset.startswith("paper")
    (one,) = {cell.settings["split"]["own"] for cell in cells if "split" in cell.settings}
    assert one is False, "a store does not know a set's own split"


def test_a_finetuning_differs_from_its_pair_by_its_start_alone():
    cells = small("table1")
    scratch, main = (cells[f"acdc-vit-20pct-{arm}-seed0"] for arm in ("scratch", "main"))
    assert scratch.settings == main.settings
    start = ("--init", "$OUT/work/runs/pretrain-common-vit-main-seed0")
    without = [word for word in main.commands[0] if word not in start]
    assert [word.replace("main", "scratch") for word in without] == list(scratch.commands[0])


def test_without_a_dataset_there_is_what_can_be_made_from_the_others():
    cells = small("table1", available=frozenset({"acdc"}))
    assert not any("hippocampus" in name for name in cells)
    assert cells["store-common"].datasets == ("acdc",)
    (scratch_only,) = {
        "-scratch-" in name
        for name in Grid(LITERAL, frozenset({"chaos"})).cells([LITERAL.tables["table1"]])
    }  # fmt: skip
    assert scratch_only, "nothing to pretrain on"


def test_other_seeds_take_the_place_of_the_programmes():
    assert {cell.seed for cell in small("table1", seeds=(7,)).values() if cell.kind != "store"} == {7}


@pytest.mark.parametrize("programme", [SMALL, LITERAL], ids=lambda one: one.name)
def test_every_command_line_is_one_that_m3di_takes(programme):
    everything = frozenset(programme.datasets_of(tuple(programme.tables.values())))
    commands = {
        command
        for cell in Grid(programme, everything, seeds=(0,)).cells(programme.tables.values()).values()
        for command in cell.commands
    }
    group = typer.main.get_command(app)
    for command in commands:
        context = group.commands[command[0]].make_context(command[0], list(command[1:]))
        given = context.params
        config = load_config(preset=given["preset"], settings=given["set"] or [])
        assert config.encoder.name in ENCODERS
        if command[0] == "finetune":
            networks = SEGMENTATION if TASKS[given["task"]].kind == "segmentation" else CLASSIFICATION
            assert given["network"] in networks
            if given["init"]:
                assert networks[given["network"]].encoder == config.encoder.name


def test_the_literal_programme_is_the_papers():
    cells = Grid(LITERAL, frozenset({"3dseg8", "oasis"})).cells([LITERAL.tables["table3"]])
    pretrain = cells["pretrain-common-nnformer-main-seed0"].settings
    assert (pretrain["pretrain"]["batch_size"], pretrain["pretrain"]["epochs"]) == (32, 300)
    assert (pretrain["pretrain"]["learning_rate"], pretrain["psat"]["num_queries"]) == (1e-4, 300)
    assert (pretrain["pretrain"]["slices_per_volume"], pretrain["psat"]["width"]) == (1, 512)
    assert cells["store-common"].settings["volumes"]["cube_size"] == 128
    assert pretrain["split"]["ratios"] == [0.7, 0.1, 0.2]
    assert {one.arms for one in LITERAL.tables["table3"].comparisons} == {("scratch", "ex1", "ex2", "ex3")}
    baselines = [one.network for one in LITERAL.tables["table1"].comparisons if one.arms == ("scratch",)]
    assert len(baselines) == 5 * 3, "five baselines on three sets"


def test_a_digest_covers_settings_data_and_what_it_builds_on():
    cell = grid(TWO).finetuning(HEARTS, "main", 0)
    data, needs = {"acdc": "a"}, {"pretrain-common-vit-main-seed0": "p"}
    first = digest_facts(cell.facts(data=data, needs=needs))
    assert first == digest_facts(cell.facts(data=data, needs=needs))
    others = [
        cell.facts(data={"acdc": "b"}, needs=needs),
        cell.facts(data=data, needs={"pretrain-common-vit-main-seed0": "q"}),
        grid(TWO).finetuning(HEARTS, "main", 1).facts(
            data=data, needs={"pretrain-common-vit-main-seed1": "p"}
        ),
        grid(TWO, extra=("finetune.max_steps=7",)).finetuning(HEARTS, "main", 0).facts(data=data, needs=needs),
    ]  # fmt: skip
    assert first not in [digest_facts(facts) for facts in others]


def test_a_setting_that_is_new_makes_no_result_stale_and_one_that_changed_does():
    cell = grid(TWO).finetuning(HEARTS, "scratch", 0)
    then = cell.facts(data={"acdc": "a"}, needs={})
    made = digest_facts(then)

    def now(**finetune):
        settings = {**cell.settings, "finetune": {**cell.settings["finetune"], **finetune}}
        return digest_facts(replace(cell, settings=settings).facts(data={"acdc": "a"}, needs={}), like=then)

    assert now(brand_new=True) == made
    assert now(max_steps=301) != made


def test_extra_settings_reach_every_command():
    cells = small("table1", extra=("finetune.max_steps=7",))
    for cell in cells.values():
        assert "finetune.max_steps=7" in cell.commands[0]
    assert cells["acdc-vit-20pct-main-seed0"].settings["finetune"]["max_steps"] == 7
    assert {name for cell in cells.values() for name in cell.datasets} <= EVERYTHING
