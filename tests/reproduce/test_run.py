"""Whole programmes, tiny, by the real command line in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m3di.events import ignore
from m3di.reproduce.run import redraw, reproduce
from tests.cli.running import command, m3di
from tests.reproduce.made import hearts
from tests.reproduce.tiny import DIAGNOSED, ONE, SEEN, SIZES, TINY, write_hearts, write_hippocampi


def tiny(out, data, tables=(ONE, SEEN), report=ignore, **more):
    return reproduce(TINY, tables, out, data=data, settings=SIZES, devices=["cpu"], report=report, **more)


def files_of(done):
    return {path.name: path.read_bytes() for path in done.files}


@pytest.mark.slow
def test_a_programme_runs_whole_once_and_its_tables_are_drawn_again_byte_for_byte(tmp_path):
    out, data = tmp_path / "out", write_hippocampi(tmp_path / "data")
    events = []
    done = tiny(out, data, workers=2, report=lambda event, **facts: events.append((event, facts)))
    ended = [(facts["cell"], facts["left"]) for event, facts in events if event == "finished"]
    assert [left for _, left in ended] == [4, 3, 2, 1, 0]
    assert {name for name, _ in ended} == {facts["cell"] for event, facts in events if event == "begun"}
    assert done.failed == {}
    assert (done.made, done.finished, list(done.missing)) == (5, 0, ["acdc"])
    (row,) = done.findings[0].to_dict()["rows"]
    assert row["test_cases"] == 4, "of ten subjects, split 5:1:4"
    assert row["gain_low"] <= row["gain_dice"] <= row["gain_high"]
    assert row["gain_dice"] == pytest.approx(100 * (row["pretrained_dice"] - row["scratch_dice"]), abs=1e-3)
    assert any("no subject" in note or "no scan" in note for note in done.findings[0].notes)
    records = {path.stem: json.loads(path.read_text()) for path in (out / "cells").iterdir()}
    scratch = records["hippocampus-vit-100pct-scratch-seed0"]
    assert scratch["cost"]["encoder_passes"] == 2 * 2
    assert scratch["cost"]["cpu_s"] > 0
    assert scratch["cost"]["peak_memory_mib"] > 100
    assert records["store-common"]["cost"]["teacher_passes"] == 10 * 3 * 2
    assert {"table1.md", "table1.csv", "table1.tex", "table1.json", "figure2.png"} <= files_of(done).keys()

    again = tiny(out, data)
    assert (again.made, again.finished) == (0, 5)
    drawn = redraw(TINY, (ONE, SEEN), tmp_path / "elsewhere", out / "cells")
    assert files_of(again) == files_of(done) == files_of(drawn)


@pytest.mark.slow
def test_a_linear_probe_is_scored_by_accuracy_and_auc(tmp_path):
    done = tiny(tmp_path / "out", write_hearts(tmp_path / "data"), tables=(DIAGNOSED,))
    assert done.failed == {}
    (row,) = done.findings[0].to_dict()["rows"]
    assert (row["network"], row["test_cases"], row["pretraining"]) == ("vit linear probe", 4, "scratch")
    assert row["scratch_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    assert 0 <= row["scratch_auc"] <= 1
    assert row["gain_accuracy"] is None


@pytest.mark.slow
def test_a_cell_that_fails_is_noted_and_the_others_go_on(tmp_path):
    data = write_hippocampi(tmp_path / "data", num_cases=3)
    for path in (data / "msd_hippocampus/labelsTr").iterdir():
        path.write_bytes(b"no label map")
    done = tiny(tmp_path / "out", data, tables=(ONE,))
    assert list(done.failed) == ["hippocampus-vit-100pct-scratch-seed0", "hippocampus-vit-100pct-main-seed0"]
    assert {path.stem for path in (tmp_path / "out/cells").iterdir()} == {
        "store-common", "pretrain-common-vit-main-seed0"
    }  # fmt: skip
    errors = [json.loads(path.read_text()) for path in (tmp_path / "out/work/logs").glob("*/error.json")]
    assert [error["code"][:2] for error in errors] == ["E_", "E_"]


@pytest.mark.slow
def test_a_stop_ends_the_cells_cleanly_and_the_same_command_goes_on(tmp_path):
    out, data = tmp_path / "out", write_hippocampi(tmp_path / "data")
    settings = [part for one in (*SIZES, "finetune.max_steps=100000") for part in ("--set", one)]
    arguments = ("reproduce", "figure3", "--scale", "small", "--seeds", "0", "--data", data, "--out", out, "--device",
                 "cpu", *settings)  # fmt: skip
    running = subprocess.Popen(
        command(*arguments, "--quiet"), cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    log = out / "work/logs/hippocampus-vit-5pct-scratch-seed0/finetune.jsonl"
    while running.poll() is None and not (log.exists() and '"step"' in log.read_text()):
        signal.sigtimedwait([], 0.1)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 143
    assert "run the same command again" in running.stderr.read()
    running.stderr.close()
    saved = list((out / "work/runs/hippocampus-vit-5pct-scratch-seed0/checkpoints").iterdir())
    assert saved, "the run saved before it ended"
    assert not (out / "cells").exists()
    planned = json.loads(m3di(*arguments, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert {cell["action"] for cell in planned["cells"]} == {"make", "missing"}


def test_tables_are_drawn_from_cells_by_the_command_line(tmp_path):
    for one in hearts().values():
        one.write(tmp_path / "cells")
    arguments = ("reproduce", "table1", "--scale", "small", "--out", tmp_path / "drawn", "--from", tmp_path / "cells")
    done = m3di(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "+3.0 [+3.0, +3.0]" in done.stdout
    assert "nnFormer + Med3DInsight" in done.stdout
    first = {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}
    assert first.keys() == {"table1.json", "table1.md", "table1.csv", "table1.tex"}
    shown = json.loads(m3di(*arguments, "--json", cwd=tmp_path).stdout)
    assert shown["schema"] == "m3di.reproduce/1"
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "drawn").iterdir()}


def test_a_dry_run_names_cells_commands_and_what_is_missing_and_writes_nothing(tmp_path):
    done = m3di("reproduce", "table1", "--out", "out", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "m3di finetune --task chaos --data $DATA/chaos" in done.stdout
    assert "--preset paper" in done.stdout
    assert "# dataset mmwhs is not there. MM-WHS: get it from" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_refused_before_anything_is_written(tmp_path):
    for arguments, code in (
        (("table1",), "E_MISSING"),
        (("table9",), "E_CONFIG"),
        (("table1", "--seeds", "a"), "E_CONFIG"),
        (("table1", "--scale", "huge"), "E_CONFIG"),
        (("table1", "--preset", "smoke"), "E_CONFIG"),
        (("table1", "--from", "nowhere"), "E_MISSING"),
    ):
        done = m3di("reproduce", *arguments, "--out", "out", cwd=tmp_path)
        assert (done.returncode, code in done.stderr, "hint: " in done.stderr) == (2, True, True), arguments
    assert list(tmp_path.iterdir()) == []


def test_what_the_readme_shows_comes_from_the_finished_cells(tmp_path):
    results = Path(__file__).parents[2] / "results"
    tables = ("table1", "table3", "table2", "ablation-objective", "figure3")
    done = m3di(
        "reproduce", *tables, "--scale", "small", "--from", results / "cells", "--out", tmp_path, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    written = [f"{name}.{kind}" for name in tables for kind in ("json", "csv", "md", "tex")]
    for name in (*written, "figure3.svg"):
        assert (tmp_path / name).read_text() == (results / name).read_text(), f"{name}: write it again, and README"
    shown = (results.parent / "README.md").read_text().replace("**", "")
    segmented, ablated, classified, objectives = (
        json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in tables[:4]
    )
    assert {row["network"] for row in segmented} == {"vit", "setr_mla", "unet"}
    assert {row["pretraining"] for row in ablated} == {"ex1", "ex2", "ex3"}
    for row in segmented:
        assert f"| {row['scratch_dice']:.3f} | {row['pretrained_dice']:.3f} | {difference(row)} |" in shown
    assert len(objectives) == 2 * 8
    for row in (*ablated, *objectives):
        assert f"(from scratch {row['scratch_dice']:.3f})" in shown
        recalls = (f"{100 * row['retrieval'][f'{part}_recall_at_10']:.1f}" for part in ("image", "text"))
        assert f"| {row['pretrained_dice']:.3f}, {difference(row)} |" in shown
        assert f"| {' / '.join(recalls)}% |" in shown
    for row in classified:
        for metric, ends in (("accuracy", "gain"), ("auc", "gain_auc")):
            means = f"{100 * row[f'scratch_{metric}']:.1f} / {100 * row[f'pretrained_{metric}']:.1f}%"
            assert f"| {means} | {difference(row, metric, ends)}" in shown
    flowing = " ".join(shown.split())
    against = json.loads((tmp_path / "ablation-objective.json").read_text())["against_main"]
    for dataset in ("hippocampus", "acdc"):
        for arm in ("dense", "apart"):
            assert difference(only(against, dataset=dataset, pretraining=arm)) in flowing
    probe = only(classified, dataset="adrenal", network="vit linear probe")
    recalls = [
        f"{100 * probe['classes'][name][f'{side}_recall']:.1f}"
        for name in ("hyperplasia", "normal")
        for side in ("scratch", "pretrained")
    ]
    assert "recall of hyperplasia goes from {} to {}%, of normal from {} to {}%".format(*recalls) in flowing
    assert difference(probe, "balanced_accuracy", "gain_balanced_accuracy") in shown
    few = only(segmented, dataset="hippocampus", network="vit", label_fraction=0.2)
    assert "(20% of the labels: {} against {})".format(*class_gains(few, "Posterior", "Anterior")) in flowing
    hearts = class_gains(only(segmented, dataset="acdc", network="setr_mla"), "RV", "Myocardium", "LV")
    assert "(right ventricle {}, myocardium {}, left ventricle {})".format(*hearts) in flowing


def only(rows, **facts):
    (row,) = [row for row in rows if facts.items() <= row.items()]
    return row


def class_gains(row, *names):
    return [f"{row['classes'][name]['gain_dice']:+.1f}" for name in names]


def difference(row, metric="dice", ends="gain"):
    return f"{row[f'gain_{metric}']:+.1f} ({row[f'{ends}_low']:+.1f} to {row[f'{ends}_high']:+.1f})"


def test_the_readmes_table_of_pretrainings_is_what_its_benchmark_prints(tmp_path):
    root = Path(__file__).parents[2]
    kept = tmp_path / "pretraining.json"
    kept.write_bytes((root / "results" / kept.name).read_bytes())
    table = [sys.executable, "benchmarks/pretraining.py", "table", kept]
    printed = subprocess.run(table, cwd=root, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    assert kept.read_bytes() == (root / "results" / kept.name).read_bytes()
    lines = [line for line in printed.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(json.loads(kept.read_text())["arms"])
    assert "\n".join(lines) in (root / "README.md").read_text()
