"""Subject-wise splits (paper, section 3.1: 7:1:2), as a pure function of names and a seed."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

from stores.errors import RefusedError

Share = Literal["train", "validation", "test"]
SHARES: tuple[Share, Share, Share] = ("train", "validation", "test")
WORDS: Final[dict[str, Share]] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
Owner = tuple[str, str]  # dataset and subject


def split_subjects(subjects: Iterable[str], *, ratios: Sequence[float], seed: int) -> dict[str, Share]:
    """Give every subject of one dataset to one share.

    The order of subjects by keyed hash decides, so the same subjects always split alike: pretraining on a store
    and fine-tuning on the same dataset hold out the same people.

    Args:
        subjects: Names; repeated names are one subject.
        ratios: Relative sizes of training, validation and test.
        seed: Another seed is another split.

    Raises:
        RefusedError: E_SPLIT, when there are too few subjects for the shares that are not empty.
    """
    names = nested_order(set(subjects), seed=seed)
    wanted = [ratio > 0 for ratio in ratios]
    if len(names) < sum(wanted):
        message = f"{len(names)} subjects cannot be split {':'.join(f'{ratio:g}' for ratio in ratios)}"
        raise RefusedError("E_SPLIT", message, hint="add subjects, or set split.ratios")
    counts = _counts(len(names), ratios)
    bounds = (counts[0], counts[0] + counts[1])
    return {name: SHARES[(rank >= bounds[0]) + (rank >= bounds[1])] for rank, name in enumerate(names)}


def share_of(owners: Sequence[Owner], *, ratios: Sequence[float], seed: int) -> list[Share]:
    """Split each dataset by itself and give the share of every (dataset, subject), in the order given.

    A dataset of fewer than three subjects, which nobody could split, trains as a whole.
    """

    def one(subjects: set[str]) -> dict[str, Share]:
        if len(subjects) < len(SHARES):
            return dict.fromkeys(subjects, "train")
        return split_subjects(subjects, ratios=ratios, seed=seed)

    return _each_dataset(owners, one)


def own_share(word: str, *, of: str) -> Share:
    """The share that a set's own split names.

    Raises:
        RefusedError: E_SPLIT, for a word that names none.
    """
    if word.lower() not in WORDS:
        message = f"the set's own split gives {of} the share {word!r}"
        hint = f"write one of {', '.join(WORDS)}, or make a new split by --set split.own=false"
        raise RefusedError("E_SPLIT", message, hint=hint)
    return WORDS[word.lower()]


def complete(own: Mapping[Owner, Share], *, ratios: Sequence[float], seed: int) -> dict[Owner, Share]:
    """A set's own split, with the shares that it lacks taken out of its training subjects.

    Args:
        own: The share of each subject.
        ratios: Relative sizes of training, validation and test: which shares are wanted, and how large.
        seed: Another seed takes other subjects.
    """
    present = set(own.values())
    lacking = [0.0 if share in present - {"train"} else ratio for share, ratio in zip(SHARES, ratios, strict=True)]
    training = [owner for owner, share in own.items() if share == "train"]
    again = _each_dataset(training, lambda names: split_subjects(names, ratios=lacking, seed=seed))
    return {**own, **dict(zip(training, again, strict=True))}


def fold_of(owners: Sequence[Owner], *, folds: int, fold: int, ratios: Sequence[float], seed: int) -> list[Share]:
    """One turn of a cross-validation by subject: the fold is the test share, the others train and validate.

    Every subject is in the test share of exactly one fold. What is left is divided as training and validation in
    `ratios` are.

    Args:
        owners: Dataset and subject of each scan.
        folds: How many folds there are.
        fold: Which one is tested, from 0.
        ratios: As in `split_subjects`.
        seed: Another seed makes other folds.

    Raises:
        RefusedError: E_CONFIG, when there is no such fold; E_SPLIT, when there are too few subjects.
    """
    if not 0 <= fold < folds:
        message = f"split.fold={fold} is none of {folds} folds"
        raise RefusedError("E_CONFIG", message, hint=f"0 to {folds - 1}, with split.folds of at least 2")

    def one(subjects: set[str]) -> dict[str, Share]:
        names = nested_order(subjects, seed=seed)
        if len(names) < folds or folds < 2:
            message = f"{len(names)} subjects cannot make {folds} folds"
            raise RefusedError("E_SPLIT", message, hint="lower split.folds")
        tested = names[fold::folds]
        rest = split_subjects(set(names) - set(tested), ratios=(*ratios[:2], 0.0), seed=seed)
        return {**rest, **dict.fromkeys(tested, SHARES[2])}

    return _each_dataset(owners, one)


def nested_order(names: Iterable[str], *, seed: int) -> list[str]:
    """Order names by keyed hash: a prefix is a random subset, and shorter prefixes are subsets of longer ones."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def nested_part(classes: Mapping[str, int], *, fraction: float, seed: int) -> set[str]:
    """A part of some subjects, in which every class has about its share; smaller parts are subsets of larger ones.

    Args:
        classes: Class of each subject; where there are no classes, all alike.
        fraction: How large the part is; it holds one subject at least.
        seed: Another seed is another part.
    """
    order = nested_order(classes, seed=seed)
    sizes, seen, places = Counter(classes.values()), Counter[int](), {}
    for name in order:
        places[name] = (seen[classes[name]] + 0.5) / sizes[classes[name]]
        seen[classes[name]] += 1
    return set(sorted(order, key=places.__getitem__)[: max(1, round(fraction * len(order)))])


def _each_dataset(owners: Sequence[Owner], split: Callable[[set[str]], Mapping[str, Share]]) -> list[Share]:
    """Split the subjects of each dataset by themselves; the share of every owner, in the order given."""
    datasets = {dataset for dataset, _ in owners}
    shares = {name: split({subject for dataset, subject in owners if dataset == name}) for name in datasets}
    return [shares[dataset][subject] for dataset, subject in owners]


def _counts(total: int, ratios: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `ratios` that add up to `total`, at least one where the ratio is not zero."""
    exact = [total * ratio / sum(ratios) for ratio in ratios]
    counts = [max(int(share), int(ratio > 0)) for share, ratio in zip(exact, ratios, strict=True)]
    while sum(counts) != total:
        step = 1 if sum(counts) < total else -1
        changeable = [i for i, ratio in enumerate(ratios) if ratio > 0 and counts[i] + step >= 1]
        best = max(changeable, key=lambda i: step * (exact[i] - counts[i]))
        counts[best] += step
    return counts
