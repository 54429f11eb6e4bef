import json
import subprocess
import sys

import pytest

from m3di.inspect import describe_store
from m3di.report import write_page
from m3di.report.pages.store import card_table, store_page, verification_page, write_verification
from stores import Store
from stores.store import Quarantined
from stores.verification import Problem, verify
from tests.report.pages.hostile import ALL, assert_harmless
from tests.report.test_write import Outline
from tests.stores.stores import RECIPE, build, fill, record


@pytest.fixture
def store(tmp_path):
    with Store.create_or_open(tmp_path / "store", RECIPE) as store:
        fill(store, ["v0", "v1", "v2"])
        store.commit_quarantine(Quarantined("bad", "scans/bad.nii", "E_EMPTY", "it holds nothing"))
    return tmp_path / "store"


def cells(outline):
    return [text for tag in ("th", "td") for text in outline.text.get(tag, [])]


def shown(page, tmp_path):
    return write_page(page, tmp_path / "page.html").read_text(encoding="utf-8")


def test_facts_of_a_store_add_up(store):
    facts = describe_store(store)
    files = [path for path in store.rglob("*") if path.is_file()]
    assert sum(facts["bytes by part"].values()) == facts["bytes"] == sum(path.stat().st_size for path in files)
    chunks = sum(path.stat().st_size for path in (store / "volumes.zarr/image").iterdir())
    assert facts["bytes by part"]["volumes.zarr/image"] == chunks
    assert facts["bytes by part"]["rows.lmdb"] > 0
    valid = [[len(record(f"v{seed}", blank=seed).valid_slices(plane)) for plane in range(3)] for seed in range(3)]
    assert facts["sets"] == [
        {"dataset": "set", "modality": "MR", "body_part": "head", "volumes": 3, "subjects": 3,
         "slices": sum(map(sum, valid))}
    ]  # fmt: skip
    axial = sum(counts[0] for counts in valid)
    assert facts["blank"]["axial"] == pytest.approx(1 - axial / (3 * len(RECIPE.positions)))
    assert json.loads(json.dumps(facts)) == facts


def test_an_empty_store_has_a_page(tmp_path):
    with Store.create_or_open(tmp_path / "store", RECIPE):
        pass
    html = shown(store_page(describe_store(tmp_path / "store")), tmp_path)
    assert "There is no volume yet." in html
    assert "No scan was refused." in html


def test_the_page_says_what_is_in_a_store(store, tmp_path):
    outline = Outline(shown(store_page(describe_store(store)), tmp_path))
    assert outline.text["h2"] == ["Content", "Planes and voxels", "Quarantine", "Teacher", "Room", "Recipe"]
    found = cells(outline)
    for word in ("set", "MR", "head", "axial", "bad", "E_EMPTY", "it holds nothing", "scans/bad.nii", "rows.lmdb"):
        assert word in found
    assert "cube_size" in found


def test_a_card_shows_every_split_and_chance():
    recall = {"recall@1": 0.1, "recall@5": 0.2, "recall@10": 0.3}
    scores = {"text_to_image": recall, "image_to_text": recall, "chance": recall, "right_plane": 0.5, "items": 9,
              "position_error": None}  # fmt: skip
    one = card_table({"before": scores, "after": scores})
    assert [row[0] for row in one.rows] == ["before fitting", "after fitting", "a random order"]
    assert one.rows[0][1:] == ("10.0%", "20.0%", "30.0%", "10.0%", "20.0%", "30.0%", "50.0%", "")
    assert "9 slices" in one.caption
    several = card_table({"splits": [{"seed": seed, "after": scores} for seed in (0, 1)]})
    assert [row[0] for row in several.rows] == [
        "after fitting, split 0", "a random order, split 0", "after fitting, split 1", "a random order, split 1"
    ]  # fmt: skip


def test_a_sound_store_is_told_with_its_content(tmp_path):
    store = build(tmp_path / "store")
    html = write_verification(store, list(verify(store)), tmp_path / "v.html", quick=False).read_text()
    assert "nothing is wrong" in html
    assert "Every byte was read" in html
    assert "Datasets" in html
    quick = write_verification(store, [], tmp_path / "q.html", quick=True).read_text()
    assert "bytes were not read" in quick


def test_damage_is_named_and_the_store_is_left_alone(tmp_path):
    store = build(tmp_path / "store")
    chunk = next((store / "volumes.zarr/image").glob("c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    (store / "rows.lmdb/data.mdb").write_bytes(b"no database at all")
    problems = list(verify(store))
    outline = Outline(write_verification(store, problems, tmp_path / "v.html", quick=False).read_text())
    assert "items are damaged or missing." in outline.text["p"][-1]
    assert outline.text["h2"] == ["Verdict"]
    assert {problem.item for problem in problems} <= set(outline.text["th"])


def test_problems_come_by_how_bad_they_are(tmp_path):
    problems = [Problem(kind, f"item {kind}", "?") for kind in ("unfinished", "surplus", "missing", "damaged")]
    page = verification_page(tmp_path, problems, None, quick=False)
    (_, kinds, table, _) = page.sections[0].blocks
    assert [row[0] for row in kinds.rows] == ["damaged", "missing", "surplus", "unfinished"]
    assert [row[1] for row in table.rows] == ["damaged", "missing", "surplus", "unfinished"]
    assert page.sections[0].blocks[0].tone == "doubt"


def test_hostile_names_are_harmless(store, tmp_path):
    facts = describe_store(store)
    facts["sets"][0] |= {"dataset": ALL, "modality": ALL, "body_part": ALL}
    facts["quarantine"] = [{"case": ALL, "code": ALL, "message": ALL, "source": ALL}]
    facts |= {"teacher": ALL, "captioner": ALL, "store": ALL}
    assert_harmless(shown(store_page(facts), tmp_path))
    problems = [Problem("damaged", ALL, ALL)]
    assert_harmless(shown(verification_page(tmp_path / "x", problems, facts, quick=False), tmp_path))


def test_pages_of_stores_need_no_torch():
    code = "import sys, m3di.report.pages.store, m3di.inspect; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
