"""One DICOM file's tags, read by pydicom within limits, and nothing of them let out into logs, warnings or causes."""

import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset

from m3di.volumes.formats.header import require_file
from stores.errors import CaseError

MAX_FILE_BYTES: Final = (1 << 29) + (1 << 26)  # `MAX_VOXELS` of 16 bits and their header: pydicom holds it whole
MAX_INFLATED_BYTES: Final = 1 << 28  # of one deflated file
MAX_HEADER_BYTES: Final = 1 << 23  # read before the pixels: pydicom makes 250 bytes of 8,
MAX_ITEMS: Final = 1 << 18  # and 700 of an item of a sequence
_LOGGERS: Final = tuple(
    logging.getLogger(f"pydicom{part}") for part in ("", ".pixels.decoders.base", ".pixels.utils")
)
_SEARCH: Final = 8192  # pydicom reads so many bytes at once when it looks for a delimiter, up to the end
_SYNTAX: Final = b"\x02\x00\x10\x00UI\x16\x00"  # the element TransferSyntaxUID, 22 bytes long
_DEFLATED: Final = _SYNTAX + b"1.2.840.10008.1.2.1.99"
_INFLATED: Final = _SYNTAX + b"1.2.840.10008.1.2.1\0\0\0"


def read_header(path: Path, tags: Sequence[str], *, pixels: bool = False) -> Dataset:
    """Read a DICOM file's named tags.

    Args:
        path: The file.
        tags: Keywords; what else the file says is passed over.
        pixels: Read on to the pixels, of a file that has been read without them before.

    Raises:
        CaseError: E_NOT_DICOM, E_HEADER, E_TRUNCATED, E_CORRUPT, E_TOO_LARGE, E_EMPTY, E_MISSING or E_NOT_FILE.
    """
    size = require_file(path)
    if size > MAX_FILE_BYTES:
        raise CaseError("E_TOO_LARGE", f"{path} has {size} bytes", hint=f"at most {MAX_FILE_BYTES} are read")
    with path.open("rb") as file, quiet() as warned:
        if file.read(132)[128:] != b"DICM":
            raise CaseError("E_NOT_DICOM", f"{path} is not a DICOM file", hint="remove it from the folder")
        stream = _Stream(_inflated(file, path), bounded=not pixels)
        header, failure = None, ""
        try:
            header = pydicom.dcmread(stream, specific_tags=list(tags), stop_before_pixels=not pixels)  # type: ignore[arg-type]
        except Exception as error:  # a parser of hostile bytes: whatever it stumbles over, the file is at fault
            failure = type(error).__name__
    if stream.is_large:
        message = f"{path} has a header of over {MAX_HEADER_BYTES} bytes or {MAX_ITEMS} items"
        raise CaseError("E_TOO_LARGE", message, hint="export it again, as one volume without private tags")
    if stream.ended_early or any("End of file" in str(one.message) for one in warned):
        raise CaseError("E_TRUNCATED", f"{path} ends early", hint="copy it again")
    if header is None:
        raise CaseError("E_HEADER", f"{path} has a header that cannot be read ({failure})", hint="export it again")
    return header


@contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Keep what pydicom says of a file's values, which may name the patient, out of logs and warnings."""
    before = [logger.disabled for logger in _LOGGERS]
    for logger in _LOGGERS:
        logger.disabled = True  # setting a level would clear the caches of all loggers, each time
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            yield warned
        finally:
            for logger, was_disabled in zip(_LOGGERS, before, strict=True):
                logger.disabled = was_disabled


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Look at a file's values, quietly: pydicom converts them when they are asked for, and may fail then.

    Raises:
        CaseError: E_HEADER, without the cause, which may quote the file.
    """
    with quiet():
        try:
            yield
        except CaseError:
            raise
        except Exception as error:  # see `read_header`
            message = f"{path} has tags that cannot be read ({type(error).__name__})"
            raise CaseError("E_HEADER", message, hint="export it again") from None


class _Stream:
    """A file as pydicom reads it: notes when it ends early, and when a header is larger than any honest one."""

    def __init__(self, file: io.BufferedIOBase, *, bounded: bool) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._bytes_left = MAX_HEADER_BYTES if bounded else self._size * 2
        self._items_left = MAX_ITEMS
        self._bounded = bounded
        self.seek, self.tell = file.seek, file.tell
        self.ended_early = False
        file.seek(0)

    @property
    def is_large(self) -> bool:
        return self._bounded and min(self._bytes_left, self._items_left) < 0

    def read(self, count: int) -> bytes:
        left = self._size - self._file.tell()
        if count > left and (left != 0 or count > 8) and count != _SEARCH:
            self.ended_early = True
        data = self._file.read(max(0, min(count, left)))
        if self._bounded:
            self._bytes_left -= len(data)
            self._items_left -= data.count(b"\xfe\xff\x00\xe0") + data.count(b"\xff\xfe\xe0\x00")
            if self.is_large:
                raise OSError("header too large")
        return data


def _inflated(file: io.BufferedIOBase, path: Path) -> io.BufferedIOBase:
    """The file, or what it says when its data set is deflated: in bounds, which pydicom does not keep."""
    file.seek(0)
    head = file.read(1024)
    start = 144 + int.from_bytes(head[140:144], "little")  # the file meta group begins with its own length
    if _DEFLATED not in head[:start]:
        return file
    file.seek(start)
    inflate = zlib.decompressobj(wbits=-15)
    try:
        data = inflate.decompress(file.read(), MAX_INFLATED_BYTES)
    except zlib.error:
        raise CaseError("E_CORRUPT", f"{path} cannot be inflated", hint="copy it again") from None
    if len(data) == MAX_INFLATED_BYTES:
        message = f"{path} expands to over {MAX_INFLATED_BYTES} bytes"
        raise CaseError("E_TOO_LARGE", message, hint="save it with another transfer syntax")
    if not inflate.eof:
        raise CaseError("E_TRUNCATED", f"{path} ends within its deflated data set", hint="copy it again")
    return io.BytesIO(head[:start].replace(_DEFLATED, _INFLATED) + data)
