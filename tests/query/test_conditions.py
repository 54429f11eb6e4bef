import pytest

from m3di.query.conditions import allowed_blocks, named_in, thirds_allowed
from stores.errors import RefusedError
from tests.stores.stores import record

KNOWN = [
    ("head", "MR"),
    ("cervical spine", "MR"),
    ("Chest", "CT"),
    ("", "CT"),
    ("head", "unknown"),
    ("knee", "PET/CT"),
]


def all_named(text, records):
    return {named.key: [*named.values, *named.otherwise] for named in named_in(text, records)}


@pytest.mark.parametrize(
    "text, named",
    [
        (
            "Sagittal slice through the middle of the brain",
            {"plane": ["sagittal"], "place": ["middle"], "body_part": ["head", ""]},
        ),
        ("midsagittal", {"plane": ["sagittal"], "place": ["middle"]}),
        ("a mid-coronal slice", {"plane": ["coronal"], "place": ["middle"]}),
        ("the upper third, axial", {"plane": ["axial"], "place": ["upper"]}),
        ("Coronal slice, in the anterior third, near its back side", {"plane": ["coronal"], "place": ["front"]}),
        ("axial slice in the left third", {"plane": ["axial"]}),
        ("the lower end", {}),
        ("axial slice of the middle lobe with the inferior vena cava", {"plane": ["axial"]}),
        ("sagittal or axial slice of the hypophysis", {}),
        ("liver, AXIAL.", {"plane": ["axial"], "body_part": ["", "Chest", "cervical spine", "head", "knee"]}),
        ("axial or coronal", {}),
        (
            "an axially cut liver, ahead of the spine",
            {"body_part": ["", "Chest", "cervical spine", "head", "knee"]},
        ),
        ("the unknown", {}),
        ("axial slice of the chest", {"plane": ["axial"], "body_part": ["Chest", ""]}),
        ("Head and chest", {"body_part": ["Chest", "head", ""]}),
        ("MRI of the Cervical Spine", {"body_part": ["cervical spine", ""], "modality": ["MR", "unknown"]}),
        ("both knees", {"body_part": ["knee", ""]}),
        ("a shoulder", {"body_part": ["", "Chest", "cervical spine", "head", "knee"]}),
        ("lungs", {"body_part": ["Chest", ""]}),
        ("a CT", {"modality": ["CT", "unknown"]}),
        ("PET/CT", {"modality": ["CT", "PET/CT", "unknown"]}),
    ],
)
def test_what_a_text_names(text, named):
    known = [record(f"v{i}", body_part=part, modality=modality) for i, (part, modality) in enumerate(KNOWN)]
    assert all_named(text, known) == named


@pytest.mark.parametrize(
    "text, parts",
    [
        ("axial slice of the chest", ["chest", "heart", "lung"]),
        ("axial slice of the chest with both lungs", ["chest", "lung"]),
        ("head and chest", ["chest", "heart", "lung"]),
        ("both lungs", ["chest", "lung"]),
        ("the heart", ["chest", "heart"]),
        ("the liver", ["abdomen"]),
    ],
)
def test_a_region_names_its_organs_and_an_organ_its_region(text, parts):
    known = ("lung", "heart", "chest", "abdomen", "kidney", "spine")
    records = [record(f"v{number}", body_part=part) for number, part in enumerate(known)]
    assert all_named(text, records)["body_part"] == parts


def test_where_everything_is_known_nothing_unknown_is_named():
    assert all_named("MR of the head", [record("v0")]) == {"body_part": ["head"], "modality": ["MR"]}
    assert all_named("MR of the head", []) == {}


def test_where_nobody_is_known_to_show_a_part_those_of_unknown_parts_come_first():
    records = [record("v0", body_part="head"), record("v1", body_part="")]
    (named,) = named_in("the liver", records)
    assert (named.values, named.otherwise) == (("",), ("head",))
    assert not named.is_known
    assert all_named("the liver", records[:1]) == {}
    assert all_named("the liver", records[1:]) == {}


def test_an_end_is_of_its_own_plane_and_the_middle_of_all():
    assert thirds_allowed(["plane=axial"]) is None
    assert thirds_allowed(["place=upper"]).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert thirds_allowed(["place=Middle", "place=left"]).tolist() == [[False, True, False]] * 2 + [
        [True, True, False]
    ]
    assert allowed_blocks(["place=back"], list, count=2).tolist() == [[False, True, False]] * 2
    with pytest.raises(RefusedError, match="no place is called 'near'"):
        thirds_allowed(["place=near"])
    with pytest.raises(RefusedError, match="no volume is plane='axial' and place='left'"):
        allowed_blocks(["plane=axial", "place=left"], list, count=2)


def test_conditions_on_planes_need_no_records():
    def records():
        raise AssertionError("not needed")

    allowed = allowed_blocks(["plane=coronal"], records, count=4)
    assert allowed.tolist() == [[False, True, False]] * 4
