import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.captions.captioner import ShownPlane, ShownVolume, SliceFacts
from m3di.captions.describe import Describer, describe
from m3di.teachers.libraries import import_open_clip
from stores.errors import CaseError


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


def test_structures_are_named_only_when_given_and_joined_across_sides():
    with_labels = SliceFacts(0, 0.5, "CT", "abdomen", ("liver", "kidney_left", "spleen", "right kidney"))
    assert "It shows liver, kidney on both sides and spleen." in describe(BLANK, with_labels)
    assert "shows" not in describe(BLANK, SliceFacts(0, 0.5, "CT", "abdomen"))


def test_names_the_largest_structures_only():
    facts = SliceFacts(0, 0.5, "CT", "abdomen", ("liver", "spleen", "aorta"))
    assert "It shows liver and spleen." in describe(BLANK, facts, max_structures=2)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((50, 50), np.uint8), "No tissue is visible."),
        (square(250, slice(0, 50), slice(0, 100)), "Very bright tissue of very low contrast fills half of the field"),
        (square(250, slice(0, 50), slice(0, 100)), "dominant bright areas toward the top."),
        (
            square(60, slice(90, 100), slice(90, 100)),
            "Dark tissue of very low contrast fills hardly any of the field",
        ),
        (square(60, slice(90, 100), slice(90, 100)), "scattered bright areas toward the bottom right."),
        (square(255, slice(40, 60), slice(40, 60), background=40), "small bright areas around the centre."),
    ],
)
def test_intensities_in_words(image, words):
    assert words in describe(image, SliceFacts(0, 0.5, "MR", "brain"))


def picture(seed: int, level: float, spread: float) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(level, spread, (16, 16))
    return np.clip(noise, 0, 255).astype(np.uint8)


pictures = st.builds(picture, st.integers(0, 99), st.floats(0, 255), st.floats(0, 90))


@pytest.fixture(scope="module")
def clip_tokenizer():
    return import_open_clip(offline=True).SimpleTokenizer()


# SliceFacts is made in the test: beartype draws random numbers, which hypothesis does not allow within strategies.
@given(
    image=pictures,
    plane=st.integers(0, 2),
    position=st.floats(0, 1),
    modality=st.sampled_from(["CT", "MR", "unknown"]),
)
def test_fits_clips_context_whatever_the_slice(clip_tokenizer, image, plane, position, modality):
    fact = SliceFacts(plane, position, modality, "hippocampus")
    text = describe(image, fact)
    assert len(clip_tokenizer.encode(text)) + 2 <= 55
    assert text == describe(image, fact)
    assert text.isascii()
    assert not re.search(r"\d", text)


@pytest.mark.parametrize("name", ["patient0042", "2021-03-04", "/data/liver", "C:\\liver", "liver\nspleen", "x" * 61])
def test_refuses_names_that_look_like_ids_dates_or_paths(name):
    with pytest.raises(CaseError) as error:
        SliceFacts(0, 0.5, "CT", name)
    assert error.value.code == "E_CAPTION"
    with pytest.raises(CaseError):
        SliceFacts(0, 0.5, "CT", "abdomen", (name,))


def test_accepts_anatomical_names_with_numbers():
    assert "vertebrae T12" in describe(BLANK, SliceFacts(0, 0.5, "CT", "spine", ("vertebrae_T12",)))


@pytest.mark.parametrize(
    "bad", [(3, 0.5, "CT"), (-1, 0.5, "CT"), (0, 1.01, "CT"), (0, float("nan"), "CT"), (0, 0.5, "US")]
)
def test_refuses_facts_out_of_range(bad):
    with pytest.raises(CaseError):
        SliceFacts(*bad, "abdomen")


def test_describer_captions_a_list_and_its_fingerprint_follows_the_settings():
    images = np.stack([BLANK, BLANK])
    facts = (SliceFacts(0, 0.0, "CT", "chest"), SliceFacts(0, 1.0, "CT", "chest"))
    empty = ShownPlane(images[:0], (), ())
    shown = ShownVolume("v", (ShownPlane(images, facts, (0, 1)), empty, empty))
    assert Describer().caption(shown).texts == (tuple(describe(BLANK, fact) for fact in facts), (), ())
    assert Describer().fingerprint == Describer().fingerprint != Describer(max_structures=3).fingerprint
