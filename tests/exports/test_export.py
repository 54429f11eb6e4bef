import json

import pytest

from m3di.exports import FORMATS, export
from stores.errors import RefusedError
from tests.cli.running import m3di
from tests.exports.made import pretrained_run

DYNUNET = {"filters": [4, 6, 8]}


def fill(out):
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def link(out):
    out.symlink_to(out.parent)


@pytest.mark.parametrize("make", [fill, lambda out: out.write_text("mine"), link])
@pytest.mark.parametrize("to", FORMATS)
def test_what_is_there_is_left_alone(to, make, tmp_path):
    run = pretrained_run(tmp_path / "run", "dynunet", **DYNUNET)
    make(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RefusedError) as caught:
        export(run, to, tmp_path / "out")
    assert caught.value.code == "E_PATH"
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    export(pretrained_run(tmp_path / "run", "dynunet", **DYNUNET), "hub", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_refusal_leaves_nothing(tmp_path):
    run = pretrained_run(tmp_path / "run", "dynunet", **DYNUNET)
    for to, code in (("monai", "E_NETWORK"), ("nnunet", "E_CONFIG"), ("onnx", "E_CONFIG")):
        with pytest.raises(RefusedError) as caught:
            export(run, to, tmp_path / "out")
        assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command(tmp_path):
    pretrained_run(tmp_path / "run", "dynunet", **DYNUNET)
    arguments = [
        "export",
        "--run",
        "run",
        "--to",
        "nnunet",
        "--out",
        "out",
        "--set",
        "export.spacing_mm=1.5",
        "--json",
    ]
    done = m3di(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["schema"] == "m3di.export/1"
    assert "checkpoint_final.pth" in found["files"]
    assert len(found["provenance"]["run_sha256"]) == 64
    again = m3di(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("error: E_PATH")
