import pytest

from m3di.query.conditions import allowed_blocks, named_in
from tests.stores.stores import record

KNOWN = [
    ("head", "MR"),
    ("cervical spine", "MR"),
    ("Chest", "CT"),
    ("", "CT"),
    ("head", "unknown"),
    ("knee", "PET/CT"),
]


@pytest.mark.parametrize(
    "text, named",
    [
        ("Sagittal slice through the middle of the brain", {"plane": ["sagittal"], "body_part": ["head", ""]}),
        ("sagittal or axial slice of the hypophysis", {}),
        ("liver, AXIAL.", {"plane": ["axial"]}),
        ("axial or coronal", {}),
        ("an axially cut liver, ahead of the spine", {}),
        ("the unknown", {}),
        ("axial slice of the chest", {"plane": ["axial"], "body_part": ["Chest", ""]}),
        ("Head and chest", {"body_part": ["Chest", "head", ""]}),
        ("MRI of the Cervical Spine", {"body_part": ["cervical spine", ""], "modality": ["MR", "unknown"]}),
        ("both knees", {"body_part": ["knee", ""]}),
        ("a shoulder", {}),
        ("lungs", {"body_part": ["Chest", ""]}),
        ("a CT", {"modality": ["CT", "unknown"]}),
        ("PET/CT", {"modality": ["CT", "PET/CT", "unknown"]}),
    ],
)
def test_what_a_text_names(text, named):
    known = [record(f"v{i}", body_part=part, modality=modality) for i, (part, modality) in enumerate(KNOWN)]
    assert dict(named_in(text, known)) == named


@pytest.mark.parametrize(
    "text, parts",
    [
        ("axial slice of the chest with both lungs", ["chest", "heart", "lung"]),
        ("both lungs", ["chest", "lung"]),
        ("the heart", ["chest", "heart"]),
        ("the liver", ["abdomen"]),
    ],
)
def test_a_region_names_its_organs_and_an_organ_its_region(text, parts):
    known = ("lung", "heart", "chest", "abdomen", "kidney", "spine")
    records = [record(f"v{number}", body_part=part) for number, part in enumerate(known)]
    assert dict(named_in(text, records))["body_part"] == parts


def test_where_everything_is_known_nothing_unknown_is_named():
    assert dict(named_in("MR of the head", [record("v0")])) == {"body_part": ["head"], "modality": ["MR"]}
    assert dict(named_in("MR of the head", [])) == {}


def test_conditions_on_planes_need_no_records():
    def records():
        raise AssertionError("not needed")

    allowed = allowed_blocks(["plane=coronal"], records, count=4)
    assert allowed.tolist() == [[False, True, False]] * 4
