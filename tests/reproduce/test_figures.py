import io
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from m3di.report import PALETTE
from m3di.report.chart import BOTTOM, TOP
from m3di.reproduce.figures import curves_png, curves_svg, panels_of, pictures_png
from m3di.reproduce.pictures import decode_png, encode_png, middle_case, upright
from m3di.reproduce.programme import Table
from m3di.reproduce.rows import rows_of
from tests.reproduce.made import HEARTS, grid, hearts, record, segmented

SVG = "{http://www.w3.org/2000/svg}"
CURVE = Table("figure3", "Curve", "curves", (replace(HEARTS, label_fraction=0.05), HEARTS))


def two_fractions():
    few = {
        name.replace("20pct", "5pct"): replace(one, name=name.replace("20pct", "5pct"))
        for name, one in hearts().items()
    }
    return hearts() | few


def panels():
    return panels_of(rows_of(grid(CURVE), CURVE, two_fractions()))


def test_a_curve_has_a_point_and_its_interval_at_each_label_fraction():
    (panel,) = panels()
    assert panel.chart.series[0].x == [5, 20]
    (x5, mean, low, high), (x20, *_) = panel.points(0)
    assert x5 < x20
    assert TOP <= high < mean < low <= BOTTOM, "55, 65 and 75%, upwards in the drawing"
    assert mean - high == pytest.approx(low - mean, abs=0.11)
    assert panel.points(1)[0][1] < mean, "with pretraining above"


def test_the_drawing_is_whole_and_always_the_same():
    first, second = curves_svg(panels()), curves_svg(panels())
    assert first == second
    root = ET.fromstring(first.decode())
    assert len(root.findall(f".//{SVG}polyline")) == 2
    assert len(root.findall(f".//{SVG}circle")) == 4
    words = {text.text for text in root.findall(f".//{SVG}text")}
    assert {"ACDC, ViT", "without pretraining", "with pretraining", "Training subjects with labels, %"} <= words
    assert curves_png(panels()) == curves_png(panels())
    assert Image.open(io.BytesIO(curves_png(panels()))).size == (1520, 680)


def test_predictions_are_painted_beside_the_label():
    table = Table("figure2", "Seen", "pictures", (replace(HEARTS, seeds=(0,)),))
    image = np.full((8, 8), 100, np.uint8)
    label = np.zeros((8, 8), np.uint8)
    label[2:6, 2:6] = 1
    wrong = np.where(label, 2, 0).astype(np.uint8)
    names = "acdc-vit-20pct-scratch-seed0", "acdc-vit-20pct-main-seed0"
    result = {
        "case": "one", "slice": 3, "classes": ["label 1", "label 2"], "dice": {names[0]: 0.0, names[1]: 1.0},
        "image": encode_png(image), "label": encode_png(label),
        "masks": {names[0]: encode_png(wrong), names[1]: encode_png(label)},
    }  # fmt: skip
    records = {"figure2-acdc-seed0": record("figure2-acdc-seed0", "pictures", result)}
    picture = pictures_png(grid(table), table, records)
    assert picture == pictures_png(grid(table), table, records)
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    quarter = pixels.shape[1] // 4
    centre = [tuple(pixels[pixels.shape[0] // 2 + 17, quarter * n + quarter // 2]) for n in range(4)]
    mixed = {n: tuple(int(v) for v in np.rint(50 + PALETTE[n] / 2)) for n in (1, 2)}
    assert [tuple(int(v) for v in one) for one in centre] == [(100, 100, 100), mixed[1], mixed[2], mixed[1]]
    assert pictures_png(grid(table), table, {}) is None


def test_the_case_shown_is_the_one_in_the_middle():
    assert middle_case(segmented("x", 0.9, 0.2, 0.5)) == "case2"
    assert middle_case(segmented("x", 0.9, None, 0.5, 0.7)) == "case3", "what has no Dice is left out"


def test_pictures_survive_their_encoding_and_stand_upright():
    random = np.random.default_rng(0).integers(0, 255, (5, 7), np.uint8)
    assert (decode_png(encode_png(random)) == random).all()
    stack = np.zeros((4, 3), np.uint8)  # [right, anterior]
    stack[3, 2] = 1
    assert upright(stack)[0, 0] == 1, "anterior above, the patient's right on the left"
