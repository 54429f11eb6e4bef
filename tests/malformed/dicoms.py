"""DICOM scans that must be refused: how each is written, and the code that says why."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.dicoms import compress, patch, put_encoded, store_values, write_enhanced, write_report, write_series
from tests.phantoms import ras_affine

SHAPE = (40, 33, 5)
AFFINE = ras_affine((1.5, 1.25, 2.0), (10.0, -20.0, 30.0))
VALUES = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)
POSITION, ORIENTATION, SPACING, FRAMES = 0x00200032, 0x00200037, 0x00280030, 0x00280008
Write = Callable[[Path], Path]


def _series(change: Callable[[Dataset, int], object], only: int | None = None) -> Write:
    """A series in which `change` spoils the slice `only`, or every slice."""

    def write(folder: Path) -> Path:
        def one(header: Dataset, k: int) -> None:
            if only in (None, k):
                change(header, k)

        write_series(folder / "scan", VALUES, affine=AFFINE, change=one)
        return folder / "scan"

    return write


def _set(only: int | None = None, **tags: object) -> Write:
    def change(header: Dataset, k: int) -> None:
        for name, value in tags.items():
            setattr(header, name, value)

    return _series(change, only)


def _move(x: float = 0, y: float = 0, z: float = 0, *, only: int) -> Write:
    """One slice shifted by so many mm."""

    def change(header: Dataset, k: int) -> None:
        header.ImagePositionPatient = [a + b for a, b in zip(header.ImagePositionPatient, (x, y, z), strict=True)]

    return _series(change, only)


def _bytes(change: Callable[[bytes], bytes]) -> Write:
    """The bytes of one file changed."""

    def write(folder: Path) -> Path:
        path = write_series(folder / "scan", VALUES, affine=AFFINE)[2]
        path.write_bytes(change(path.read_bytes()))
        return path.parent

    return write


def _patched(tag: int, value: bytes) -> Write:
    def write(folder: Path) -> Path:
        path = write_series(folder / "scan", VALUES, affine=AFFINE)[2]
        return patch(path, tag, value).parent

    return write


def _without(*numbers: int) -> Write:
    def write(folder: Path) -> Path:
        for k, path in enumerate(write_series(folder / "scan", VALUES, affine=AFFINE)):
            if k in numbers:
                path.unlink()
        return folder / "scan"

    return write


def _encoded(syntax: UID, change: Callable[[bytes], bytes], *, bits: int = 16) -> Write:
    """A compressed series, the stream of one slice changed."""

    def write(folder: Path) -> Path:
        def narrow(header: Dataset, k: int) -> None:
            store_values(header, VALUES[:, :, k].T // 8 + 64, stored=bits, signed=False, allocated=bits)

        paths = write_series(folder / "scan", VALUES, affine=AFFINE, change=narrow if bits == 8 else lambda one, k: 0)
        for path in paths:
            compress(path, syntax)
        one = pydicom.dcmread(paths[2])
        stream = next(generate_frames(one.PixelData, number_of_frames=1))
        put_encoded(one, encapsulate([change(stream)]), syntax, paths[2])
        return paths[2].parent

    return write


def _overwritten(start: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda stream: stream[:start] + value + stream[start + len(value) :]


def _taller(stream: bytes) -> bytes:
    """A JPEG stream whose frame header says 60000 rows."""
    at = next(stream.index(sof) for sof in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7") if sof in stream)
    return _overwritten(at + 5, (60000).to_bytes(2, "big"))(stream)


def _cut_file(syntax: UID, count: int) -> Write:
    def write(folder: Path) -> Path:
        paths = write_series(folder / "scan", VALUES, affine=AFFINE)
        for path in paths:
            compress(path, syntax)
        paths[2].write_bytes(paths[2].read_bytes()[:-count])
        return folder / "scan"

    return write


def _deflated(change: Callable[[bytes], bytes]) -> Write:
    """One slice's deflated data set changed."""

    def write(folder: Path) -> Path:
        path = write_series(folder / "scan", VALUES, affine=AFFINE)[2]
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        one.save_as(path, enforce_file_format=True)
        content = path.read_bytes()
        start = 144 + int.from_bytes(content[140:144], "little")
        path.write_bytes(content[:start] + change(content[start:]))
        return path.parent

    return write


def _bomb(stream: bytes) -> bytes:
    """The same data set with 300 MB of zeros after it."""
    deflate = zlib.compressobj(1, wbits=-15)
    zeros = bytes(1 << 20)
    start = deflate.compress(zlib.decompress(stream, wbits=-15))
    return start + b"".join(deflate.compress(zeros) for _ in range(300)) + deflate.flush()


def _enhanced(change: Callable[[Dataset], object]) -> Write:
    def write(folder: Path) -> Path:
        return write_enhanced(folder / "scan.dcm", VALUES, affine=AFFINE, order=range(5), change=change)

    return write


def _without_groups(one: Dataset) -> None:
    del one.PerFrameFunctionalGroupsSequence


def _many_items(folder: Path) -> Path:
    """A sequence of half a million empty items, which would become half a gigabyte."""
    path = write_series(folder / "scan", VALUES, affine=AFFINE)[2]
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x02\x00US", 132)
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * (1 << 19)
    sequence = b"\x00\x52\x30\x92SQ\0\0" + len(items).to_bytes(4, "little") + items
    at = content.index(b"\xe0\x7f\x10\x00OW", at)
    path.write_bytes(content[:at] + sequence + content[at:])
    return path.parent


def _nested(folder: Path) -> Path:
    """Sequences within sequences, 3000 deep."""
    path = write_series(folder / "scan", VALUES, affine=AFFINE)[2]
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\x00OW", 132)
    level = b"\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(content[:at] + level * 3000 + content[at:])
    return path.parent


def _localizer(folder: Path) -> Path:
    def change(header: Dataset, k: int) -> None:
        if k == 4:
            header.ImageType, header.ImageOrientationPatient = (
                ["ORIGINAL", "PRIMARY", "LOCALIZER"],
                [0, 1, 0, 0, 0, -1],
            )

    write_series(folder / "scan", VALUES, affine=AFFINE, change=change)
    return folder / "scan"


def _echoes(folder: Path) -> Path:
    """Two echoes of every slice in one series."""
    first = write_series(folder / "scan", VALUES, affine=AFFINE, modality="MR")
    uid = pydicom.dcmread(first[0]).SeriesInstanceUID
    write_series(folder / "scan", VALUES // 2, affine=AFFINE, modality="MR", prefix="echo",
                 change=lambda one, k: setattr(one, "SeriesInstanceUID", uid))  # fmt: skip
    return folder / "scan"


def _two_series(folder: Path) -> Path:
    write_series(folder / "scan", VALUES, affine=AFFINE, series_number=3, prefix="a")
    write_series(folder / "scan", VALUES[:, :, :4], affine=AFFINE, series_number=7, modality="MR", prefix="b")
    return folder / "scan"


def _lone(folder: Path) -> Path:
    return write_series(folder / "scan", VALUES[:, :, :1], affine=AFFINE)[0].parent


def _only_reports(folder: Path) -> Path:
    return write_report(folder / "scan" / "report.dcm").parent


def _empty_folder(folder: Path) -> Path:
    (folder / "scan").mkdir(parents=True)
    return folder / "scan"


def _no_pixels(header: Dataset, k: int) -> None:
    del header.PixelData


def _smaller(header: Dataset, k: int) -> None:
    header.Rows, header.Columns = 6, 8
    header.PixelData = header.PixelData[:96]


def _tilted(header: Dataset, k: int) -> None:
    """A gantry tilt of 15 degrees: positions move along the table, planes are inclined."""
    cosine, sine = np.cos(np.radians(15)), np.sin(np.radians(15))
    header.ImageOrientationPatient = [1, 0, 0, 0, cosine, -sine]


def _colour(header: Dataset, k: int) -> None:
    header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
    store_values(header, np.zeros((*SHAPE[1::-1], 3)), stored=8, signed=False, allocated=8)


def _table(header: Dataset, k: int) -> None:
    header.ModalityLUTSequence = [Dataset()]


def _all_padding(header: Dataset, k: int) -> None:
    store_values(header, np.full(SHAPE[1::-1], -2000))
    header.PixelPaddingValue = -2000
    header["PixelPaddingValue"].VR = "SS"


def _video(folder: Path) -> Path:
    """A transfer syntax that no decoder takes."""
    path = write_series(folder / "scan", VALUES, affine=AFFINE)[2]
    return put_encoded(pydicom.dcmread(path), encapsulate([b"\0\0\1\xb3" * 50]), MPEG2MPML, path).parent


DICOMS: dict[str, tuple[Write, str]] = {
    "empty folder": (_empty_folder, "E_NOT_DICOM"),
    "text with the suffix of DICOM": (_bytes(lambda content: b"hello, I am text " * 50), "E_NOT_DICOM"),
    "empty file": (_bytes(lambda content: b""), "E_EMPTY"),
    "cut in the file meta group": (_bytes(lambda content: content[:150]), "E_TRUNCATED"),
    "cut in the header": (_bytes(lambda content: content[: content.index(b"\x28\x00\x10\x00") + 9]), "E_TRUNCATED"),
    "cut in the pixels": (_bytes(lambda content: content[:-100]), "E_TRUNCATED"),
    "cut in compressed pixels": (_cut_file(JPEGLSLossless, 60), "E_TRUNCATED"),
    "cut after compressed pixels": (_cut_file(JPEGLSLossless, 8), "E_TRUNCATED"),
    "half of the pixels": (_set(2, PixelData=bytes(SHAPE[0] * SHAPE[1])), "E_TRUNCATED"),
    "JPEG Lossless without an end": (_encoded(JPEGLosslessSV1, lambda stream: stream[:-80]), "E_TRUNCATED"),
    "JPEG 2000 of another size": (_encoded(JPEG2000Lossless, _overwritten(8, b"\0\0\xea\x60")), "E_CORRUPT"),
    "JPEG 2000 of 300 components": (_encoded(JPEG2000Lossless, _overwritten(40, b"\x01\x2c")), "E_CORRUPT"),
    "JPEG of another size": (_encoded(JPEGBaseline8Bit, _taller, bits=8), "E_CORRUPT"),
    "JPEG Lossless of another size": (_encoded(JPEGLosslessSV1, _taller), "E_CORRUPT"),
    "JPEG-LS of another size": (_encoded(JPEGLSLossless, _taller), "E_CORRUPT"),
    "JPEG Lossless without its tables": (
        _encoded(JPEGLosslessSV1, lambda stream: stream.replace(b"\xff\xc4", b"\xff\xfe")), "E_DECODE"),
    "JPEG Lossless with a strange segment": (
        _encoded(JPEGLosslessSV1, lambda stream: stream.replace(b"\xff\xc4", b"\xff\x01")), "E_DECODE"),
    "noise for JPEG 2000": (_encoded(JPEG2000Lossless, lambda stream: b"\x55" * len(stream)), "E_DECODE"),
    "broken JPEG 2000": (_encoded(JPEG2000Lossless, _overwritten(45, b"\x55" * 40)), "E_DECODE"),
    "broken RLE": (_encoded(RLELossless, lambda stream: stream[: len(stream) // 2]), "E_DECODE"),
    "RLE of a hundred times its pixels": (
        _encoded(RLELossless, lambda stream: stream + b"\x81\0" * 100_000), "E_CORRUPT"),
    "video": (_video, "E_DECODE"),
    "deflate bomb": (_deflated(_bomb), "E_TOO_LARGE"),
    "deflated and cut": (_deflated(lambda stream: stream[:-4]), "E_TRUNCATED"),
    "deflated and broken": (_deflated(lambda stream: b"\xff" * len(stream)), "E_CORRUPT"),
    "65535 rows and columns": (_set(Rows=65535, Columns=65535), "E_TOO_LARGE"),
    "20000 rows and columns": (_set(Rows=20000, Columns=20000), "E_TOO_LARGE"),
    "5000 rows and columns": (_set(Rows=5000, Columns=5000, PixelSpacing=[0.1, 0.1]), "E_TOO_LARGE"),
    "2^31 - 1 frames": (_set(2, NumberOfFrames=2**31 - 1), "E_GEOMETRY"),
    "10^9 frames, five of them described": (
        _enhanced(lambda one: setattr(one, "NumberOfFrames", 10**9)), "E_HEADER"),
    "frames without positions": (_enhanced(_without_groups), "E_GEOMETRY"),
    "half a million items": (_many_items, "E_TOO_LARGE"),
    "sequences 3000 deep": (_nested, "E_HEADER"),
    "text for a spacing": (_patched(SPACING, b"one\\two "), "E_HEADER"),
    "text for a position": (_patched(POSITION, b"Doe^Jane\\0\\0"), "E_HEADER"),
    "a position that is no number": (_patched(POSITION, b"nan\\0\\0 "), "E_GEOMETRY"),
    "an endless position": (_patched(POSITION, b"1e300\\0\\0 "), "E_GEOMETRY"),
    "a position of two numbers": (_patched(POSITION, b"0\\0 "), "E_GEOMETRY"),
    "no position": (_patched(POSITION, b""), "E_GEOMETRY"),
    "no orientation": (_patched(ORIENTATION, b"0\\0\\0\\0\\0\\0 "), "E_GEOMETRY"),
    "no spacing": (_patched(SPACING, b""), "E_GEOMETRY"),
    "a spacing of zero": (_set(PixelSpacing=[0.0, 1.5]), "E_SPACING"),
    "a negative spacing": (_set(PixelSpacing=[-1.25, 1.5]), "E_SPACING"),
    "a spacing of a micron": (_set(PixelSpacing=[0.001, 0.001]), "E_SPACING"),
    "a missing slice": (_without(2), "E_GEOMETRY"),
    "two slices with one position": (_move(z=-2.0, only=3), "E_GEOMETRY"),
    "two echoes in one series": (_echoes, "E_GEOMETRY"),
    "uneven slices": (_move(z=0.7, only=2), "E_GEOMETRY"),
    "a slice beside the others": (_move(x=3.0, only=2), "E_GEOMETRY"),
    "gantry tilt": (_series(_tilted), "E_GEOMETRY"),
    "a localizer in the series": (_localizer, "E_GEOMETRY"),
    "one slice": (_lone, "E_GEOMETRY"),
    "slices of two sizes": (_series(_smaller, 1), "E_GEOMETRY"),
    "slices of two spacings": (_set(1, PixelSpacing=[1.25, 1.6]), "E_GEOMETRY"),
    "two series": (_two_series, "E_SERIES"),
    "a report alone": (_only_reports, "E_NO_PIXELS"),
    "no pixels": (_series(_no_pixels, 2), "E_NO_PIXELS"),
    "colour": (_series(_colour), "E_DTYPE"),
    "a palette": (_set(2, PhotometricInterpretation="PALETTE COLOR"), "E_DTYPE"),
    "one bit a pixel": (_set(2, BitsAllocated=1, BitsStored=1, HighBit=0), "E_DTYPE"),
    "twelve bits packed": (_set(2, BitsAllocated=12, BitsStored=12, HighBit=11), "E_DTYPE"),
    "values in the highest bits": (_set(2, BitsStored=12, HighBit=15), "E_DTYPE"),
    "values through a table": (_series(_table, 2), "E_DTYPE"),
    "a slope of zero": (_set(2, RescaleSlope=0, RescaleIntercept=0), "E_HEADER"),
    "a slope that is no number": (_set(2, RescaleSlope=float("nan"), RescaleIntercept=0), "E_HEADER"),
    "one value everywhere": (_series(lambda one, k: store_values(one, np.zeros(SHAPE[1::-1]))), "E_NO_SIGNAL"),
    "nothing but padding": (_series(_all_padding), "E_NO_SIGNAL"),
}  # fmt: skip
