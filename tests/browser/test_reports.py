"""Reports in a real browser: tables ordered by the keyboard, nothing run but our own script, narrow and dark."""

import math

import numpy as np
import pytest

from m3di.report import Notice, Order, Page, Picture, Pictures, Section, Table, write_page
from tests.report.pages.hostile import ALL
from tests.report.test_write import blocks

WIDTHS = {"wide": (1400, 1000), "narrow": (390, 844)}
ROWS = [("a2", 0.5, ALL), ("a10", 0.25, "x"), ("a1", math.nan, "y"), ("b", 0.75, "")]


@pytest.fixture
def opened(page, tmp_path):
    """Opens a page of ours in a window of a size and a colour scheme."""

    def show(report, *, size="wide", scheme="light"):
        path = write_page(report, tmp_path / "report.html")
        width, height = WIDTHS[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "narrow"}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.driver.get("about:blank")
        page.console()
        page.requests()  # forget what the browser's own first page said and asked for
        page.driver.get(path.as_uri())
        return page

    return show


def cases():
    return Page(ALL, ALL, [Section("Cases", [Table(("case", "Dice", "note"), ROWS, ALL, Order(1))])])


def order(page):
    return [cell.get_property("textContent") for cell in page.all("tbody th")]


def test_rows_are_ordered_by_the_keyboard_and_say_how(opened):
    page = opened(cases())
    heads = page.all("thead th")
    assert [head.get_attribute("aria-sort") for head in heads] == [None, "ascending", None]
    buttons = page.all("thead button")
    assert [button.accessible_name for button in buttons] == ["case", "Dice", "note"]
    buttons[1].send_keys("\n")
    assert order(page) == ["b", "a2", "a10", "a1"], "what is not known stays last"
    assert heads[1].get_attribute("aria-sort") == "descending"
    buttons[0].send_keys(" ")
    assert order(page) == ["a1", "a2", "a10", "b"], "numbers in names count as numbers"
    assert [head.get_attribute("aria-sort") for head in heads] == ["ascending", None, None]
    assert page.driver.switch_to.active_element == buttons[0]


def test_names_do_nothing_but_stand_there(opened):
    page = opened(cases())
    page.all("thead button")[2].send_keys("\n")
    assert page.all("img") == []
    assert len(page.all("script")) == 1
    assert page.text("h1").startswith("<script>alert(1)</script>")


@pytest.mark.parametrize("size", list(WIDTHS))
def test_no_page_is_wider_than_its_window(opened, size):
    long = "a-name-that-goes-on-" * 20
    page = opened(Page(long, long, [Section(long, [*blocks(long), *cases().sections[0].blocks])] * 3), size=size)
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")


def test_a_dark_window_gets_a_dark_page(opened):
    notice = Page("T", "L", [Section("S", [Notice("Leak check:", "none", "doubt")])])
    grounds = {}
    for scheme in ("light", "dark"):
        page = opened(notice, scheme=scheme)
        colour = page.run("return getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(int(part) for part in colour.strip("rgb()").split(","))
    assert grounds["dark"] < 200, "of 765"
    assert grounds["light"] > 600


def test_pictures_are_shown(opened):
    picture = Picture(np.arange(48, dtype=np.uint8).reshape(6, 8), "slice", "a slice")
    page = opened(Page("T", "L", [Section("S", [Pictures([picture], 1)])]))
    assert page.run("return document.images[0].naturalWidth") == 8
