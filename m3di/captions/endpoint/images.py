"""Slices as PNG files that hold pixels and nothing else: greyscale, chunks IHDR, IDAT and IEND only."""

import hashlib
import struct
import zlib
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

VERSION: Final = 1  # raise whenever the same slice would be sent as other pixels

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_LEVEL: Final = 6  # fixed, though no digest depends on it


def scaled(image: UInt8[np.ndarray, "y x"], edge: int) -> UInt8[np.ndarray, "v u"]:
    """A slice with `edge` pixels on its longer side; as it is when `edge` is 0."""
    height, width = image.shape
    longer = max(height, width)
    if edge in (0, longer):
        return np.ascontiguousarray(image)
    size = (max(1, round(width * edge / longer)), max(1, round(height * edge / longer)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def pixels_digest(image: UInt8[np.ndarray, "y x"]) -> str:
    """Hex digest of shape and pixels, whatever encodes them."""
    return hashlib.sha256(struct.pack(">II", *image.shape) + np.ascontiguousarray(image).tobytes()).hexdigest()


def png(image: UInt8[np.ndarray, "y x"]) -> bytes:
    """Encode a slice as an 8-bit greyscale PNG without text, time or any other chunk that could carry more."""
    height, width = image.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter type: 0, none
    rows[:, 1:] = image
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
