"""Pixels of a DICOM series: decoded frame by frame, checked against what the tags declare, rescaled each by its own.

pydicom decodes uncompressed, RLE and deflated pixels itself; JPEG, JPEG Lossless and JPEG-LS go through python-gdcm,
JPEG 2000 through pylibjpeg-openjpeg. Both allocate by what a compressed stream says of itself, and GDCM ends the
process over some streams, so streams are compared with the tags before.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from m3di.volumes.formats.dicom import Series, Slice, stack
from m3di.volumes.formats.dicom_header import guarded, read_header
from stores.errors import CaseError
from stores.geometry import Geometry

PIXEL_TAGS: Final = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
)  # fmt: skip
MAX_BYTES: Final = 1 << 29  # of pixels that one file declares
MAX_FRAME_BYTES: Final = 1 << 25  # 4096 x 4096 of 16 bits
MAX_RLE_BYTES: Final = 1 << 23  # of a frame: a hostile one takes 128 times as much before pydicom notices
MAX_FRAGMENTS: Final = 1 << 20
MAX_RESCALE: Final = 1e12
_SOF: Final = (0xC0, 0xC1, 0xC3, 0xF7)  # JPEG baseline, extended, lossless, and JPEG-LS
_SEGMENTS: Final = (0xC4, 0xDB, 0xDD, 0xF8, *range(0xE0, 0xF0), 0xFE, 0xFF)  # tables, remarks, filling
_STRANGE: Final = re.compile(rb"\xff[\x80-\xcf\xd8\xda-\xfe]")  # a marker within a scan
_J2K: Final = b"\xff\x4f\xff\x51"  # SOC, SIZ


def read_series(series: Series) -> tuple[npt.NDArray[np.float32], Geometry, int]:
    """Read a series.

    Returns:
        (i, j, k) voxels in scanner units, their grid, and how many were padding (PixelPaddingValue), which hold the
        smallest other value of their slice, or of the series where a slice is nothing else.

    Raises:
        CaseError: E_GEOMETRY, E_NO_PIXELS, E_NO_SIGNAL, E_DTYPE, E_DECODE, E_TRUNCATED, E_CORRUPT, E_TOO_LARGE,
            E_SPACING or E_HEADER.
    """
    slices, geometry = stack(series)
    places: dict[Path, dict[int, int]] = {}
    for k, one in enumerate(slices):
        places.setdefault(one.file, {})[one.frame] = k
    voxels = np.empty(geometry.shape, np.float32, order="F")
    num_padding, empty = 0, []
    for file, k_of in places.items():
        header = read_header(file, PIXEL_TAGS, pixels=True)
        with guarded(file):
            for frame, stored in enumerate(_frames(header, slices[k_of[0]])):
                values, padding = _shown(stored, header, frame, file)
                count = int(padding.sum())
                if count == padding.size:
                    empty.append(k_of[frame])
                elif count:
                    values[padding] = values[~padding].min()
                num_padding += count
                voxels[:, :, k_of[frame]] = values.T
    if len(empty) == len(slices):
        raise CaseError("E_NO_SIGNAL", f"{file.parent} holds nothing but padding", hint="leave it out")
    if empty:
        voxels[:, :, empty] = min(voxels[:, :, k].min() for k in range(len(slices)) if k not in set(empty))
    return voxels, geometry, num_padding


def _frames(header: Dataset, one: Slice) -> Iterator[npt.NDArray[Any]]:
    """Stored values of a file's frames, (rows, columns) each, one at a time."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise CaseError("E_HEADER", f"{one.file} does not say its transfer syntax", hint="export it again")
    options = _checked(header, one, syntax)
    try:
        get_decoder(syntax)
        if syntax.is_encapsulated:
            options = _checked_streams(header, one, syntax)
        if syntax == JPEGExtended12Bit:  # GDCM decodes both by what the stream says; pydicom lets it not try 12 bits
            header.file_meta.TransferSyntaxUID = syntax = JPEGBaseline8Bit
        for frame, _ in get_decoder(syntax).iter_array(header, raw=True, **options):
            yield _significant(frame, int(header.BitsStored)) if syntax.is_encapsulated else frame
    except CaseError:
        raise
    except Exception as error:  # a decoder of hostile bytes: whatever it stumbles over, the file is at fault
        name = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
        message = f"{one.file} cannot be decoded ({name}, {type(error).__name__})"
        hint = "export it again, or convert it with gdcmconv --raw"
        raise CaseError("E_DECODE", message, hint=hint) from None


def _checked(header: Dataset, one: Slice, syntax: UID) -> dict[str, Any]:
    """Compare what is declared with the limits, and with the bytes that are there; returns options of the decoder."""
    file = one.file
    keyword = next((name for name in PIXEL_TAGS[-3:] if name in header), "")
    if not keyword:
        raise CaseError("E_NO_PIXELS", f"{file} has no pixels", hint="export the images, not only their headers")
    samples = int(header.get("SamplesPerPixel", 1))
    if samples != 1 or str(header.get("PhotometricInterpretation")) not in ("MONOCHROME1", "MONOCHROME2"):
        message = f"{file} is no grey image ({samples} values a pixel)"
        raise CaseError("E_DTYPE", message, hint="give the original grey images, not screenshots")
    if "ModalityLUTSequence" in header:
        hint = "export it with RescaleSlope and RescaleIntercept"
        raise CaseError("E_DTYPE", f"{file} maps its values by a table", hint=hint)
    bits = int(header.BitsAllocated)
    if bits not in ((8, 16, 32) if keyword == "PixelData" else (32, 64)):
        raise CaseError("E_DTYPE", f"{file} has {bits} bits a pixel", hint="export it with 8 or 16 bits")
    count, frame_bytes = _count(header), one.shape[0] * one.shape[1] * bits // 8
    if frame_bytes > MAX_FRAME_BYTES or frame_bytes * count > MAX_BYTES:
        message = f"{file} declares {count} frames of {frame_bytes} bytes"
        hint = f"at most {MAX_FRAME_BYTES} bytes a frame and {MAX_BYTES} a file are read; crop or downsample it"
        raise CaseError("E_TOO_LARGE", message, hint=hint)
    stored = int(header.get("BitsStored", bits))
    highest = int(header.get("HighBit", stored - 1))
    if not (1 <= stored <= bits and (highest == stored - 1 or syntax.is_encapsulated)):
        message = f"{file} stores {stored} of {bits} bits, the highest at {highest}"
        raise CaseError("E_DTYPE", message, hint="export it with the values in the lowest bits")
    present = len(header[keyword].value or b"")
    if not syntax.is_encapsulated and present < frame_bytes * count:
        message = f"{file} has {present} of {frame_bytes * count} bytes of pixels"
        raise CaseError("E_TRUNCATED", message, hint="copy it again")
    return {"allow_excess_frames": False}


def _checked_streams(header: Dataset, one: Slice, syntax: UID) -> dict[str, Any]:
    """Compare what compressed streams say of themselves with the tags; returns options of the decoder."""
    data, bits, count = header.PixelData, int(header.BitsAllocated), _count(header)
    frame_bytes = one.shape[0] * one.shape[1] * bits // 8
    is_jpeg = syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes
    if data.count(b"\xfe\xff\x00\xe0") > MAX_FRAGMENTS or (syntax == RLELossless and frame_bytes > MAX_RLE_BYTES):
        message = f"{one.file} has frames of {frame_bytes} bytes in too many pieces"
        raise CaseError("E_TOO_LARGE", message, hint="save it with another transfer syntax")
    if is_jpeg and bits > 16:
        message = f"{one.file} has {bits} bits a pixel in a JPEG stream"
        raise CaseError("E_DTYPE", message, hint="export it with 8 or 16 bits")
    tables = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
    found = 0
    for stream in generate_frames(data, number_of_frames=count, extended_offsets=tables if all(tables) else None):
        found += 1
        if len(stream) > 2 * frame_bytes + (1 << 16):
            message = f"{one.file} has a stream of {len(stream)} bytes for {frame_bytes} bytes of pixels"
            raise CaseError("E_CORRUPT", message, hint="export it again")
        if syntax != RLELossless:
            _check_stream(stream, one, bits)
        if found > count:
            break
    if found != count:
        message = f"{one.file} holds {'more' if found > count else found} frames where {count} are declared"
        raise CaseError("E_CORRUPT" if found > count else "E_TRUNCATED", message, hint="export it again")
    if is_jpeg:  # GDCM ends the process when these differ, and cuts the values when the stream has more bits
        return {"bits_stored": bits, "decoding_plugin": "gdcm"}
    return {"decoding_plugin": "pylibjpeg"} if syntax in JPEG2000TransferSyntaxes else {}


def _check_stream(stream: bytes, one: Slice, bits: int) -> None:
    facts = _facts(stream)
    if facts is None:
        raise CaseError("E_DECODE", f"{one.file} holds no JPEG stream where it says so", hint="export it again")
    if facts[:2] != one.shape or facts[2] != 1 or facts[3] > bits:
        message = f"{one.file} holds {facts[0]} x {facts[1]} pixels of {facts[2]} times {facts[3]} bits"
        message += f" where {one.shape[0]} x {one.shape[1]} of {bits} bits are declared"
        raise CaseError("E_CORRUPT", message, hint="export it again")
    if b"\xff\xd9" not in stream[-16:]:
        raise CaseError("E_TRUNCATED", f"{one.file} has a picture without an end", hint="copy it again")


def _facts(stream: bytes) -> tuple[int, int, int, int] | None:
    """(columns, rows, components, bits) of a JPEG or JPEG 2000 stream by itself; None when it is neither."""
    start = stream.find(_J2K) if stream[4:8] == b"jP  " else 0
    if stream[start : start + 4] == _J2K:
        x1, y1, x0, y0 = (int.from_bytes(stream[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
        components, bits = stream[start + 40 : start + 42], stream[start + 42 : start + 43]
        return x1 - x0, y1 - y0, int.from_bytes(components, "big"), (int.from_bytes(bits, "big") & 0x7F) + 1
    return _jpeg_facts(stream) if stream[:2] == b"\xff\xd8" else None


def _jpeg_facts(stream: bytes) -> tuple[int, int, int, int] | None:
    """As `_facts`, when segments follow one another up to the only scan, and nothing but its data comes after.

    Over anything else GDCM may end the process, or take as long for each further scan.
    """
    facts, position = None, 2
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return None if _STRANGE.search(stream, position + 2 + length) else facts
        if marker in _SOF and facts is None:
            rows, columns = (int.from_bytes(stream[at : at + 2], "big") for at in (position + 5, position + 7))
            facts = columns, rows, stream[position + 9], stream[position + 4]
        elif marker not in _SEGMENTS or length < 2:
            return None
        position += 1 if marker == 0xFF else 2 + length
    return None


def _significant(stored: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Values of their lowest bits; what a decoder gives above is their sign, a wrong sign, or means nothing."""
    unused = stored.dtype.itemsize * 8 - bits
    return stored << unused >> unused if unused > 0 else stored


def _shown(
    stored: npt.NDArray[Any], header: Dataset, frame: int, file: Path
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Values in scanner units, and where they are padding.

    MONOCHROME1 is inverted within the range of the stored numbers, before they are rescaled: so all slices of a
    series are inverted alike, whatever values they hold.
    """
    padding = np.zeros(stored.shape, bool)
    if header.get("PixelPaddingValue") is not None:
        limit = header.get("PixelPaddingRangeLimit")
        values = [int(header.PixelPaddingValue), int(header.PixelPaddingValue if limit is None else limit)]
        low, high = sorted(np.array(values).astype(stored.dtype))  # writers take US for SS: 63536 is -2000
        padding = (stored >= low) & (stored <= high)
    slope, intercept = _rescale(header, frame, file)
    if str(header.PhotometricInterpretation) == "MONOCHROME1" and stored.dtype.kind in "iu":
        top = (1 << int(header.BitsStored)) - 1 if stored.dtype.kind == "u" else -1
        slope, intercept = -slope, intercept + slope * top
    return stored * np.float64(slope) + intercept, padding


def _rescale(header: Dataset, frame: int, file: Path) -> tuple[float, float]:
    """Slope and intercept of a frame: value = slope * stored + intercept."""
    places: list[Any] = [header]
    if frames := header.get("PerFrameFunctionalGroupsSequence"):
        places = [frames[frame], *(header.get("SharedFunctionalGroupsSequence") or []), header]
    slope, intercept = 1.0, 0.0
    for place in places:
        nested = place.get("PixelValueTransformationSequence")
        given = [(nested[0] if nested else place).get(name) for name in ("RescaleSlope", "RescaleIntercept")]
        if given != [None, None]:
            slope, intercept = (1.0 if given[0] is None else float(given[0])), float(given[1] or 0.0)
            break
    if not (0 < abs(slope) <= MAX_RESCALE and abs(intercept) <= MAX_RESCALE):  # NaN is not
        message = f"{file} has values of {slope:g} times what is stored, plus {intercept:g}"
        raise CaseError("E_HEADER", message, hint="export it again")
    return slope, intercept


def _count(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)
