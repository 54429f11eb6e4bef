"""Literal search: every row's cosine by a plain sum of products, one at a time, then a sort."""

import math

Place = tuple[str, int, int]  # volume, plane, slice


def cosine(row: list[float], vector: list[float]) -> float:
    """Sum of products, exactly rounded."""
    return math.fsum(a * b for a, b in zip(row, vector, strict=True))


def ranked(
    rows: dict[tuple[str, int, int], list[float]], vector: list[float]
) -> list[tuple[tuple[str, int, int], float]]:
    """Each place with its cosine, best first; of equal ones the first by volume, plane and slice."""
    found = [(place, cosine(row, vector)) for place, row in rows.items()]
    return sorted(found, key=lambda item: (-item[1], item[0]))


def one_per_volume(answers: list[tuple[Place, float]]) -> list[tuple[Place, float]]:
    """The first answer of each volume."""
    seen: set[str] = set()
    kept = []
    for place, score in answers:
        if place[0] not in seen:
            seen.add(place[0])
            kept.append((place, score))
    return kept
