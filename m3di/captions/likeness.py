"""How alike texts are, by their words."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def mask_numbers(text: str) -> str:
    """A text without what near-duplicates differ in: case, punctuation and the values of numbers."""
    return " ".join(_words(re.sub(r"\d+(?:\.\d+)?", "0", text)))


def jaccard(one: str, other: str) -> float:
    """Share of the words of two texts that both have; 1 for two texts without words."""
    mine, theirs = set(_words(one)), set(_words(other))
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0


def agreement(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How much more two captioners agree about a slice than they would by chance.

    Words and not embeddings: a teacher is fitted to the captions of one captioner, so that the rows of two captioners
    do not share a space.

    Args:
        pairs: At least two; what both say about a slice.

    Returns:
        `slices`, `same_slice` (mean Jaccard index of their words) and `other_slice` (the same, with the second
        captioner's texts moved on by half of the slices).
    """
    half = len(pairs) // 2
    second = [text for _, text in pairs]
    moved = second[half:] + second[:half]
    same = [jaccard(one, other) for one, other in pairs]
    other = [jaccard(one, text) for (one, _), text in zip(pairs, moved, strict=True)]
    return {
        "slices": len(pairs),
        "same_slice": round(float(np.mean(same)), 4),
        "other_slice": round(float(np.mean(other)), 4),
    }


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
