import numpy as np
import pytest

from m3di.evaluation.leaks import Scan, embedding_of, find_leaks, scans_in
from stores import Store
from tests.stores.stores import build


def unit(*values):
    return np.array(values) / np.linalg.norm(values)


def scan(name, *, subject=None, digest=None, embedding=(1, 0, 0), dataset="set"):
    return Scan(name, dataset, subject or f"person-{name}", digest or f"bytes-{name}", unit(*embedding))


TEST = [scan("t1"), scan("t2", embedding=(0, 1, 0))]


def test_nothing_shared_is_said_in_one_line():
    training, pretraining = [scan("a", embedding=(0, 0, 1))], [scan("b", embedding=(0, 1, 1))]
    report = find_leaks(TEST, {"training": training, "pretraining": pretraining})
    assert report.leaks == ()
    expected = "no subject, scan or near-duplicate shared among 2 test, 1 training, 1 pretraining scans"
    assert report.line == expected


@pytest.mark.parametrize(
    "other, kind, words",
    [
        (scan("a", digest="bytes-t1", embedding=(0, 0, 1)), "duplicate", "t1 has the same bytes as a of training"),
        (
            scan("a", subject="person-t1", embedding=(0, 0, 1)),
            "subject",
            "t1 is of the same subject as a of training",
        ),
        (scan("a", embedding=(1, 0.1, 0)), "near-duplicate", "t1 looks the same as a of training (cosine 0.995)"),
        (scan("a", subject="person-t1", embedding=(1, 0.1, 0)), "near-duplicate", "t1 looks the same as a"),
    ],
)
def test_each_kind_is_found_and_named(other, kind, words):
    (leak,) = find_leaks(TEST, {"training": [scan("b", embedding=(0, 0, 1)), other]}).leaks
    assert (leak.test, leak.seen, leak.group, leak.kind) == ("t1", "a", "training", kind)
    line = find_leaks(TEST, {"training": [other]}).line
    assert line.startswith("1 of the test scans shared among 2 test, 1 training scans: test scan ")
    assert words in line


def test_one_subject_name_in_two_datasets_is_two_people():
    other = scan("a", subject="person-t1", dataset="another", embedding=(0, 0, 1))
    assert find_leaks(TEST, {"training": [other]}).leaks == ()


def test_the_threshold_is_inclusive_and_can_be_moved():
    other = [scan("a", embedding=(0.8, 0, 0.6))]
    assert find_leaks(TEST, {"training": other}).leaks == ()
    assert len(find_leaks(TEST, {"training": other}, near_cosine=0.8 - 1e-12).leaks) == 1


def test_the_worst_come_first_and_the_rest_are_counted():
    seen = {
        "training": [scan(f"s{i}", subject="person-t1", embedding=(0, 0, 1)) for i in range(4)],
        "pretraining": [scan("copy", digest="bytes-t2", embedding=(0, 0, 1))],
    }
    report = find_leaks(TEST, seen)
    assert report.leaks[0].kind == "duplicate"
    assert report.line.startswith("2 of the test scans shared among 2 test, 4 training, 1 pretraining scans: ")
    assert report.line.count(";") == 3
    assert report.line.endswith("; and 2 more")


def test_what_is_not_known_is_said_and_never_taken_for_equal():
    blank = [Scan("a"), Scan("b", digest="x")]
    report = find_leaks([Scan("t"), TEST[0]], {"pretraining": blank})
    assert report.leaks == ()
    assert report.unknown == (
        "subject of 1 test, 2 pretraining scans",
        "scan of 1 test, 1 pretraining scans",
        "near-duplicate of 1 test, 2 pretraining scans",
    )
    assert report.line.startswith("no scan shared among 2 test, 2 pretraining scans; not known: subject of 1 test")


def test_where_nothing_is_known_nothing_is_claimed():
    line = find_leaks([Scan("t")], {"training": [Scan("a")]}).line
    assert line.startswith("nothing could be compared among 1 test, 1 training scans; not known: ")
    assert find_leaks(TEST, {"training": [], "pretraining": []}).line == (
        "no subject, scan or near-duplicate shared among 2 test, 0 training, 0 pretraining scans"
    )


def test_a_large_group_is_compared_as_one_pair_at_a_time_would_be():
    random = np.random.default_rng(0)
    sides = [
        [scan(f"{side}{i}", subject=f"p{random.integers(30)}", digest=f"d{random.integers(40)}",
              embedding=random.normal(size=2)) for i in range(25)]
        for side in "ab"
    ]  # fmt: skip
    expected = set()
    for one in sides[0]:
        for other in sides[1]:
            if one.digest == other.digest:
                expected.add((one.name, other.name, "duplicate"))
            elif float(one.embedding @ other.embedding) >= 0.96:
                expected.add((one.name, other.name, "near-duplicate"))
            elif one.subject == other.subject:
                expected.add((one.name, other.name, "subject"))
    found = find_leaks(sides[0], {"training": sides[1]}).leaks
    assert {(leak.test, leak.seen, leak.kind) for leak in found} == expected
    assert len(found) == len(expected)


def test_volumes_of_a_store_come_with_the_mean_of_their_rows(tmp_path):
    build(tmp_path / "store")
    with Store(tmp_path / "store") as store:
        teacher = store.current()["teacher"]
        names = [record.volume for record in store.records()]
        scans = scans_in(store, names[:2])
        assert [one.name for one in scans] == names[:2]
        for one in scans:
            record = store.record(one.name)
            assert (one.dataset, one.subject, one.digest) == (record.dataset, record.subject, record.source_digest)
            planes = [store.embeddings(teacher).plane(one.name, plane) for plane in range(3)]
            mean = sum(sum(row[0].astype(float) for row in rows) / len(rows) for rows in planes if len(rows))
            np.testing.assert_allclose(one.embedding, mean / np.sqrt((mean**2).sum()), rtol=1e-6)
        assert embedding_of(store, "0" * 64, names[0]) is None
        report = find_leaks(scans[:1], {"training": scans_in(store)})
        assert next((leak.seen, leak.kind) for leak in report.leaks) == (names[0], "duplicate")
