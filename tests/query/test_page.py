import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from m3di.query import Searcher, Wanted
from m3di.query.page.contents import Contents
from m3di.query.page.document import SCRIPTS, STYLES, filed_document, served_document, static_file
from m3di.query.page.pixels import halved
from m3di.query.page.projection import project
from m3di.query.page.write import write_answer_page, write_diagnosis_page
from m3di.query.question import Question, ask
from m3di.volumes.slices import displayed
from stores.errors import RefusedError
from tests.query.stores import HOSTILE, write_hostile_store, write_store

STATIC = Path(__file__).parents[2] / "m3di/query/page/static"


class Parts(HTMLParser):
    """Tags with their attributes, and what is inside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.inside = [], {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inside.setdefault((self.tags[-1][0], self.tags[-1][1].get("type", "")), data)


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    with Searcher(write_store(tmp_path_factory.mktemp("page") / "store")) as opened:
        yield opened


def page_of(searcher, question, path, wanted=Wanted()):  # noqa: B008
    write_answer_page(searcher, question, wanted, path)
    return path.read_text(encoding="utf-8")


def data_of(html):
    return json.loads(Parts(html).inside["script", "application/json"])


def test_a_file_holds_the_answer_and_what_it_shows(searcher, tmp_path):
    index = int(searcher.store.record("v1").valid_slices(2)[1])
    question = Question(volume="v1", plane="sagittal", slice=index)
    data = data_of(page_of(searcher, question, tmp_path / "new/page.html", Wanted(top=2)))
    expected = ask(searcher, question, Wanted(top=2))
    assert [hit["volume"] for hit in data["answer"]["results"]] == [hit.volume for hit in expected.results]
    assert data["answer"]["notes"] == list(expected.notes)
    shown = {hit.volume for hit in (*expected.results, *expected.same_place)}
    assert set(data["volumes"]) == set(data["cubes"]) == set(data["curves"]) == shown
    assert all(address.startswith("data:image/png;base64,") for address in data["pictures"].values())
    assert set(data["store"]["volumes"]) == {"v0", "v1", "v2", "v3"}


def test_the_same_answer_gives_the_same_bytes(searcher, tmp_path):
    first = page_of(searcher, Question(volume="v0"), tmp_path / "a.html")
    assert page_of(searcher, Question(volume="v0"), tmp_path / "b.html") == first


def test_a_file_refers_to_nothing_and_its_policy_allows_nothing_else(searcher, tmp_path):
    html = page_of(searcher, Question(volume="v0"), tmp_path / "page.html")
    parts = Parts(html)
    addresses = [value for _, attributes in parts.tags for name, value in attributes.items()
                 if name in ("src", "href", "action", "data", "srcset")]  # fmt: skip
    assert addresses == ["data:,"]
    (policy,) = [attributes["content"] for _, attributes in parts.tags if "http-equiv" in attributes]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert not [
        name for _, attributes in parts.tags for name in attributes if name.startswith("on") or name == "style"
    ]


def test_hostile_texts_end_no_element(tmp_path):
    with Searcher(write_hostile_store(tmp_path / "store")) as searcher:
        html = page_of(searcher, Question(volume="v0"), tmp_path / "page.html")
    assert [tag for tag, _ in Parts(html).tags if tag == "script"] == ["script"] * 2, "data and code alone"
    assert "owned" not in html.replace("\\u003c", "").split('id="data"')[0]
    data = data_of(html)
    assert {volume["captions"][0][0] for volume in data["volumes"].values()} == set(HOSTILE)


def test_the_served_page_holds_no_data_and_names_all_its_files():
    parts = Parts(served_document())
    named = [attributes[name] for _, attributes in parts.tags for name in ("src", "href") if name in attributes]
    assert named == ["data:,", *(f"/{name}" for name in (*STYLES, *SCRIPTS))]
    assert not parts.inside


def test_scripts_show_text_as_text_only():
    """No script may turn text into markup or code, or ask for an address that is written in it."""
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|createContextualFragment"
    )
    for name in SCRIPTS:
        script = static_file(name)
        assert not re.search(forbidden, script), name
        assert re.findall(r"https?://[^\"]*", script) in ([], ["http://www.w3.org/2000/svg"]), name
        assert "</" not in script, name
    assert {path.name for path in STATIC.iterdir()} == {*SCRIPTS, "explorer.css", "explorer.html"}


def test_data_are_ascii_without_markup():
    html = filed_document({"text": "</script><!-- & \u2028 \ud800 é"})
    text = Parts(html).inside["script", "application/json"]
    assert not set(text) & set("<>&") and text.isascii()
    assert json.loads(text) == {"text": "</script><!-- & \u2028 \ud800 é"}


def test_beyond_what_a_file_should_hold_cubes_are_halved_and_the_last_left_out(searcher, tmp_path, monkeypatch):
    monkeypatch.setattr("m3di.query.page.write.MAX_BYTES", 2 * 16**3)
    monkeypatch.setattr("m3di.query.page.write.MAX_CUBES", 3)
    data = data_of(page_of(searcher, Question(volume="v0"), tmp_path / "page.html"))
    assert {cube["edge"] for cube in data["cubes"].values()} == {8}
    assert len(data["cubes"]) == len(data["volumes"]) == 3
    assert len(data["pictures"]) == 3, "one of each hit, also of the one whose volume is left out"
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert halved(cube).tolist() == [[[round((0 + 1 + 3 + 4 + 9 + 10 + 12 + 13) / 8)]]]


def test_a_store_without_slices_shows_those_of_its_cubes(searcher, monkeypatch):
    contents = Contents(searcher)
    cube = contents.cube("v2")
    index = searcher.store.recipe.positions[2]
    monkeypatch.setitem(searcher.store.recipe.__dict__, "slice_size", 0)
    for number, plane in enumerate(("axial", "coronal", "sagittal")):
        assert np.array_equal(contents.picture("v2", plane, index), displayed(cube, number)[index])


def test_places_on_the_map_are_principal_components():
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 6)) @ np.diag([5, 3, 1, 0.5, 0.1, 0.1]) + 7
    places, spread = project(rows)
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    assert np.abs(places) == pytest.approx(np.abs(left[:, :2] * values[:2]))
    assert spread == pytest.approx((values**2 / (values**2).sum())[:2])
    assert np.array_equal(project(rows)[0], places)
    assert project(rows[:1])[0].tolist() == [[0, 0]]
    assert project(np.ones((3, 6)))[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    "question, words",
    [
        (Question(text="liver"), "liver"),
        (Question(volume="v0"), "volumes like v0"),
        (Question(volume="v0", plane="axial", slice=3), "slices like axial slice 3 of v0"),
        (Question(image=Path("/home/someone/x.png")), "slices like the image x.png"),
        (Question(scan=Path("/home/someone/x.nii")), "volumes like the scan x.nii"),
    ],
)
def test_questions_in_words_name_no_folder(question, words):
    assert question.words == words


def test_findings_become_a_page(tmp_path):
    found = [("2 outlier volumes", (("volume", "cosine"), [("<b>v0</b>", 0.5), ("v1", 0.25)]))]
    write_diagnosis_page(found, "store", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 outlier volumes" in html and "&lt;b&gt;v0" in html


def test_a_place_that_cannot_be_written_is_refused_before_the_question_is_looked_at(searcher, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/page.html", tmp_path):
        with pytest.raises(RefusedError, match="E_PATH"):
            write_answer_page(searcher, Question(volume="nobody"), Wanted(), path)
        with pytest.raises(RefusedError, match="E_PATH"):
            write_diagnosis_page([], "store", path)
