"""Tests and bootstraps written down literally, one pattern and one draw at a time."""

from itertools import product


def sign_flip_p(differences):
    """Two-sided p value: all 2^n sign patterns, those counted whose mean is at least as far from 0."""
    found = abs(sum(differences))
    patterns = list(product((1, -1), repeat=len(differences)))
    flipped = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= found - 1e-9 for value in flipped) / len(patterns)


def all_bootstrap_means(values, groups):
    """Mean over cases of every equally likely draw of subjects, each with all its cases."""
    members = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    draws = product(members.values(), repeat=len(members))
    return [sum(map(sum, draw)) / sum(map(len, draw)) for draw in draws]
