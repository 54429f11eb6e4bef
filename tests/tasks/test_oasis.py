from collections import Counter
from dataclasses import replace

import pytest

from m3di.tasks.registry import load_task
from m3di.volumes.layouts import discover
from stores.errors import RefusedError
from tests.tasks import trees


@pytest.fixture(scope="module")
def longitudinal(tmp_path_factory):
    return trees.write_oasis2(tmp_path_factory.mktemp("oasis2"))


def test_a_class_belongs_to_a_subject_and_converters_to_none(longitudinal):
    task = load_task("oasis-ad", longitudinal)
    assert task.classes == {0: "NC", 1: "AD"}
    found = {case.subject: task.targets[case.id] for case in task.cases}
    assert found == {f"OAS2_{n:04d}": int(n > 4) for n in range(1, 9)}, "two became demented between visits"
    visits = Counter(case.subject for case in task.cases)
    assert visits["OAS2_0001"] == 2, "every visit, and of each the first of two scans"
    assert len(task.cases) == sum(len(ratings) for _, _, ratings in trees.VISITS[:8])
    assert all("mpr-1" in case.id for case in task.cases)


def test_without_groups_the_rating_decides(longitudinal):
    from m3di.tasks.oasis import diagnose  # noqa: PLC0415

    cases = discover(longitudinal, layout="oasis")
    rated = [replace(case, attributes={"cdr": case.attributes["cdr"]}) for case in cases]
    found = diagnose(rated)
    by_subject = {case.subject: found.targets[case.id] for case in cases if case.id in found.targets}
    assert by_subject == {f"OAS2_{n:04d}": int(n > 4) for n in range(1, 9) if n != 2}, "0, then 0.5: it changed"


def test_scans_without_a_table_have_no_class(tmp_path):
    with pytest.raises(RefusedError, match=r"E_MISSING no scan in .* has a class") as refused:
        load_task("oasis-ad", trees.write_oasis1(tmp_path, 2))
    assert "clinical table" in refused.value.hint
