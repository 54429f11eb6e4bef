"""Subject-wise splits (paper, section 3.1: 7:1:2), as a pure function of names and a seed."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from stores.errors import RefusedError

Share = Literal["train", "validation", "test"]
SHARES: tuple[Share, Share, Share] = ("train", "validation", "test")


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


def share_of(owners: Sequence[tuple[str, str]], *, ratios: Sequence[float], seed: int) -> list[Share]:
    """Split each dataset by itself and give the share of every (dataset, subject), in the order given.

    A dataset of fewer than three subjects, which nobody could split, trains as a whole.
    """
    shares: dict[str, dict[str, Share]] = {}
    for dataset in {dataset for dataset, _ in owners}:
        subjects = {subject for owner, subject in owners if owner == dataset}
        few = len(subjects) < len(SHARES)
        shares[dataset] = (
            dict.fromkeys(subjects, "train") if few else split_subjects(subjects, ratios=ratios, seed=seed)
        )
    return [shares[dataset][subject] for dataset, subject in owners]


def nested_order(names: Iterable[str], *, seed: int) -> list[str]:
    """Order names by keyed hash: a prefix is a random subset, and shorter prefixes are subsets of longer ones."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


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
