import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from m3di.report import (
    PALETTE,
    Chart,
    Charts,
    ColourKey,
    Commands,
    Facts,
    Legend,
    Link,
    Links,
    Matrix,
    Notice,
    Order,
    Page,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Series,
    Table,
    write_page,
)
from stores.errors import RefusedError

HOSTILE = "<script>alert(\"1\")</script>' onload='x' & {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Outline(HTMLParser):
    """Checks that tags balance, and collects tags, attributes and the text inside each kind of tag."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"attribute twice in <{tag}>"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def blocks(text):
    """One block of every kind, with `text` wherever text goes."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    return [
        Paragraph(text),
        Notice(text, text, "doubt"),
        Links([Link(text, text)]),
        Matrix([text, "other"], [[3, 1], [0, 0]], text),
        Legend([ColourKey(text, PALETTE[1])]),
        Charts([Chart([Series(text, [0, 1], [0, 1], "guide")], text, text, text, shape="square")] * 2),
        Facts([(text, text), ("Cases", 24)]),
        Table([text, "Dice"], [[text, 0.5]], text),
        Pictures([Picture(pixels, text, text)], 1, key=[ColourKey(text, PALETTE[1])], title=text),
        Chart([Series(text, [0, 1], [1.0, 2.0]), Series("flat", [0], [1])], text, text, text),
        Commands([text, text]),
    ]


def render(tmp_path, page):
    return write_page(page, tmp_path / "page.html").read_text(encoding="utf-8")


def page_of(*content):
    return Page("Title", "Lead", [Section("Part", content)])


def test_every_block_appears_in_well_formed_markup(tmp_path):
    outline = Outline(render(tmp_path, Page("T", "L", [Section(f"S{n}", blocks("text")) for n in range(3)])))
    names = [tag for tag, _ in outline.tags]
    assert {"p", "dl", "table", "img", "svg", "pre", "nav"} <= set(names)
    assert outline.text["h1"] == ["T"]
    assert outline.text["h2"] == ["S0", "S1", "S2"]
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    inner = [link["href"] for link in outline.all("a") if link["href"].startswith("#")]
    assert [href.removeprefix("#") in ids for href in inner] == [True] * 3


def test_hostile_text_stays_text_everywhere(tmp_path):
    html = render(tmp_path, Page(HOSTILE, HOSTILE, [Section(HOSTILE, blocks(HOSTILE))] * 3))
    outline = Outline(html)
    assert "<script" not in html
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert "{{ 7 * 7 }}" in html
    assert {attributes["alt"] for attributes in outline.all("img")} == {HOSTILE}
    assert set(outline.text["caption"]) == {HOSTILE}
    assert set(outline.text["figcaption"]) == {HOSTILE}


def test_page_refers_to_nothing_outside_itself(tmp_path):
    html = render(tmp_path, page_of(*blocks("text")))
    assert not re.search(r"https?:|//|@import|url\(|<link|<iframe|<object|<base", html.split("base64,")[0])
    outline = Outline(html)
    for _, attributes in outline.tags:
        for name in ("src", "srcset", "action", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert {link["href"] for link in outline.all("a")} <= {"text", "#section-1"}


def test_browser_is_told_to_load_and_run_nothing(tmp_path):
    (policy,) = [m for m in Outline(render(tmp_path, page_of())).all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy["content"]
    assert "script-src" not in policy["content"]


def test_a_page_with_a_table_to_order_admits_its_own_script_and_no_other(tmp_path):
    table = Table(["case", "Dice"], [[HOSTILE, 0.25], ["b", math.nan]], "cases", Order(1))
    outline = Outline(html := render(tmp_path, page_of(table)))
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert script == (files("m3di.report") / "templates" / "sort.js").read_text(encoding="ascii")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [m["content"] for m in outline.all("meta") if "http-equiv" in m]
    assert policy.split("; ")[-1] == f"script-src 'sha256-{digest}'"
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none';")
    assert not re.search(r"innerHTML|eval|insertAdjacent|document\.write", script)


def test_cells_carry_the_numbers_that_rows_are_ordered_by(tmp_path):
    rows = [["a", 0.12345678, 3], ["b", 0.5, 10], ["c", math.nan, 2]]
    outline = Outline(render(tmp_path, page_of(Table(["case", "Dice", "n"], rows, "cases", Order(1)))))
    assert [head.get("aria-sort") for head in outline.all("th")][:3] == [None, "ascending", None]
    assert [cell.get("data-value") for cell in outline.all("td")] == ["0.12345678", "3", "0.5", "10", None, "2"]
    assert outline.text["td"][-2] == "–"
    assert "data-sortable" in outline.all("table")[0]
    fixed = Outline(render(tmp_path, page_of(Table(["case", "Dice", "n"], rows, "cases"))))
    assert not any("data-value" in cell for cell in fixed.all("td"))
    assert not fixed.all("script")


def test_links_lead_to_files_beside_the_page_only(tmp_path):
    hostile = ["javascript:alert(1)", "a b/<c>.html", 'x" onclick="y', "\udcff", "\\\\host\\share"]
    outline = Outline(render(tmp_path, page_of(Links([Link("there", path) for path in hostile]))))
    assert [link["href"] for link in outline.all("a")] == [
        "javascript%3Aalert%281%29", "a%20b/%3Cc%3E.html", "x%22%20onclick%3D%22y", "%FF", "%5C%5Chost%5Cshare"
    ]  # fmt: skip
    for path in ("/etc/passwd", "//host/page", ""):
        with pytest.raises(ValueError, match="is not relative"):
            Link("there", path)


def test_confusion_says_counts_and_shares_and_shades_them(tmp_path):
    matrix = Matrix(["a", "b"], [[3, 1], [0, 0]], "true by row")
    outline = Outline(render(tmp_path, page_of(matrix)))
    assert [head.get("scope") for head in outline.all("th")] == ["col", "col", "row", "row"]
    assert outline.text["td"] == ["3", "1", "0", "0"]
    assert outline.text["small"] == ["75%", "25%"]
    cells = [cell for cell in outline.all("td") if cell]
    assert [cell["class"] for cell in cells] == ["right", "wrong", "wrong", "right"]
    assert [cell["style"] for cell in cells] == [
        f"--share: {share}" for share in ("0.750", "0.250", "0.000", "0.000")
    ]


def test_a_text_of_several_lines_stands_out_by_its_first(tmp_path):
    outline = Outline(render(tmp_path, page_of(Table(["class", "Dice"], [["a", "0.9\n[0.8, 1.0]"]], "means"))))
    assert outline.all("td") == [{"class": "estimate"}]


def test_unshowable_characters_are_replaced(tmp_path):
    html = render(tmp_path, page_of(Paragraph("a\x00b\x1bc\u202ed\ud800e\tf\u2029g\u206fh\U000e0041i")))
    assert "<p>a�b�c�d�e\tf�g�h�i</p>" in html


def test_table_cells_are_tied_to_their_heads(tmp_path):
    table = Table(["Tissue", "Dice", "Interval"], [["grey", 0.9, "[0.8, 1.0]"], ["white", 0.875, "-"]], "Scores")
    outline = Outline(render(tmp_path, page_of(table)))
    assert outline.text["caption"] == ["Scores"]
    assert [head.get("scope") for head in outline.all("th")] == ["col"] * 3 + ["row"] * 2
    assert outline.text["td"] == ["0.900", "[0.8, 1.0]", "0.875", "-"]
    assert [cell.get("class") for cell in outline.all("td")] == ["number", None] * 2


def test_table_without_rows_shows_its_heads(tmp_path):
    outline = Outline(render(tmp_path, page_of(Table(["A", "B"], [], "none"))))
    assert outline.text["th"] == ["A", "B"]


def test_chart_contains_every_series(tmp_path):
    series = [Series(f"run {n}", [0, 1, 2], [n, n + 1, n]) for n in range(8)]
    outline = Outline(render(tmp_path, page_of(Chart(series, "step", "loss", "Loss"))))
    assert [f"run {n}" for n in range(8)] == outline.text["li"]
    curves = outline.all("polyline")
    assert [len(curve["points"].split()) for curve in curves] == [3] * 8
    assert len({curve["class"] for curve in curves}) == 6
    (drawing,) = [svg for svg in outline.all("svg") if svg.get("role") == "img"]
    assert drawing["aria-label"] == "Loss: loss over step"
    assert "run 3: 3 at 0 to 3 at 2." in outline.text["desc"][0]


def test_commands_keep_their_lines(tmp_path):
    outline = Outline(render(tmp_path, page_of(Commands(["m3di info", 'm3di query "liver"']))))
    assert outline.text["span"] == ["m3di info", 'm3di query "liver"']


def test_short_page_has_no_contents(tmp_path):
    assert not Outline(render(tmp_path, page_of())).all("nav")


def test_same_page_gives_same_bytes(tmp_path):
    page = page_of(*blocks("text"))
    first = write_page(page, tmp_path / "a.html").read_bytes()
    assert write_page(page, tmp_path / "b.html").read_bytes() == first


def test_page_replaces_an_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "page.html"
    write_page(page_of(), path)
    assert write_page(page_of(Paragraph("second")), path) == path
    assert "second" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def luminance(colour):
    """Relative luminance of WCAG 2.1."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_the_contrast_that_wcag_asks_for(scheme):
    css = (files("m3di.report") / "templates" / "page.css").read_text(encoding="utf-8")
    themes = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)
    assert len(themes) == 2
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", themes[scheme]))
    for ground in ("ground", "raised"):
        for text in ("ink", "quiet", "accent", "good", "bad"):
            assert contrast(colours[text], colours[ground]) >= 4.5, text
    for series in range(1, 7):
        assert contrast(colours[f"s{series}"], colours["ground"]) >= 4.5
    for shade in ("s1", "bad"):  # of a full cell of a confusion matrix, 38% of the colour
        parts = [[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in (shade, "raised")]
        mixed = "#" + "".join(f"{round(0.38 * a + 0.62 * b):02x}" for a, b in zip(*parts, strict=True))
        assert contrast(colours["ink"], mixed) >= 4.5, shade


def test_place_without_rights_is_refused(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    try:
        (locked / "probe").write_text("")
    except PermissionError:
        with pytest.raises(RefusedError, match="E_PATH"):
            write_page(page_of(), locked / "page.html")
    else:
        pytest.skip("this user may write everywhere")


def test_a_place_below_a_file_or_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file/page.html"):
        with pytest.raises(RefusedError, match="E_PATH"):
            write_page(Page("Runs", "All of them.", []), place)
