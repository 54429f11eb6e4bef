"""Which parts of a volume's rows are out of date: what the build redoes and the plan tells."""

from dataclasses import replace

import pytest

from m3di.config import load_config
from m3di.teachers import identity
from m3di.teachers.identity import DENSE, IMAGE, TEXT, find_teacher, stale_parts, teacher_request
from stores import Store
from stores.errors import RefusedError
from tests.stores.stores import TEACHER, build, captions_of

PATCHES = {"fingerprint": "d4" * 32}


def test_each_part_is_stale_by_what_it_is_made_of(tmp_path):
    with Store(build(tmp_path / "s", 1), writable=True) as store:
        record = store.record("v0")
        captions = captions_of(record)
        other = replace(captions, item_digest="other")
        moved = replace(record, source_digest="other", item_digest="other")
        assert stale_parts(store, TEACHER, None, record, captions) == set()
        assert stale_parts(store, TEACHER, None, record, other) == {TEXT}
        assert stale_parts(store, TEACHER, None, record, None) == {TEXT}
        assert stale_parts(store, TEACHER, None, moved, captions) == {IMAGE, TEXT}
        assert stale_parts(store, "e5" * 32, None, record, captions) == {IMAGE, TEXT}
        assert stale_parts(store, TEACHER, PATCHES, record, captions) == {DENSE}
        rows = [store.plane_rows(TEACHER, "v0", plane) for plane in range(3)]
        store.commit_rows(PATCHES["fingerprint"], record, rows)
        assert stale_parts(store, TEACHER, PATCHES, record, captions) == set()


def test_a_teacher_is_found_by_its_spec_or_the_beginning_of_its_fingerprint(tmp_path):
    with Store(build(tmp_path / "s", 1), writable=True) as store:
        for fingerprint, spec in (("a1" * 32, "embedded"), ("a2" * 32, "embedded"), ("b1" * 32, "hf-hub:org/model")):
            store.commit_facts("teacher", fingerprint, {"spec": spec, "fingerprint": fingerprint})
        assert find_teacher(store, "hf-hub:org/model") == find_teacher(store, "b") == "b1" * 32
        assert find_teacher(store, "a2") == "a2" * 32
        for name, count in (("embedded", 2), ("a", 2), ("c", 0)):
            with pytest.raises(RefusedError, match=f"{count} teachers of .* are called '{name}'.*a1a1a1a1a1a1a1a1"):
                find_teacher(store, name)


def test_a_teacher_is_fitted_anew_when_its_settings_or_the_way_of_encoding_change(monkeypatch):
    config = load_config()
    known = teacher_request(config, "c")
    assert known == teacher_request(load_config(), "c")
    assert known != teacher_request(config, "d")
    assert known != teacher_request(load_config(settings=["teacher.fit_steps=3"]), "c")
    assert known != teacher_request(load_config(overrides=[("pretrain.leave_out", ["msd:data"])]), "c")
    monkeypatch.setattr(identity, "VERSION", identity.VERSION + 1)
    assert known != teacher_request(config, "c")
