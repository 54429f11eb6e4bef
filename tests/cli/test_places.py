"""A place that cannot be: below a file, or where a file is. One line and a hint, nothing written."""

import pytest

from tests.cli.running import m3di
from tests.phantoms import write_msd_dataset
from tests.stores.stores import build


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["build-store", "data", "--store", "file/x"], "E_PATH cannot write file/x: file is not a folder"),
        (["build-store", "data", "--store", "file"], "E_STORE file exists and is not a store"),
        (["merge", "store", "--store", "file/x"], "E_PATH cannot write file/x: file is not a folder"),
        (["merge", "file/x", "--store", "new"], "E_STORE there is no store at file/x"),
        (["pretrain", "--store", "store", "--run", "file/x"], "E_PATH cannot write file/x: file is not a folder"),
        (["query", "liver", "--store", "file/x"], "E_STORE there is no store at file/x"),
        (["remove", "--volume", "v0", "--store", "file/x"], "E_STORE there is no store at file/x"),
    ],
)
def test_a_place_below_a_file_is_refused_by_name(tmp_path, arguments, message):
    (tmp_path / "file").write_text("mine")
    build(tmp_path / "store", 2)
    write_msd_dataset(tmp_path / "data", 1)
    done = m3di(*arguments, "--preset", "smoke", "--quiet", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.strip().splitlines()
    assert error == f"error: {message}"
    assert hint.startswith("hint: ")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "file", "store"]
