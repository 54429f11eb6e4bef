import errno
import os
from functools import partial
from pathlib import Path

import pytest

from m3di.volumes.cases import Case
from m3di.volumes.pool import prepare_all
from m3di.volumes.prepare import Prepared, prepare
from stores.errors import CaseError, ResourceError
from stores.recipe import Recipe
from tests.phantoms import head, ras_affine, write_scan

RECIPE = Recipe(cube_size=8, slice_size=8, slice_stride=4)


class Deadly(type(Path())):
    """Stands for a scan whose decoder ends the process: unpickling it in a worker does."""

    def __reduce__(self):
        return os._exit, (1,)


def case(name, image):
    return Case(name, name, "set", "MR", "head", image, None, image)


@pytest.fixture
def cases(tmp_path):
    affine = ras_affine((1.5, 1.25, 2.0))
    scans = [write_scan(tmp_path / f"s{n}.nii", head(seed=n)[0], affine=affine) for n in range(3)]
    bad = tmp_path / "bad.nii"
    bad.write_bytes(scans[0].read_bytes()[:-1])
    return [case("s0", scans[0]), case("s1", scans[1]), case("bad", bad), case("s2", scans[2])]


def test_workers_give_what_one_process_gives_in_order(cases):
    known = {"s1": prepare(cases[1], RECIPE, "").record.item_digest}
    alone, pooled = (list(prepare_all(cases, RECIPE, known, workers=count)) for count in (0, 2))
    assert [one.id for one, _ in pooled] == [one.id for one in cases]
    for (_, first), (_, second) in zip(alone, pooled, strict=True):
        if isinstance(first, Prepared):
            assert first.chunks == second.chunks
            assert first.record.to_dict() == second.record.to_dict()
        else:
            assert str(first) == str(second)
    assert pooled[1][1] is None, "up to date"
    assert pooled[2][1].code == "E_TRUNCATED"


def test_a_scan_that_ends_its_process_is_refused_and_the_others_are_prepared(cases):
    given = [cases[0], case("deadly", Deadly("deadly.nii")), *cases[1:]]
    outcomes = {one.id: outcome for one, outcome in prepare_all(given, RECIPE, {}, workers=1)}
    assert list(outcomes) == ["s0", "deadly", "s1", "bad", "s2"]
    assert isinstance(outcomes["deadly"], CaseError)
    assert outcomes["deadly"].code == "E_WORKER"
    assert "deadly.nii" in outcomes["deadly"].message
    assert all(isinstance(outcomes[name], Prepared) for name in ("s0", "s1", "s2"))


class Forbidden(type(Path())):
    """Stands for a scan that this user may not open, which root always may."""

    def open(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))


def test_what_the_system_refuses_to_open_is_one_case_refused(cases):
    forbidden = case("forbidden", Forbidden(cases[1].image))
    (_, refused), (_, prepared) = prepare_all([forbidden, cases[0]], RECIPE, {}, workers=0)
    assert (refused.code, refused.message) == ("E_MISSING", "s1.nii cannot be read: Permission denied")
    assert isinstance(prepared, Prepared)


def test_processes_that_cannot_start_are_no_fault_of_the_scans(cases, monkeypatch):
    monkeypatch.setattr("m3di.volumes.pool._begin_worker", partial(os._exit, 1))
    with pytest.raises(ResourceError, match="before they have read anything") as error:
        list(prepare_all(cases, RECIPE, {}, workers=2))
    assert error.value.code == "E_WORKER"
