"""Small stores that pages and servers show, and one whose texts try to do harm."""

from pathlib import Path

from stores import Store
from stores.records import Captions
from tests.query.test_searcher import FACTS, unit_rows
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, captions_of, chunks, record, rows_of

HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script><!--",
    "\x1b[2J\x1b]0;owned\x07 escape \x9b31m",
    "right\u202eto left\u2066\u2069 \u200b\u200f end",
    "'\"><svg onload=document.title='owned'> {{ 7 * 7 }} ${7 * 7} javascript:alert(1) \u2028 \U0001f600 \ud800 lone",
)


def write_store(path: Path) -> Path:
    """Four volumes of three people (`test_searcher.FACTS`), whose teacher cannot be asked."""
    with Store.create_or_open(path, RECIPE) as store:
        for seed, (name, facts) in enumerate(FACTS):
            kept = store.commit_volume(record(name, **facts), chunks(seed))
            _describe(store, kept, seed, captions_of(kept))
        _finish(store)
    return path


def write_hostile_store(path: Path) -> Path:
    """A volume of each text, which is its captions, its dataset, its body part and its subject.

    Names are UTF-8 in the index, so a lone surrogate is in captions only.
    """
    with Store.create_or_open(path, RECIPE) as store:
        for seed, text in enumerate(HOSTILE):
            facts = dict.fromkeys(("dataset", "body_part", "subject"), text.replace("\ud800", ""))
            kept = store.commit_volume(record(f"v{seed}", **facts), chunks(seed))
            axial, coronal, sagittal = (tuple(text for _ in kept.valid_slices(plane)) for plane in range(3))
            _describe(store, kept, seed, Captions(kept.item_digest, (axial, coronal, sagittal)))
        _finish(store)
    return path


def _describe(store, kept, seed, captions):
    store.commit_captions(CAPTIONER, kept.volume, captions)
    rows = [unit_rows(rows) for rows in rows_of(kept, seed)]
    store.commit_rows(TEACHER, kept, rows, captions_digest=captions.digest)


def _finish(store):
    store.commit_facts("teacher", TEACHER, {"fingerprint": TEACHER, "spec": "<b>x</b>"})
    store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
