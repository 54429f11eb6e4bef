"""Literal slow versions of the teacher's fitting loss and retrieval recall: plain numbers, one item at a time."""

import math
from itertools import combinations


def masked_info_nce(similarity: list[list[float]], text_ids: list[int], scale: float) -> float:
    """Symmetric InfoNCE; pairs with the same text id are left out of the denominator, except the item's own."""
    count = len(text_ids)
    total = 0.0
    for i in range(count):
        for row in (True, False):
            terms = [
                math.exp(scale * (similarity[i][j] if row else similarity[j][i]))
                for j in range(count)
                if j == i or text_ids[j] != text_ids[i]
            ]
            total -= math.log(math.exp(scale * similarity[i][i]) / sum(terms))
    return total / (2 * count)


def recall(similarity: list[list[float]], text_ids: list[int], k: int) -> float:
    """Share of rows with an item of the same text among the k most similar; without ties."""
    hits = 0
    for i, row in enumerate(similarity):
        nearest = sorted(range(len(row)), key=lambda j: -row[j])[:k]
        hits += any(text_ids[j] == text_ids[i] for j in nearest)
    return hits / len(text_ids)


def chance(text_ids: list[int], k: int) -> float:
    """Recall averaged over all sets of k items."""
    drawn = list(combinations(text_ids, k))
    return sum(text in ids for text in text_ids for ids in drawn) / len(drawn) / len(text_ids)
