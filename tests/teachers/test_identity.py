"""Which parts of a volume's rows are out of date: what the build redoes and the plan tells."""

from dataclasses import replace

from m3di.teachers.identity import DENSE, IMAGE, TEXT, stale_parts
from stores import Store
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
