"""FORMAT.md, section 4: the checksum of a row, literally, with Python's own integers."""

import google_crc32c

MASK = (1 << 64) - 1


def splitmix64(value):
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def row_sum(row: bytes, key: bytes, rank: int) -> int:
    row += bytes(-len(row) % 8)
    total = splitmix64((google_crc32c.value(key) << 32) ^ rank)
    for j in range(len(row) // 8):
        word = int.from_bytes(row[8 * j : 8 * j + 8], "little")
        total += word * (splitmix64(j) | 1)
    return total & MASK
