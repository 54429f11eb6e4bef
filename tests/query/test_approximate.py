import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from m3di.query import Searcher, Wanted
from m3di.query.approximate import measure_recall, open_index
from stores import Store
from stores.errors import DamagedError
from tests.stores.stores import DIM, TEACHER, build, rows_of

pytest.importorskip("usearch", reason='the approximate index needs usearch: pip install "m3di[search]"')

WANTED = Wanted(approximate=True)


@pytest.fixture
def path(tmp_path):
    """A store of unit rows."""
    path = build(tmp_path / "store", count=6)
    with Store(path, writable=True) as store:
        for seed, name in enumerate(store.volume_names()):
            known = store.record(name)
            rows = [part.astype(np.float32) for part in rows_of(known, seed)]
            unit = [(part / np.linalg.norm(part, axis=-1, keepdims=True)).astype(np.float16) for part in rows]
            store.commit_rows(TEACHER, known, unit)
        store.commit_current(teacher=TEACHER, captioner="b2" * 32)
    return path


def test_it_finds_what_exact_search_finds_and_says_its_recall(path):
    vector = np.eye(DIM, dtype=np.float32)[2]
    with Searcher(path) as searcher:
        exact = searcher.by_vector(vector)
        nearly = searcher.by_vector(vector, WANTED)
        assert nearly.results == exact.results, "of so few rows the index looks at all"
        assert nearly.notes[-1] == "by an approximate index, which finds 100.0% of the nearest rows"
        in_middle = replace(WANTED, where=("place=middle",))
        assert searcher.by_vector(vector, in_middle).results == (
            searcher.by_vector(vector, replace(in_middle, approximate=False)).results
        )
        few = searcher.by_vector(vector, Wanted(approximate=True, top=1, where=("volume=v3",)))
        assert few.results == searcher.by_vector(vector, Wanted(top=1, where=("volume=v3",))).results


def test_exact_search_stands_in_where_conditions_leave_too_little(path, monkeypatch):
    monkeypatch.setattr("m3di.query.approximate._OVERSAMPLED", 1)
    vector = np.eye(DIM, dtype=np.float32)[2]
    with Searcher(path) as searcher:
        last = searcher.by_vector(vector, Wanted(top=6)).results[-1].volume
        wanted = Wanted(approximate=True, top=2, where=(f"volume={last}",), one_per_volume=False)
        answer = searcher.by_vector(vector, wanted)
        assert answer.notes[-1] == "by exact search: the index found too few"
        assert {hit.volume for hit in answer.results} == {last}


def test_it_is_kept_beside_the_store_and_made_anew_for_another_content(path):
    vector = np.eye(DIM, dtype=np.float32)[2]
    beside = path.with_name("store.search")
    for _ in range(2):
        with Searcher(path) as searcher:
            searcher.by_vector(vector, Wanted(approximate=True))
        assert len(list(beside.glob("*.usearch"))) == 1
    with Store(path, writable=True) as store:
        known = store.record("v0")
        store.commit_rows(TEACHER, known, rows_of(known, 7))
        store.commit_current(teacher=TEACHER, captioner="b2" * 32)
    with Searcher(path) as searcher:
        searcher.by_vector(vector, Wanted(approximate=True))
    assert len(list(beside.glob("*.usearch"))) == 2


@pytest.mark.parametrize("damage", [lambda _: b"not an index", lambda content: content[:-100]])
def test_a_damaged_one_is_named(path, damage):
    with Searcher(path) as searcher:
        open_index(searcher.store, TEACHER, searcher.part(0), 0)
    (index,) = path.with_name("store.search").glob("*.usearch")
    index.write_bytes(damage(index.read_bytes()))
    with Searcher(path) as searcher, pytest.raises(DamagedError, match="not an index"):
        searcher.by_vector(np.eye(DIM, dtype=np.float32)[0], Wanted(approximate=True))


def test_recall_is_measured_against_exact_search(path):
    class Blind:
        def search(self, _probe, count):
            return type("Found", (), {"keys": np.full(count, -1)})

    with Searcher(path) as searcher:
        part = searcher.part(0)
        found = open_index(searcher.store, TEACHER, part, 0)
        (facts,) = path.with_name("store.search").glob("*.json")
        assert json.loads(facts.read_text())["recall"] == found.recall == 1
        assert measure_recall(Blind(), part) == 0


def test_simpleitk_reads_scans_after_it(path, tmp_path):
    image = sitk.GetImageFromArray(np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    image.SetSpacing((1.5, 1.25, 2.0))
    sitk.WriteImage(image, tmp_path / "scan.mha")
    script = (
        "import sys; from pathlib import Path; import numpy as np; from m3di.query import Searcher, Wanted\n"
        "with Searcher(Path(sys.argv[1])) as searcher:\n"
        f"    searcher.by_vector(np.eye({DIM}, dtype=np.float32)[0], Wanted(approximate=True))\n"
        "import SimpleITK\n"
        "print(SimpleITK.ReadImage(sys.argv[2]).GetSpacing())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path, tmp_path / "scan.mha"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "(1.5, 1.25, 2.0)\n", done.stderr
