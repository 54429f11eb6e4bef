"""Pixels of a DICOM series: decoded slice by slice, checked against what the tags declare, rescaled each by its own.

pydicom decodes uncompressed, RLE and deflated pixels itself; JPEG, JPEG Lossless, JPEG-LS and JPEG 2000 go through
its plugins (python-gdcm, pylibjpeg-openjpeg).
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from m3di.volumes.formats.dicom import Series, Slice, quiet, read_header, rescale_of, stack
from m3di.volumes.formats.header import MAX_BYTES
from stores.errors import CaseError
from stores.geometry import Geometry

_SOF: Final = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7))


def read_series(series: Series) -> tuple[npt.NDArray[np.float32], Geometry, int]:
    """Read a series.

    Returns:
        (i, j, k) voxels in scanner units, their grid, and how many were padding (PixelPaddingValue), which hold the
        smallest other value of their slice.

    Raises:
        CaseError: E_GEOMETRY, E_NO_PIXELS, E_DTYPE, E_DECODE, E_TRUNCATED, E_TOO_LARGE or E_HEADER.
    """
    slices, geometry = stack(series)
    if int(np.prod(geometry.shape, dtype=object)) * 4 > MAX_BYTES:
        message = f"{series.files[0].parent} has {geometry.shape} voxels"
        raise CaseError("E_TOO_LARGE", message, hint=f"at most {MAX_BYTES} bytes are read; crop the series")
    places: dict[Any, list[tuple[int, Slice]]] = {}
    for k, one in enumerate(slices):
        places.setdefault(one.file, []).append((k, one))
    voxels = np.empty(geometry.shape, np.float32, order="F")
    num_padding = 0
    for file, wanted in places.items():
        header = read_header(file, None, pixels=True)
        frames = _decode(header, wanted[0][1])
        for k, one in wanted:
            stored, padding = _shown(frames[one.frame], header)
            slope, intercept = rescale_of(header, one.frame)
            values = stored.astype(np.float64) * slope + intercept
            if padding.any() and not padding.all():
                values[padding] = values[~padding].min()
                num_padding += int(padding.sum())
            voxels[:, :, k] = values.T
    return voxels, geometry, num_padding


def _decode(header: Dataset, one: Slice) -> npt.NDArray[Any]:
    """Stored values of all frames of a file: (frames, rows, columns)."""
    file = one.file
    if "PixelData" not in header and "FloatPixelData" not in header and "DoubleFloatPixelData" not in header:
        raise CaseError("E_NO_PIXELS", f"{file} has no pixels", hint="export the images, not only their headers")
    with quiet():
        try:
            if int(header.get("SamplesPerPixel", 1)) != 1:
                message = f"{file} has {header.SamplesPerPixel} values a pixel (colour)"
                raise CaseError("E_DTYPE", message, hint="give the original grey images, not screenshots")
            _require_sane(header, one)
            frames = header.pixel_array
        except CaseError:
            raise
        except Exception as error:  # a decoder of hostile bytes: whatever it stumbles over, the file is at fault
            raise _decode_error(header, error, one) from error
    return frames if frames.ndim == 3 else frames[None]


def _require_sane(header: Dataset, one: Slice) -> None:
    """Compare declared sizes with the bytes that are there, before a decoder allocates by either."""
    count = int(header.get("NumberOfFrames", 1) or 1)
    bits = int(header.get("BitsAllocated", 0))
    if bits not in (8, 16, 32, 64):
        raise CaseError("E_DTYPE", f"{one.file} has {bits} bits a pixel", hint="export it with 8 or 16 bits")
    declared = one.shape[0] * one.shape[1] * count * bits // 8
    if declared > MAX_BYTES:
        hint = f"at most {MAX_BYTES} bytes are read"
        raise CaseError("E_TOO_LARGE", f"{one.file} declares {declared} bytes of pixels", hint=hint)
    data = header.get("PixelData")
    if not header.file_meta.TransferSyntaxUID.is_encapsulated:
        if data is not None and len(data) < declared:
            message = f"{one.file} has {len(data)} of {declared} bytes of pixels"
            raise CaseError("E_TRUNCATED", message, hint="copy it again")
        return
    for frame in generate_frames(data, number_of_frames=count):
        size = _codestream_size(frame)
        if size is not None and size != one.shape:
            message = f"{one.file} holds an image of {size} pixels where {one.shape} are declared"
            raise CaseError("E_CORRUPT", message, hint="export it again")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(columns, rows) that a JPEG or JPEG 2000 stream declares itself; None when it is neither."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ
        x1, y1, x0, y0 = (int.from_bytes(frame[start : start + 4], "big") for start in (8, 12, 16, 20))
        return x1 - x0, y1 - y0
    if frame[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in _SOF:
            rows, columns = (int.from_bytes(frame[at : at + 2], "big") for at in (position + 5, position + 7))
            return columns, rows
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _shown(stored: npt.NDArray[Any], header: Dataset) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Stored values with MONOCHROME1 inverted, and where they are padding."""
    padding = np.zeros(stored.shape, bool)
    if header.get("PixelPaddingValue") is not None:
        limit = header.get("PixelPaddingRangeLimit")
        ends = sorted((int(header.PixelPaddingValue), int(header.PixelPaddingValue if limit is None else limit)))
        padding = (stored >= ends[0]) & (stored <= ends[1])
    if str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1" and stored.dtype.kind in "iu":
        bits = int(header.BitsStored)
        top = (1 << bits) - 1 if int(header.PixelRepresentation) == 0 else -1
        stored = top - stored.astype(np.int64)
    return stored, padding


def _decode_error(header: Dataset, error: Exception, one: Slice) -> CaseError:
    syntax = header.file_meta.TransferSyntaxUID
    name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
    hint = "export it again, or convert it with gdcmconv --raw"
    if isinstance(error, NotImplementedError | RuntimeError) and "plugin" in str(error).lower():
        hint = "pip install python-gdcm pylibjpeg-openjpeg, or convert it with gdcmconv --raw"
    return CaseError("E_DECODE", f"{one.file} cannot be decoded ({name}, {type(error).__name__})", hint=hint)
