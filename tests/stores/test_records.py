"""Recipes and records as JSON: what they say by default, and digests that must never change by accident."""

import hashlib
import json
import math
from dataclasses import replace

import pytest

from stores.recipe import Recipe, canonical_json
from stores.records import Captions, VolumeRecord, people_of
from tests.stores.stores import record

DEFAULT = {
    "cube_size": 128, "slice_size": 224, "slice_stride": 1, "ct_window_hu": [-1000.0, 1000.0],
    "mr_percentiles": [0.5, 99.5], "resampling": "direct", "labels": False, "rendering_version": 3,
}  # fmt: skip


def test_the_default_recipe_and_its_digest_by_hand():
    assert Recipe().to_dict() == DEFAULT
    assert Recipe.from_dict(DEFAULT) == Recipe()
    text = ",".join(f"{json.dumps(name)}:{json.dumps(DEFAULT[name]).replace(' ', '')}" for name in sorted(DEFAULT))
    assert Recipe().digest == hashlib.sha256(f"{{{text}}}".encode()).hexdigest()


@pytest.mark.parametrize("name", DEFAULT)
def test_every_field_is_part_of_a_recipe_and_all_but_labels_of_its_slices(name):
    other = {"labels": True, "resampling": "two_step", "ct_window_hu": (0.0, 1.0), "mr_percentiles": (1.0, 99.0)}
    changed = replace(Recipe(), **{name: other.get(name, 7)})
    assert changed.digest != Recipe().digest
    assert (changed.slices_digest == Recipe().slices_digest) == (name == "labels")
    assert [found.partition(":")[0] for found in Recipe().differences(changed)] == [name]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_does_not_have_are_refused(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"a": value})


def test_fields_that_an_older_record_lacks_are_0_or_empty():
    fields = record("v0").to_dict()
    for name in ("recipe_digest", "num_non_finite", "num_padding"):
        del fields[name]
    old = VolumeRecord.from_dict(fields)
    assert (old.recipe_digest, old.num_non_finite, old.num_padding, old.sequence) == ("", 0, 0, "")


def test_captions_come_back_with_the_source_of_each_plane():
    captions = Captions("i", (("a",), ("b", "c"), ()), ("d", "mn", ""))
    assert Captions.from_dict(json.loads(json.dumps(captions.to_dict()))) == captions
    other = replace(captions, sources=("m", "dn", ""))
    assert Captions.from_dict(other.to_dict()).sources == ("m", "dn", "")
    assert other.digest == captions.digest


def test_people_are_named_by_dataset_and_subject():
    made = [record("v0", dataset="a", subject="x"), record("v1", dataset="b", subject="y")]
    assert people_of(made) == {"v0": ["a", "x"], "v1": ["b", "y"]}
