import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.captions.captioner import ShownPlane, ShownVolume, SliceFacts, Structure
from m3di.captions.describe import _TOKENS, FEWEST_TOKENS, Describer, count_tokens, describe
from m3di.captions.identity import described
from m3di.captions.stage import show
from m3di.config import Config
from m3di.teachers.embedded import embedded_towers
from m3di.teachers.libraries import import_open_clip
from m3di.volumes.cases import SEQUENCES
from stores import Store
from stores.errors import CaseError, RefusedError
from tests.stores.stores import build, chunks, record


def square(value: int, rows: slice, columns: slice, *, background: int = 0) -> np.ndarray:
    image = np.full((100, 100), background, np.uint8)
    image[rows, columns] = value
    return image


BLANK = np.zeros((8, 8), np.uint8)


def test_says_plane_modality_body_part_and_place_first():
    text = describe(square(200, slice(0, 50), slice(0, 100)), SliceFacts(0, 0.25, "MR", "hippocampus"))
    assert text.startswith("Axial MR slice of the hippocampus, in the lower third, near its upper side. ")


@pytest.mark.parametrize(
    ("plane", "position", "place"),
    [
        (0, 0.0, "at the very lower end"),
        (0, 1.0, "at the very upper end"),
        (0, 0.5, "in the middle third, at its centre"),
        (1, 0.1, "in the back third, near its back side"),
        (1, 0.9, "in the front third, near its front side"),
        (2, 0.1, "in the left third, near its left side"),
        (2, 0.7, "in the right third, near its left side"),
    ],
)
def test_names_the_place_along_each_planes_normal(plane, position, place):
    assert place in describe(BLANK, SliceFacts(plane, position, "CT", "chest"))


def test_leaves_out_what_is_not_known():
    assert describe(BLANK, SliceFacts(2, 0.0, "unknown", "unknown")).startswith(
        "Sagittal slice, at the very left end."
    )


@pytest.mark.parametrize(
    ("plane", "offset_mm", "words"),
    [
        (0, -23.0, "about 25 mm below the centre."),
        (0, 88.0, "about 90 mm above the centre."),
        (1, -4.0, "about 5 mm behind the centre."),
        (1, 255.0, "about 260 mm in front of the centre."),
        (2, -12.0, "about 10 mm left of the centre."),
        (2, 12.6, "about 15 mm right of the centre."),
    ],
)
def test_gives_round_millimetres_from_the_centre(plane, offset_mm, words):
    assert words in describe(BLANK, SliceFacts(plane, 0.4, "CT", "chest", offset_mm=offset_mm))


def test_no_millimetres_at_the_centre():
    assert "mm" not in describe(BLANK, SliceFacts(0, 0.5, "CT", "chest", offset_mm=2.0))


def test_names_the_sequence_where_known():
    text = describe(BLANK, SliceFacts(0, 0.5, "MR", "brain", sequence="T1w"))
    assert text.startswith("Axial T1w MR slice of the brain, ")


def structures(*names):
    return tuple(Structure(name, 100.0) for name in names)


def test_structures_are_named_only_when_given_and_joined_across_sides():
    with_labels = SliceFacts(0, 0.5, "CT", "", structures("liver", "kidney_left", "spleen", "right kidney"))
    assert "It shows liver, kidney on both sides and spleen." in describe(BLANK, with_labels)
    assert "shows" not in describe(BLANK, SliceFacts(0, 0.5, "CT", "abdomen"))


def test_a_side_in_the_name_comes_before_where_the_structure_lies():
    told = (Structure("kidney_left", 9.0, "right"), Structure("liver", 8.0, "right"), Structure("lung", 7.0, "both"))
    text = describe(BLANK, SliceFacts(0, 0.5, "CT", "", (*told, Structure("aorta", 1.0))))
    assert "It shows left kidney, liver on the right, lung on both sides and aorta." in text


def test_names_the_largest_structures_only():
    facts = SliceFacts(0, 0.5, "CT", "abdomen", structures("liver", "spleen", "aorta"))
    assert "It shows liver and spleen." in describe(BLANK, facts, max_structures=2)


def test_names_fewer_structures_where_the_limit_is_near():
    facts = SliceFacts(0, 0.5, "CT", "abdomen", structures("liver", "spleen", "aorta"))
    texts = [describe(BLANK, facts, max_tokens=limit) for limit in range(20, 40)]
    shown = [text.split("It shows ")[1].split(".")[0] for text in texts if "shows" in text]
    assert list(dict.fromkeys(shown)) == ["liver", "liver and spleen", "liver, spleen and aorta"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((50, 50), np.uint8), "No tissue is visible."),
        (square(250, slice(0, 50), slice(0, 100)), "A cropped cross section fills half of the field."),
        (square(250, slice(0, 50), slice(0, 100)), "Very bright tissue of very low contrast."),
        (square(60, slice(90, 100), slice(90, 100)), "fills hardly any of the field."),
        (square(60, slice(90, 100), slice(90, 100)), "Dark tissue of very low contrast."),
        (square(255, slice(44, 60), slice(44, 60), background=40), "brightest in the middle."),
    ],
)
def test_extent_and_intensities_in_words(image, words):
    assert words in describe(image, SliceFacts(0, 0.5, "MR", "brain"))


@pytest.mark.parametrize(
    ("half_height", "half_width", "words"),
    [
        (60, 60, "A round cross section, about 240 mm across, fills a third of the field."),
        (60, 80, "An oval cross section, about 320 mm across, fills half of the field."),
        (20, 80, "An elongated cross section, about 320 mm across, fills about a sixth of the field."),
    ],
)
def test_form_and_size_in_words(half_height, half_width, words):
    y, x = np.mgrid[:180, :180] - 89.5
    image = (((y / half_height) ** 2 + (x / half_width) ** 2 <= 1) * 128).astype(np.uint8)
    assert words in describe(image, SliceFacts(0, 0.5, "MR", "brain", pixel_mm=2.0))


def test_parts_are_counted():
    image = square(128, slice(20, 80), slice(10, 40)) + square(128, slice(20, 80), slice(60, 90))
    text = describe(image, SliceFacts(0, 0.5, "MR", "brain", pixel_mm=1.0))
    assert "Two separate parts, about 80 mm across together, fill a third of the field." in text
    assert "Left and right look alike." in text


# Picture corners by (row, column): in the patient's directions, as `m3di.volumes.slices.displayed` turns the planes.
@pytest.mark.parametrize(
    ("plane", "row", "column", "place"),
    [
        (0, 20, 20, "front right"), (0, 20, 80, "front left"), (0, 80, 20, "back right"), (0, 80, 80, "back left"),
        (1, 20, 20, "upper right"), (1, 80, 80, "lower left"), (2, 20, 20, "upper front"), (2, 80, 80, "lower back"),
        (0, 20, 50, "front"), (0, 50, 20, "right"), (1, 20, 50, "top"), (1, 80, 50, "bottom"), (2, 50, 80, "back"),
    ],
)  # fmt: skip
def test_places_are_the_patients(plane, row, column, place):
    spot = square(250, slice(row - 9, row + 9), slice(column - 9, column + 9), background=60)
    assert f"brightest at the {place}." in describe(spot, SliceFacts(plane, 0.5, "MR", "brain"))


def test_ct_names_tissues_and_leaves_open_what_is_very_dense():
    image = np.random.default_rng(0).integers(128, 140, (100, 100)).astype(np.uint8)
    image[20:40, 20:40], image[60:65, 60:65] = 20, 255
    facts = SliceFacts(0, 0.5, "CT", "", hu_range=(-1000.0, 1000.0))
    text = describe(image, facts)
    assert "Mostly soft tissue with air." in text
    assert "Very dense spots may be bone, contrast or metal." in text
    assert "It encloses a small air region at the front right." in text
    assert "soft tissue" not in describe(image, SliceFacts(0, 0.5, "CT", ""))


def picture(seed: int, level: float, spread: float, smooth: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(level, spread, (48 // smooth, 48 // smooth))
    return np.clip(noise, 0, 255).astype(np.uint8).repeat(smooth, 0).repeat(smooth, 1)


pictures = st.builds(
    picture, st.integers(0, 99), st.floats(0, 255), st.floats(0, 90), st.sampled_from([1, 4, 12, 24])
)
names = st.text("abcdefghijklmnopqrstuvwxyz _()+,'-T12", max_size=25)


@pytest.fixture(scope="module")
def tokenizers():
    """Count of tokens, special ones left out: CLIP's own and the embedded teacher's."""
    clip, embedded = import_open_clip(offline=True).SimpleTokenizer(), embedded_towers().tokenizer
    return lambda text: len(clip.encode(text)), lambda text: int((embedded([text]) != 0).sum()) - 2


def test_no_known_word_takes_more_tokens_than_counted(tokenizers):
    for word in _TOKENS:
        assert max(count(word) for count in tokenizers) == count_tokens(word), word


# SliceFacts is made in the test: beartype draws random numbers, which hypothesis does not allow within strategies.
@given(
    image=pictures, plane=st.integers(0, 2), position=st.floats(0, 1), offset_mm=st.floats(-2000, 2000),
    modality=st.sampled_from(["CT", "MR", "unknown"]), sequence=st.sampled_from(["", *SEQUENCES.values(), "X9y"]),
    part=st.sampled_from(["hippocampus", "", "unknown"]) | names, seen=st.lists(names, max_size=8),
    max_tokens=st.integers(FEWEST_TOKENS, 110), pixel_mm=st.sampled_from([0.0, 0.003, 1.0, 99.0]),
)  # fmt: skip
def test_any_slice_is_ascii_within_every_limit_with_its_place(
    tokenizers, image, plane, position, offset_mm, modality, sequence, part, seen, max_tokens, pixel_mm
):
    fact = SliceFacts(
        plane, position, modality, part, structures(*seen), offset_mm=offset_mm, pixel_mm=pixel_mm,
        sequence=sequence, hu_range=(-1000.0, 1000.0) if modality == "CT" else None,
    )  # fmt: skip
    text = describe(image, fact, max_tokens=max_tokens)
    assert text == describe(image, fact, max_tokens=max_tokens)
    assert text.isascii() and text.isprintable()
    for count in tokenizers:
        assert count(text) <= count_tokens(text) <= max_tokens
    place = describe(BLANK, SliceFacts(plane, position, "unknown", "")).split(". ")[0].split("slice")[1]
    assert place.rstrip(".") in text


def test_a_shorter_limit_drops_whole_sentences_from_the_longer_text():
    image = square(200, slice(20, 80), slice(30, 70), background=0)
    facts = SliceFacts(0, 0.3, "MR", "brain", offset_mm=-20.0, pixel_mm=1.0, sequence="T1w")
    full = describe(image, facts, max_tokens=200)
    lengths = []
    for limit in range(FEWEST_TOKENS, 100):
        text = describe(image, facts, max_tokens=limit)
        assert text.endswith(".") and set(re.findall(r"\w+", text)) <= set(re.findall(r"\w+", full))
        lengths.append(len(text.split(". ")))
    assert (lengths[0], lengths[-1]) == (1, len(full.split(". ")))


def test_refuses_a_limit_that_leaves_no_room_for_the_place():
    with pytest.raises(RefusedError) as error:
        Describer(max_tokens=FEWEST_TOKENS - 1)
    assert error.value.code == "E_CONFIG"
    assert Config().captions.max_tokens == Describer().max_tokens


@pytest.mark.parametrize("name", ["patient0042", "2021-03-04", "/data/liver", "C:\\liver", "liver\nspleen", "x" * 61])
def test_refuses_names_that_look_like_ids_dates_or_paths(name):
    with pytest.raises(CaseError) as error:
        SliceFacts(0, 0.5, "CT", name)
    assert error.value.code == "E_CAPTION"
    with pytest.raises(CaseError):
        SliceFacts(0, 0.5, "CT", "abdomen", structures(name))
    with pytest.raises(CaseError):
        SliceFacts(0, 0.5, "MR", "abdomen", sequence=name)


def test_accepts_anatomical_names_with_numbers():
    assert "vertebrae T12" in describe(BLANK, SliceFacts(0, 0.5, "CT", "spine", structures("vertebrae_T12")))


@pytest.mark.parametrize(
    "bad", [(3, 0.5, "CT"), (-1, 0.5, "CT"), (0, 1.01, "CT"), (0, float("nan"), "CT"), (0, 0.5, "US")]
)
def test_refuses_facts_out_of_range(bad):
    with pytest.raises(CaseError):
        SliceFacts(*bad, "abdomen")


@pytest.mark.parametrize(
    "bad",
    [
        {"offset_mm": float("nan")}, {"pixel_mm": -1.0}, {"hu_range": (5.0, 5.0)},
        {"structures": (Structure("liver", 1.0, "up"),)},
    ],
)  # fmt: skip
def test_refuses_measures_that_are_none(bad):
    with pytest.raises(CaseError):
        SliceFacts(0, 0.5, "CT", "abdomen", **bad)


def test_describer_captions_a_list_and_its_fingerprint_follows_the_settings():
    images = np.stack([BLANK, BLANK])
    facts = (SliceFacts(0, 0.0, "CT", "chest"), SliceFacts(0, 1.0, "CT", "chest"))
    empty = ShownPlane(images[:0], (), ())
    written = Describer().caption(ShownVolume("v", (ShownPlane(images, facts, (0, 1)), empty, empty)))
    assert written.texts == (tuple(describe(BLANK, fact) for fact in facts), (), ())
    assert [len(plane) for plane in written.facts] == [2, 0, 0]
    assert written.facts[0][1]["position"] == 1.0
    prints = [one.fingerprint for one in (Describer(), Describer(), Describer(3), Describer(max_tokens=40))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


@pytest.fixture
def labelled(tmp_path):
    """A store of one volume: class 1 in the right half, 2 in the left, 3 on both sides, 4 across the middle."""
    with Store(build(tmp_path / "s", 1), writable=True) as store:
        yield store


def label_map():
    label = np.zeros((16, 16, 16), np.uint8)  # axes to the right, to the front, upwards
    label[10:14, 2:8], label[2:5, 2:8] = 1, 2
    label[1:3, 10:14], label[13:15, 10:14] = 3, 3
    label[6:10, 14:16] = 4
    return label


NAMES = {1: "one", 2: "two", 3: "three", 4: "four"}


def test_label_maps_are_shown_only_when_asked_and_give_areas_and_sides(labelled, monkeypatch):
    (known,) = labelled.records()
    read = labelled.volumes.read
    monkeypatch.setattr(
        labelled.volumes, "read", lambda name, slot: label_map() if name == "label" else read(name, slot)
    )
    bare = show(labelled, known, {})
    assert all(fact.structures == () for plane in bare.planes for fact in plane.facts)
    voxel_mm = 18 / 16  # the longest side of the scan, 6 voxels of 3 mm
    axial = show(labelled, known, {"set": NAMES}).planes[0].facts[0].structures
    assert [(one.name, one.side) for one in axial] == [
        ("one", "right"),
        ("two", "left"),
        ("three", "both"),
        ("four", ""),
    ]
    assert [one.area_mm2 for one in axial] == [round(count * voxel_mm**2, 1) for count in (24, 18, 16, 8)]
    sagittal = [fact.structures for fact in show(labelled, known, {"set": NAMES}).planes[2].facts]
    assert all(one.side == "" for found in sagittal for one in found)


def test_captions_do_not_depend_on_a_label_map_unless_asked(labelled):
    (known,) = labelled.records()
    texts = Describer().caption(show(labelled, known, {})).texts
    changed = labelled.commit_volume(record("v0", blank=0, label_digest="other"), chunks(0, labels=False))
    assert Describer().caption(show(labelled, changed, {})).texts == texts


def test_a_sequence_makes_other_captions_and_none_leaves_their_identity(labelled):
    plain, weighted = record("v0"), record("v0", sequence="T1w")
    digests = [described(labelled, Describer(), one, Config(), {}) for one in (plain, weighted)]
    assert digests[0] != digests[1]
    assert digests[0] == described(labelled, Describer(), record("v0", sequence=""), Config(), {})
