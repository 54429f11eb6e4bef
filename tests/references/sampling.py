"""splitmix64 in plain integers (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014)."""

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
