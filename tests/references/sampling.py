"""How slices are drawn, in plain Python.

splitmix64 in plain integers: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).
"""

import math

MASK = (1 << 64) - 1


def splitmix64_uniform(key):
    """Mix the parts of a key one after the other; the top 53 bits make a number in (0, 1)."""
    state = 0
    for part in key:
        z = ((state ^ part) + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        state = z ^ (z >> 31)
    return ((state >> 11) + 0.5) / 2**53


def weighted_slices(*, seed, epoch, volume, valid, plane_weights, slice_weights, k):
    """The K slices of one volume that a race of independent exponential clocks brings in first.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): the order of arrival is a weighted
    draw without replacement. Where fewer than K take part, they arrive again in the same order. `valid` holds one
    list of bools a plane; `slice_weights` is a dict by (plane, slice).
    """
    positions = len(valid[0])
    arrivals = []
    for plane, bits in enumerate(valid):
        for index, is_valid in enumerate(bits):
            rate = plane_weights[plane] * slice_weights.get((plane, index), 1.0)
            if is_valid and rate > 0:
                uniform = splitmix64_uniform((seed, epoch, volume, plane * positions + index))
                arrivals.append((-math.log(uniform) * sum(bits) / rate, plane, index))
    order = [(plane, index) for _, plane, index in sorted(arrivals)]
    return [order[turn % len(order)] for turn in range(k)]
