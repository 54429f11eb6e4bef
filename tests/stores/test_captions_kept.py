"""What a store keeps beside captions: where each text came from, facts of slices, answers that were paid for."""

import threading

from stores import Store
from stores.collection import collect
from stores.merging import merge
from stores.records import Captions
from stores.verification import verify
from tests.stores.stores import CAPTIONER, RECIPE, TEACHER, build, captions_of, chunks, record

OTHER = "c3" * 32


def described(store, name):
    """Captions with sources and facts."""
    plain = captions_of(store.record(name))
    sources = tuple("dm" * (len(texts) // 2) + "d" * (len(texts) % 2) for texts in plain.texts)
    facts = [[{"fill": 0.5, "index": n} for n in range(len(texts))] for texts in plain.texts]
    return Captions(plain.item_digest, plain.texts, sources), facts


def test_sources_and_facts_come_back_and_do_not_count_as_other_captions(tmp_path):
    with Store(build(tmp_path / "s", 2), writable=True) as store:
        captions, facts = described(store, "v0")
        assert captions.digest == captions_of(store.record("v0")).digest
        store.commit_captions(OTHER, "v0", captions, facts=facts)
        assert store.captions(OTHER, "v0") == captions
        assert store.slice_facts(OTHER, "v0") == facts
        assert store.slice_facts(CAPTIONER, "v0") is None
        store.commit_captions(OTHER, "v0", captions)
        assert store.slice_facts(OTHER, "v0") is None, "facts of former captions are gone"
    assert [problem for problem in verify(tmp_path / "s") if problem.serious] == []


def test_captions_of_an_older_build_have_no_sources():
    assert Captions.from_dict({"item_digest": "i", "texts": [["a"], [], []]}).sources == ("", "", "")


def test_answers_are_kept_through_gc_and_merge_and_are_no_part_of_the_digest(tmp_path):
    with Store(build(tmp_path / "s", 2), writable=True) as store:
        before = store.digest()
        store.commit_reply("ab" * 32, {"text": "a liver", "tokens": 12})
        assert store.reply("ab" * 32) == {"text": "a liver", "tokens": 12}
        assert store.reply("cd" * 32) is None
        assert store.digest() == before
        collect(store)
        assert store.replies() == ["ab" * 32]
        store.commit_current(teacher=TEACHER, captioner=CAPTIONER)
    assert list(verify(tmp_path / "s")) == []
    with Store(tmp_path / "s") as source, Store.create_or_open(tmp_path / "m", RECIPE) as target:
        merge(target, [source], report=lambda *_, **__: None, check=lambda: None)
        assert target.reply("ab" * 32) == {"text": "a liver", "tokens": 12}


def test_facts_are_merged_and_collected_with_their_captions(tmp_path):
    with Store(build(tmp_path / "s", 2), writable=True) as store:
        captions, facts = described(store, "v1")
        store.commit_captions(OTHER, "v1", captions, facts=facts)
        with Store.create_or_open(tmp_path / "m", RECIPE) as target:
            merge(target, [store], report=lambda *_, **__: None, check=lambda: None)
            assert target.slice_facts(OTHER, "v1") == facts
        store.remove(volumes=["v1"], derived=[], folders=[])
        collect(store)
        assert store.slice_facts(OTHER, "v1") is None


def test_threads_may_keep_answers_at_once(tmp_path):
    with Store.create_or_open(tmp_path / "s", RECIPE) as store:
        store.commit_volume(record("v0"), chunks(0))
        workers = [threading.Thread(target=store.commit_reply, args=(f"{n:064x}", {"n": n})) for n in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [store.reply(f"{n:064x}") for n in range(16)] == [{"n": n} for n in range(16)]
