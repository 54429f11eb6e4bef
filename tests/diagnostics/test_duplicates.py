import numpy as np

from m3di.diagnostics import near_duplicates
from m3di.evaluation.leaks import Scan


def scan(name, degrees, *, digest="", subject=""):
    angle = np.deg2rad(degrees)
    return Scan(name, "set", subject or name, digest or name, np.array([np.cos(angle), np.sin(angle)]))


def test_pairs_are_named_once_the_most_alike_first():
    scans = [scan("a", 0), scan("b", 40, digest="a"), scan("c", 10), scan("d", 41), scan("e", 90, subject="a")]
    found = [(pair.test, pair.seen, pair.kind) for pair in near_duplicates(scans, near_cosine=0.97)]
    assert found == [("a", "b", "duplicate"), ("b", "d", "near-duplicate"), ("a", "c", "near-duplicate")]


def test_one_person_may_have_scans_that_look_different():
    assert near_duplicates([scan("a", 0, subject="p"), scan("b", 90, subject="p")]) == []


def test_more_scans_than_a_chunk_are_all_compared(monkeypatch):
    monkeypatch.setattr("m3di.diagnostics.duplicates._CHUNK", 2)
    scans = [scan(f"s{n}", 30 * n) for n in range(5)] + [scan("twin", 60)]
    assert [(pair.test, pair.seen) for pair in near_duplicates(scans)] == [("s2", "twin")]
