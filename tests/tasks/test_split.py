import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3di.tasks.split import nested_order, share_of, split_subjects
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
