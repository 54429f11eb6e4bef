"""Pages that commands write where `--html` says."""

import json

import pytest

from cli.app import run
from tests.evaluation.test_pairs import labels, shifted, write_nifti
from tests.report.test_write import Outline
from tests.stores.stores import build


def title(path):
    return Outline(path.read_text(encoding="utf-8")).text["h1"]


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "store")


def test_info_and_verify_write_a_page_beside_their_data(store, tmp_path, capsys):
    for command, name, said in (("info", "Store: store", "volumes"), ("verify", "Verification: store", "sound")):
        page = tmp_path / f"{command}.html"
        assert run([command, "--store", str(store), "--html", str(page), "--json"]) == 0
        assert said in json.loads(capsys.readouterr().out), "one object, as without a page"
        assert title(page) == [name]


def test_damage_is_still_told_by_the_exit_code(store, tmp_path, capsys):
    next((store / "volumes.zarr/image").glob("c.*")).write_bytes(b"")
    page = tmp_path / "verify.html"
    assert run(["verify", "--store", str(store), "--html", str(page)]) == 4
    assert "Damaged:" in Outline(page.read_text(encoding="utf-8")).text["strong"]


def test_masks_against_masks_can_be_a_page(tmp_path, capsys):
    write_nifti(tmp_path / "truth/a.nii.gz", labels(1))
    write_nifti(tmp_path / "guess/a.nii.gz", shifted(labels(1)))
    folders = ["--prediction", str(tmp_path / "guess"), "--reference", str(tmp_path / "truth")]
    assert run(["evaluate", *folders, "--html", str(tmp_path / "new/masks.html"), "--json"]) == 0
    assert title(tmp_path / "new/masks.html") == ["Masks against masks"]
