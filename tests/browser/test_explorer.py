"""The page over a store in a real browser."""

import numpy as np
import pytest

from m3di.training import checkpoint
from m3di.volumes.slices import displayed
from stores import Store
from stores.geometry import PLANES
from tests.cli.running import m3di
from tests.query.stores import HOSTILE

pytestmark = pytest.mark.slow
pytest.importorskip("selenium", reason="selenium is not installed: pip install m3di[dev]")

from selenium.webdriver.common.keys import Keys  # noqa: E402

from tests.browser.chromium import NARROW, WIDE  # noqa: E402

EDGE = 24
TEXT = "Coronal MR slice of the head"


def search(page, text, *, hits=5):
    field = page.one("#text")
    field.clear()
    field.send_keys(text, Keys.ENTER)
    page.wait(lambda: page.text("#asked") == f"“{text}”" and len(page.all("button.hit")) == hits)
    page.wait(lambda: page.all("button.hit[aria-current]"))


def opened(page):
    """Volume, and positions of the axial, coronal and sagittal planes."""
    return page.text("#volume-name"), [int(text.get_property("value")) for text in page.all(".plane input")]


def hit_of(card):
    volume, plane, index = card.get_attribute("data-hit").split("/")
    return volume, PLANES.index(plane), int(index)


def shown_slice(page, plane):
    """Grey values of a plane's canvas."""
    values = page.run(
        "const c = document.querySelectorAll('.plane canvas')[arguments[0]];"
        "const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "return Array.from(data).filter((_, i) => i % 4 === 0)",
        plane,
    )
    return np.array(values).reshape(EDGE, EDGE)


def click_at(page, selector, x, y):
    """Click into an element, at shares of its width and height."""
    box = page.one(selector)
    page.run("arguments[0].scrollIntoView({ block: 'center' })", box)
    frame = page.run("const r = arguments[0].getBoundingClientRect(); return [r.x, r.y, r.width, r.height]", box)
    place = {"x": frame[0] + x * frame[2], "y": frame[1] + y * frame[3], "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})


def test_the_token_leaves_the_address_and_a_reload_still_works(page, address):
    page.open(address)
    assert "token" not in page.driver.current_url
    assert page.run("return document.cookie") == ""
    page.driver.refresh()
    page.wait(lambda: page.one("#viewer").is_displayed())


def test_a_search_shows_hits_how_far_to_trust_them_and_opens_the_best(page, address):
    page.open(address)
    search(page, TEXT)
    assert "held-out captions" in page.text("#notes")
    cards = page.all("button.hit")
    scores = [float(card.find_element("css selector", ".score").text) for card in cards]
    assert scores == sorted(scores, reverse=True)
    assert {hit_of(card)[1] for card in cards} == {1}, "the text names the plane"
    volume, plane, index = hit_of(cards[0])
    name, at = opened(page)
    assert (name, at[plane]) == (volume, index)
    assert page.text(".plane.chosen h3") == "Coronal"
    assert page.text(".plane.chosen .badge").startswith("hit 0.")
    assert page.text("#caption").startswith("Coronal MR slice of the head")
    assert len(page.all("path.graph")) == 3


def test_a_hit_opens_its_volume_and_asks_for_its_neighbours(page, address):
    page.open(address)
    search(page, TEXT)
    third = page.all("button.hit")[2]
    volume, plane, index = hit_of(third)
    third.click()
    page.wait(lambda: opened(page)[0] == volume and opened(page)[1][plane] == index)
    page.one("#near-slice").click()
    page.wait(lambda: "Nearest neighbours" in page.text("#lists"))
    first, second = page.all("#lists section")
    own = first.find_element("css selector", "button.hit")
    assert hit_of(own) == (volume, plane, index)
    assert own.find_element("css selector", ".score").text == "1.000"
    others = [hit_of(card) for card in second.find_elements("css selector", "button.hit")]
    assert len(others) == 4 and {place[1:] for place in others} == {(plane, index)}
    page.one(".jump").click()
    assert hit_of(page.driver.switch_to.active_element) == others[0]
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: opened(page)[0] == others[0][0])
    page.driver.back()
    page.wait(lambda: page.text("#asked") == f"“{TEXT}”")


def test_volumes_like_one(page, address):
    page.open(address)
    name, _ = opened(page)
    page.one("#near-volume").click()
    page.wait(lambda: page.text("#asked") == f"Volumes like {name}")
    assert name not in {hit_of(card)[0] for card in page.all("button.hit")}
    page.wait(lambda: page.text(".plane.chosen .badge") == "nearest slice")


def test_filters_are_asked_for(page, address):
    page.open(address)
    search(page, "slice of the head")
    page.one("#filters select[name=plane]").send_keys("sag")
    page.wait(lambda: {hit_of(card)[1] for card in page.all("button.hit")} == {2})
    assert "Only plane sagittal" in page.text("#notes")


@pytest.mark.parametrize("plane, columns, rows", [(0, 2, 1), (1, 2, 0), (2, 1, 0)])
def test_a_click_in_a_plane_moves_the_other_two(page, address, plane, columns, rows):
    page.open(address)
    _, before = opened(page)
    click_at(page, f".plane.p{plane} .picture", 5.5 / EDGE, 15.5 / EDGE)
    _, after = opened(page)
    assert after[columns] == EDGE - 1 - 5 and after[rows] == EDGE - 1 - 15
    assert after[plane] == before[plane]
    page.wait(lambda: page.all(f".plane.p{plane}.chosen"))
    assert page.run("return document.activeElement.type") == "range", "arrows now go through the slices"


def test_keys_go_through_slices_and_say_them(page, address):
    page.open(address)
    slider = page.one(".plane.p2 input")
    slider.send_keys(Keys.HOME)
    assert opened(page)[1][2] == 0
    assert page.text("#caption").startswith("Nothing to see here")
    slider.send_keys(*[Keys.ARROW_RIGHT] * 14)
    assert opened(page)[1][2] == 14
    caption = page.text("#caption")
    assert caption.startswith("Sagittal")
    assert slider.get_attribute("aria-valuetext") == f"14 of {EDGE - 1}. {caption}"
    assert page.text(".plane.p2 .position") == f"14 of {EDGE - 1}"


def test_planes_are_the_stores_as_a_radiologist_expects_them(page, address, store):
    page.open(address)
    name, at = opened(page)
    with Store(store) as opened_store:
        cube = opened_store.volumes.read("image", opened_store.record(name).slot).astype(float)
    for plane in range(3):
        expected = displayed(cube, plane)[at[plane]] * 255
        assert np.abs(shown_slice(page, plane) - expected).max() <= 1
    assert page.text(".plane.p0 .e0") + page.text(".plane.p0 .e2") == "RA"


def test_a_curve_shows_where_and_goes_there(page, address):
    page.open(address)
    search(page, TEXT)
    click_at(page, ".plane.p0 .curve", 14.5 / EDGE, 0.5)
    assert opened(page)[1][0] == 14
    assert page.text(".plane.p0 .value") != ""
    page.one(".plane.p1 .peak").click()
    assert page.text(".plane.p1 .peak").endswith(f"at {opened(page)[1][1]}")


def test_the_map_opens_volumes_by_keys_and_clicks(page, address):
    page.open(address)
    before, _ = opened(page)
    chart = page.one("#map")
    found = set()
    for key in (Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_DOWN) * 2:
        chart.send_keys(key)
        found.add(page.text("#map-at").split(" · ")[0])
    assert len(found) > 2
    other = next(volume for volume in sorted(found) if volume != before)
    field = page.one("#open-name")
    field.send_keys(other[:-1])
    assert other in [option.get_property("value") for option in page.all("#open-names option")]
    field.send_keys(other[-1], Keys.ENTER)
    page.wait(lambda: opened(page)[0] == other)


def test_what_goes_wrong_is_said(page, address):
    page.open(address)
    field = page.one("#open-name")
    field.send_keys("nobody", Keys.ENTER)
    page.wait(lambda: "no volume 'nobody'" in page.text("#problem"))
    assert [line for line in page.console() if "404" not in line] == []
    search(page, TEXT)
    assert not page.one("#problem").is_displayed()


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_window_and_every_control_has_a_name(page, address, size, scheme):
    page.open(address, size=size, scheme=scheme)
    search(page, TEXT)
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    widths = [plane.size["width"] for plane in page.all(".plane")]
    if size == NARROW:
        assert widths[1] > 2 * max(widths[0], widths[2]), "the chosen plane is large"
    else:
        assert len(set(widths)) == 1 and widths[0] > 280
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    assert page.unnamed_controls() == []


def test_hostile_texts_stay_text(page, hostile_address):
    page.open(hostile_address)
    page.one("#near-slice").click()
    page.wait(lambda: len(page.all("button.hit")) >= len(HOSTILE))
    check_harmless(page)


def check_harmless(page):
    assert "owned" not in page.driver.title
    assert page.all("main script, main [onerror], main [onload], main img[src=x], main b") == []
    captions = {card.get_property("textContent") for card in page.all(".hit .caption")}
    assert {HOSTILE[0], HOSTILE[1]} <= captions
    assert "right\ufffdto left\ufffd\ufffd \ufffd\ufffd end" in captions
    everything = page.run("return document.documentElement.outerHTML.split('id=\"data\"')[0]")
    assert not set(everything) & set("\x1b\x07\x9b\u202e\u2066\u2069\u200b\u200f\u2028")


# The page in a file


def written(store, name, *arguments):
    done = m3di("query", *arguments, "--store", store, "--html", name, cwd=store.parent)
    assert done.returncode == 0, done.stderr
    return f"file://{store.parent / name}"


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_file_needs_nothing_else(page, store, size):
    file = written(store, "text.html", TEXT, "--where", "modality=MR")
    page.open(file, size=size)
    page.wait(lambda: page.all("button.hit[aria-current]"))
    assert page.text("#asked") == f"“{TEXT}”"
    assert "held-out captions" in page.text("#notes") and "Only modality MR" in page.text("#notes")
    assert not page.one("#ask").is_displayed() and not page.one("#near-slice").is_displayed()
    fourth = page.all("button.hit")[3]
    volume, plane, index = hit_of(fourth)
    page.run("arguments[0].scrollIntoView()", fourth)
    fourth.click()
    page.wait(lambda: opened(page)[0] == volume and opened(page)[1][plane] == index)
    assert len(page.all("path.graph")) == 3
    click_at(page, ".plane.chosen .picture", 0.25, 0.25)
    page.run("document.activeElement.blur()")
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    assert page.unnamed_controls() == []
    assert [address for address in page.requests() if not address.startswith(("data:", "blob:"))] == [file]


def test_pixels_in_a_file_are_the_stores(page, store):
    page.open(written(store, "slice.html", "--volume", "head_001", "--plane", "axial", "--slice", "10"))
    page.wait(lambda: opened(page)[0] == "head_001")
    assert opened(page)[1][0] == 10 and page.text(".plane.p0 .badge") == "asked"
    with Store(store) as opened_store:
        cube = opened_store.volumes.read("image", opened_store.record("head_001").slot).astype(float)
    assert np.abs(shown_slice(page, 0) - displayed(cube, 0)[10] * 255).max() <= 1
    assert len(page.all("#lists section")) == 2


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_file_shows_what_a_run_answers(page, store, run, size):
    """A text is held against volumes that the run has never seen, each with its curves."""
    page.open(written(store, "run.html", TEXT, "--run", run), size=size)
    page.wait(lambda: page.all("button.hit[aria-current]"))
    trained = set(checkpoint.load(run, kind="pretrain").facts["trained_on"])
    hits = [hit_of(card) for card in page.all("button.hit")]
    with Store(store) as opened_store:
        assert {volume for volume, *_ in hits} == set(opened_store.volume_names()) - trained != set()
    assert {plane for _, plane, _ in hits} == {1}
    assert "By the encoder of run after 4 samples: held against" in page.text("#notes")
    assert len(page.all("path.graph")) == 3
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
    assert page.unnamed_controls() == []


def test_hostile_texts_stay_text_in_a_file(page, hostile):
    with Store(hostile) as opened_store:
        index = int(opened_store.record("v0").valid_slices(0)[0])
    page.open(written(hostile, "hostile.html", "--volume", "v0", "--plane", "axial", "--slice", index))
    page.wait(lambda: len(page.all("button.hit")) >= len(HOSTILE))
    check_harmless(page)
