from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.tasks.split import complete, fold_of, nested_order, nested_part, share_of, split_subjects
from stores.errors import RefusedError

PAPER = (0.7, 0.1, 0.2)


@pytest.mark.parametrize("total, counts", [(20, (14, 2, 4)), (10, (7, 1, 2)), (3, (1, 1, 1)), (200, (140, 20, 40))])
def test_counts_are_the_papers(total, counts):
    shares = list(split_subjects([f"s{i}" for i in range(total)], ratios=PAPER, seed=0).values())
    assert tuple(shares.count(share) for share in ("train", "validation", "test")) == counts


@given(st.sets(st.text(min_size=1), min_size=3, max_size=50), st.integers(0, 5), st.randoms())
def test_the_split_is_a_function_of_names_and_seed(names, seed, random):
    shuffled = list(names) * 2
    random.shuffle(shuffled)
    assert split_subjects(shuffled, ratios=PAPER, seed=seed) == split_subjects(names, ratios=PAPER, seed=seed)


def test_another_seed_is_another_split():
    names = [f"s{i}" for i in range(40)]
    assert split_subjects(names, ratios=PAPER, seed=0) != split_subjects(names, ratios=PAPER, seed=1)
    assert nested_order(names, seed=0)[:5] == nested_order(names, seed=0)[:9][:5]


def test_too_few_subjects_are_refused_by_name_of_the_ratio():
    with pytest.raises(RefusedError, match=r"E_SPLIT 2 subjects cannot be split 0\.7:0\.1:0\.2"):
        split_subjects(["a", "b"], ratios=PAPER, seed=0)
    assert set(split_subjects(["a", "b"], ratios=(0.5, 0.0, 0.5), seed=0).values()) == {"train", "test"}


def test_datasets_split_by_themselves_and_small_ones_train():
    big = [("big", f"s{i}") for i in range(20)]
    shares = share_of([*big, ("small", "a"), ("small", "b")], ratios=PAPER, seed=3)
    assert shares[-2:] == ["train", "train"]
    alone = split_subjects([subject for _, subject in big], ratios=PAPER, seed=3)
    assert shares[:-2] == [alone[subject] for _, subject in big], "another dataset in the store changes nothing"


PEOPLE = st.sets(st.text("abcdef", min_size=1), min_size=7, max_size=30)


@given(PEOPLE, PEOPLE, st.integers(2, 5), st.integers(0, 3), st.randoms())
def test_folds_partition_the_subjects(ours, theirs, folds, seed, random):
    owners = [*(("ours", name) for name in ours), *(("theirs", name) for name in theirs)]
    owners += random.sample(owners, 5)  # a second scan of some
    random.shuffle(owners)
    turns = [fold_of(owners, folds=folds, fold=fold, ratios=PAPER, seed=seed) for fold in range(folds)]
    for place, owner in enumerate(owners):
        assert sum(turn[place] == "test" for turn in turns) == 1, "everybody is tested once"
        for turn in turns:
            assert all(share == turn[place] for other, share in zip(owners, turn, strict=True) if other == owner)
    for turn in turns:
        assert {"train", "validation", "test"} == set(turn)


def test_folds_are_equal_in_size_and_validation_keeps_its_ratio():
    owners = [("d", f"s{i}") for i in range(40)]
    shares = fold_of(owners, folds=5, fold=2, ratios=PAPER, seed=0)
    assert [shares.count(share) for share in ("train", "validation", "test")] == [28, 4, 8]


@pytest.mark.parametrize("folds, fold, code", [(3, 3, "E_CONFIG"), (9, 0, "E_SPLIT"), (1, 0, "E_SPLIT")])
def test_folds_that_cannot_be_are_refused(folds, fold, code):
    with pytest.raises(RefusedError, match=code):
        fold_of([("d", f"s{i}") for i in range(8)], folds=folds, fold=fold, ratios=PAPER, seed=0)


def test_what_a_sets_own_split_lacks_is_taken_from_training():
    own = {("d", f"s{i}"): "train" if i < 90 else "validation" for i in range(100)}
    shares = complete(own, ratios=PAPER, seed=0)
    assert [list(shares.values()).count(share) for share in ("train", "validation", "test")] == [70, 10, 20]
    assert all(shares[owner] == "validation" for owner, share in own.items() if share == "validation")
    whole = {**own, ("d", "t"): "test"}
    assert complete(whole, ratios=PAPER, seed=0) == whole


@given(
    st.dictionaries(st.text("abcdefgh", min_size=1), st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 3)
)
def test_smaller_parts_are_subsets_of_larger_ones(classes, seed):
    parts = [nested_part(classes, fraction=fraction, seed=seed) for fraction in (0.01, 0.1, 0.25, 0.5, 1.0)]
    for smaller, larger in pairwise(parts):
        assert smaller <= larger
    assert parts[0]
    assert parts[-1] == classes.keys()


def test_a_part_has_every_class_at_about_its_share():
    classes = {f"s{i}": int(i % 5 == 0) for i in range(100)}
    for fraction in (0.1, 0.3, 0.5):
        part = nested_part(classes, fraction=fraction, seed=1)
        assert len(part) == 100 * fraction
        assert abs(sum(classes[name] for name in part) - 20 * fraction) <= 1


def test_without_classes_a_part_is_the_first_in_order():
    names = [f"s{i}" for i in range(30)]
    assert nested_part(dict.fromkeys(names, 0), fraction=0.2, seed=4) == set(nested_order(names, seed=4)[:6])
