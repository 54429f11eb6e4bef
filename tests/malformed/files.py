"""Files that must be refused, of every format but DICOM: how each is written, and the code that says why."""

import bz2
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.phantoms import head, ras_affine, write_scan

SHAPE, SPACING = (20, 24, 18), (1.5, 1.25, 2.0)
AFFINE = ras_affine(SPACING, (10.0, -20.0, 30.0))
IMAGE = head(SHAPE, spacing=SPACING)[0]
Write = Callable[[Path], Path]
Change = Callable[[bytes], bytes]


def scan_bytes(folder: Path, name: str) -> bytes:
    """A good scan of the format that a name says, as bytes."""
    return write_scan(folder / name, IMAGE, affine=AFFINE).read_bytes()


def mgh_bytes(*, version=1, dims=(*SHAPE, 1), number=3, good=1, spacing=SPACING, voxels=None) -> bytes:
    """A MGH file of float32 voxels, written field by field."""
    head_bytes = struct.pack(">7i", version, *dims, number, 0) + struct.pack(">h3f", good, *spacing)
    head_bytes += struct.pack(">9f", *np.eye(3).ravel()) + struct.pack(">3f", 0, 0, 0)
    return head_bytes.ljust(284, b"\0") + (
        IMAGE.ravel(order="F").astype(">f4").tobytes() if voxels is None else voxels
    )


def npy_bytes(header: str, voxels: bytes = b"") -> bytes:
    """A .npy file with a header as it is given."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + voxels


def _changed(name: str, change: Change) -> Write:
    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(change(scan_bytes(folder, name)))
        return path

    return write


def _file(name: str, content: bytes) -> Write:
    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _npy(content: bytes, sidecar: object = None) -> Write:
    """A .npy file with a good sidecar, or another."""

    def write(folder: Path) -> Path:
        path = _file("scan.npy", content)(folder)
        text = json.dumps({"affine": AFFINE.tolist()}) if sidecar is None else sidecar
        if text:
            path.with_suffix(".json").write_text(str(text))
        return path

    return write


def _patch(position: int, form: str, *values: object) -> Change:
    def change(content: bytes) -> bytes:
        patched = bytearray(content)
        struct.pack_into(form, patched, position, *values)
        return bytes(patched)

    return change


def _nifti(position: int, form: str, *values: object) -> Write:
    """A NIfTI-1 file with one field of its header changed."""
    return _changed("a.nii", _patch(position, form, *values))


def _affine(rows: list[float]) -> Write:
    """A NIfTI-1 file whose sform alone says where it lies."""
    return _changed("a.nii", lambda b: _patch(280, "<12f", *rows)(_patch(252, "<hh", 0, 1)(b)))


def _text(name: str, old: bytes, new: bytes) -> Write:
    """A scan whose text header says something else."""

    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return _changed(name, change)


def _flip(at: int) -> Change:
    return lambda b: b[:at] + bytes([b[at] ^ 1]) + b[at + 1 :] if at >= 0 else _flip(len(b) + at)(b)


def _pair_without_voxels(folder: Path) -> Path:
    content = bytearray(scan_bytes(folder, "a.nii")[:348])
    content[344:348] = b"ni1\0"
    struct.pack_into("<f", content, 108, 0)
    return _file("pair.hdr", bytes(content))(folder)


def _folder(folder: Path) -> Path:
    (folder / "a.nii").mkdir(parents=True)
    return folder / "a.nii"


def _nowhere(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "nowhere.nii.gz"


def _bomb(content: bytes) -> bytes:
    """The scan, followed by a gigabyte of zeros that compresses to nothing."""
    squeeze = zlib.compressobj(1, wbits=31)
    zeros = bytes(1 << 24)
    return squeeze.compress(content) + b"".join(squeeze.compress(zeros) for _ in range(64)) + squeeze.flush()


NRRD = (
    b"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
    b"space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
) + np.arange(64, dtype="<i2").tobytes()
MHA = (
    b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
    b"Offset = 0 0 0\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = LOCAL\n"
) + np.arange(64, dtype="<i2").tobytes()


def _nrrd(old: bytes, new: bytes, name: str = "a.nrrd") -> Write:
    assert old in NRRD
    return _file(name, NRRD.replace(old, new, 1))


def _mha(old: bytes, new: bytes, name: str = "a.mha") -> Write:
    assert old in MHA
    return _file(name, MHA.replace(old, new, 1))


VOXELS = np.arange(64, dtype="<i2").tobytes()
FILES: dict[str, tuple[Write, str]] = {
    "nothing there": (_nowhere, "E_MISSING"),
    "a folder": (_folder, "E_NOT_FILE"),
    "an unknown suffix": (_file("scan.xyz", b"hello"), "E_FORMAT"),
    # NIfTI
    "an empty nifti": (_file("a.nii", b""), "E_EMPTY"),
    "an empty gzip": (_file("a.nii.gz", b""), "E_EMPTY"),
    "a gzip of nothing": (_file("a.nii.gz", gzip.compress(b"")), "E_NOT_NIFTI"),
    "text": (_file("a.nii", b"hello, I am text " * 50), "E_NOT_NIFTI"),
    "another magic": (_nifti(344, "4s", b"xxx\0"), "E_NOT_NIFTI"),
    "cut in the header": (_changed("a.nii", lambda b: b[:100]), "E_TRUNCATED"),
    "cut at the header's end": (_changed("a.nii", lambda b: b[:346]), "E_TRUNCATED"),
    "one byte short": (_changed("a.nii", lambda b: b[:-1]), "E_TRUNCATED"),
    "half a scan": (_changed("a.nii", lambda b: b[: len(b) // 2]), "E_TRUNCATED"),
    "a gzip without its last byte": (_changed("a.nii.gz", lambda b: b[:-1]), "E_TRUNCATED"),
    "half a gzip": (_changed("a.nii.gz", lambda b: b[: len(b) // 2]), "E_TRUNCATED"),
    "a gzip of half a scan": (
        _changed("a.nii.gz", lambda b: gzip.compress(gzip.decompress(b)[:-500])), "E_TRUNCATED"),
    "a wrong checksum": (_changed("a.nii.gz", _flip(-6)), "E_CORRUPT"),
    "a flipped bit in a gzip": (_changed("a.nii.gz", _flip(2000)), "E_CORRUPT"),
    "a gzip bomb": (_changed("a.nii.gz", lambda b: _bomb(gzip.decompress(b))), "E_TOO_LARGE"),
    "four megabytes after the voxels": (_changed("a.nii", lambda b: b + bytes(1 << 22)), "E_TOO_LARGE"),
    "one-hot": (_nifti(40, "<8h", 4, 20, 24, 9, 2, 1, 1, 1), "E_NDIM"),
    "a picture": (_nifti(40, "<8h", 2, 20, 24, 1, 1, 1, 1, 1), "E_NDIM"),
    "a negative size": (_nifti(40, "<8h", 3, 20, -24, 18, 1, 1, 1, 1), "E_HEADER"),
    "a size of zero": (_nifti(40, "<8h", 3, 20, 24, 0, 1, 1, 1, 1), "E_HEADER"),
    "nine dimensions": (_nifti(40, "<8h", 9, 20, 24, 18, 1, 1, 1, 1), "E_HEADER"),
    "no dimension": (_nifti(40, "<8h", 0, 20, 24, 18, 1, 1, 1, 1), "E_HEADER"),
    "sizes whose product overflows": (_nifti(40, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1), "E_TOO_LARGE"),
    "more voxels than bytes": (_nifti(40, "<8h", 3, 200, 240, 180, 1, 1, 1, 1), "E_TRUNCATED"),
    "colour voxels": (_nifti(70, "<h", 128), "E_DTYPE"),
    "complex voxels": (_nifti(70, "<h", 32), "E_DTYPE"),
    "voxels of no known type": (_nifti(70, "<h", 7), "E_DTYPE"),
    "a spacing of zero": (_nifti(80, "<f", 0.0), "E_SPACING"),
    "a spacing that is no number": (_nifti(80, "<f", float("nan")), "E_SPACING"),
    "a spacing of half a metre": (_nifti(84, "<f", 500.0), "E_SPACING"),
    "micron where mm are meant": (_nifti(123, "<B", 3), "E_SPACING"),
    "an unknown unit": (_nifti(123, "<B", 5), "E_HEADER"),
    "a negative offset": (_nifti(108, "<f", -4.0), "E_HEADER"),
    "an offset into the header": (_nifti(108, "<f", 40.0), "E_HEADER"),
    "an offset past every file": (_nifti(108, "<f", 1e30), "E_HEADER"),
    "a slope that makes one value": (_nifti(112, "<2f", 1e-45, 5.0), "E_NO_SIGNAL"),
    "no orientation": (_nifti(252, "<hh", 0, 0), "E_AFFINE"),
    "a quaternion that is none": (
        _changed("a.nii", lambda b: _patch(256, "<3f", 2, 2, 2)(_patch(252, "<hh", 1, 0)(b))), "E_AFFINE"),
    "a sheared affine": (_affine([1.5, 0.9, 0, 0, 0, 1.25, 0, 0, 0, 0, 2, 0]), "E_AFFINE"),
    "a singular affine": (_affine([1.5, 1.5, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]), "E_AFFINE"),
    "an affine with NaN": (_affine([float("nan"), 0, 0, 0, 0, 1.25, 0, 0, 0, 0, 2, 0]), "E_AFFINE"),
    "an affine of zeros": (_affine([0.0] * 12), "E_SPACING"),
    "an affine without end": (_affine([float("inf"), 0, 0, 0, 0, 1.25, 0, 0, 0, 0, 2, 0]), "E_AFFINE"),
    "a slope without an intercept": (_nifti(112, "<2f", 2.0, float("nan")), "E_HEADER"),
    "a pair without its voxels": (_pair_without_voxels, "E_MISSING"),
    "one value in every voxel": (_changed("a.nii", lambda b: b[:352] + bytes(len(b) - 352)), "E_NO_SIGNAL"),
    "NaN in every voxel": (
        _changed("a.nii", lambda b: b[:352] + np.full((len(b) - 352) // 4, np.nan, "<f4").tobytes()), "E_NO_SIGNAL"),
    # NRRD
    "an empty nrrd": (_file("a.nrrd", b""), "E_EMPTY"),
    "a nrrd of text": (_file("a.nrrd", b"no nrrd at all\n" * 20), "E_FORMAT"),
    "a nrrd without sizes": (_nrrd(b"sizes: 4 4 4\n", b""), "E_HEADER"),
    "a nrrd of four sizes and three dimensions": (_nrrd(b"sizes: 4 4 4", b"sizes: 4 4 4 1"), "E_HEADER"),
    "a nrrd with a size that is no number": (_nrrd(b"sizes: 4 4 4", b"sizes: 4 4 x"), "E_HEADER"),
    "a nrrd with a field twice": (_nrrd(b"type: short\n", b"type: short\ntype: float\n"), "E_HEADER"),
    "a nrrd as text": (_nrrd(b"encoding: raw", b"encoding: ascii"), "E_DECODE"),
    "a nrrd without byte order": (_nrrd(b"endian: little\n", b""), "E_HEADER"),
    "a nrrd without a space": (_nrrd(b"space: left-posterior-superior\n", b""), "E_AFFINE"),
    "a nrrd without directions": (_nrrd(b"space directions: (1,0,0) (0,1,0) (0,0,1)\n", b""), "E_NDIM"),
    "a sheared nrrd": (_nrrd(b"(0,1,0)", b"(0.5,1,0)"), "E_AFFINE"),
    "a nrrd of blocks": (_nrrd(b"type: short", b"type: block"), "E_DTYPE"),
    "a nrrd that skips": (_nrrd(b"encoding: raw", b"encoding: raw\nbyte skip: 12"), "E_HEADER"),
    "a nrrd whose voxels end its file": (_nrrd(b"encoding: raw", b"encoding: raw\nbyte skip: -1"), "E_HEADER"),
    "a nrrd of colours": (
        _file("a.nrrd", NRRD.replace(b"dimension: 3", b"dimension: 4").replace(b"4 4 4", b"4 4 4 1")
              .replace(b"directions:", b"directions: none")), "E_NDIM"),
    "a nrrd with a direction without end": (_nrrd(b"(1,0,0)", b"(inf,0,0)"), "E_AFFINE"),
    "a nrrd with a direction past every number": (_nrrd(b"(1,0,0)", b"(1e200,0,0)"), "E_SPACING"),
    "a nrrd in a gzip": (_file("a.nrrd", gzip.compress(NRRD)), "E_FORMAT"),
    "a nrrd that names a file no disk can hold": (
        _nrrd(b"encoding: raw", b"encoding: raw\ndata file: " + b"x" * 300, "a.nhdr"), "E_HEADER"),
    "a nrrd that is cut": (_file("a.nrrd", NRRD[:-10]), "E_TRUNCATED"),
    "a nrrd that names a file elsewhere": (_nrrd(b"encoding: raw", b"encoding: raw\ndata file: ../b.raw", "a.nhdr"),
                                           "E_HEADER"),
    "a nrrd that names a list": (_nrrd(b"encoding: raw", b"encoding: raw\ndata file: LIST", "a.nhdr"), "E_HEADER"),
    "a bzip2 bomb in a nrrd": (
        _file("a.nrrd", NRRD.replace(b"raw", b"bzip2")[: -len(VOXELS)] + bz2.compress(VOXELS + bytes(1 << 26))),
        "E_TOO_LARGE"),
    # MetaImage
    "an empty mha": (_file("a.mha", b""), "E_EMPTY"),
    "a mha of text": (_file("a.mha", b"no meta image\n" * 20), "E_FORMAT"),
    "a mha without orientation": (_mha(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""), "E_AFFINE"),
    "a mha of two dimensions": (_mha(b"DimSize = 4 4 4", b"DimSize = 4 16"), "E_NDIM"),
    "a mha with sizes that are no numbers": (_mha(b"DimSize = 4 4 4", b"DimSize = 4 4 nan"), "E_HEADER"),
    "a mha of channels": (_mha(b"NDims = 3\n", b"NDims = 3\nElementNumberOfChannels = 3\n"), "E_NDIM"),
    "a mha of text voxels": (_mha(b"NDims = 3\n", b"NDims = 3\nBinaryData = False\n"), "E_DECODE"),
    "a mha of no known type": (_mha(b"MET_SHORT", b"MET_STRANGE"), "E_DTYPE"),
    "a mha with a short matrix": (_mha(b"1 0 0 0 1 0 0 0 1", b"1 0 0 1"), "E_HEADER"),
    "a mha that is cut": (_file("a.mha", MHA[:-1]), "E_TRUNCATED"),
    "a mha with a negative spacing": (_mha(b"Spacing = 1 1 1", b"Spacing = 1 -1 1"), "E_SPACING"),
    "a mha in a gzip": (_file("a.mha", gzip.compress(MHA)), "E_FORMAT"),
    "a mha without an end of its header": (_file("a.mha", MHA[:60]), "E_HEADER"),
    "a mhd without its voxels": (_mha(b"LOCAL", b"a.raw", "a.mhd"), "E_MISSING"),
    "a mhd that names a file elsewhere": (_mha(b"LOCAL", b"/etc/passwd", "a.mhd"), "E_HEADER"),
    "a mhd that names a pattern": (_mha(b"LOCAL", b"a%d.raw 1 4 1", "a.mhd"), "E_HEADER"),
    # MGH
    "an empty mgz": (_file("a.mgz", gzip.compress(b"")), "E_TRUNCATED"),
    "a mgh of another version": (_file("a.mgh", mgh_bytes(version=2)), "E_FORMAT"),
    "a mgh of frames": (_file("a.mgh", mgh_bytes(dims=(*SHAPE, 2))), "E_NDIM"),
    "a mgh of no known type": (_file("a.mgh", mgh_bytes(number=9)), "E_DTYPE"),
    "a mgh without orientation": (_file("a.mgh", mgh_bytes(good=0)), "E_AFFINE"),
    "a mgh with a negative size": (_file("a.mgh", mgh_bytes(dims=(-1, 24, 18, 1))), "E_HEADER"),
    "a mgh with a huge spacing": (_file("a.mgh", mgh_bytes(spacing=(1e9, 1, 1))), "E_SPACING"),
    "a mgh with a spacing without end": (_file("a.mgh", mgh_bytes(spacing=(float("inf"), 1, 1))), "E_SPACING"),
    "a mgh that is cut": (_file("a.mgh", mgh_bytes()[:-1]), "E_TRUNCATED"),
    "a mgz with a wrong checksum": (_file("a.mgz", _flip(-5)(gzip.compress(mgh_bytes()))), "E_CORRUPT"),
    # npy
    "a npy of text": (_npy(b"hello, not a numpy file at all"), "E_FORMAT"),
    "a npy with a header of no bytes": (_npy(b"\x93NUMPY\x01\x00\x00\x00" + VOXELS), "E_HEADER"),
    "a npy of objects": (_npy(npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (4, 4, 4)}", VOXELS)),
                         "E_DTYPE"),
    "a npy with code in its header": (_npy(npy_bytes("__import__('os').abort()", VOXELS)), "E_HEADER"),
    "a npy without a header": (_npy(b"\x93NUMPY\x01\x00\x00\x00" + VOXELS), "E_HEADER"),
    "a npy of a size without end": (
        _npy(npy_bytes("{'descr': '<i2', 'fortran_order': False, 'shape': (1e999, 4, 4)}", VOXELS)), "E_HEADER"),
    "a npy of two dimensions": (_npy(npy_bytes("{'descr': '<i2', 'fortran_order': False, 'shape': (4, 16)}", VOXELS)),
                                "E_NDIM"),
    "a npy that is cut": (_npy(npy_bytes("{'descr': '<i2', 'fortran_order': False, 'shape': (4, 4, 5)}", VOXELS)),
                          "E_TRUNCATED"),
    "a npy without geometry": (_npy(npy_bytes("{'descr': '<i2', 'fortran_order': False, 'shape': (4, 4, 4)}", VOXELS),
                                    sidecar=""), "E_AFFINE"),
    "a npy with half an affine": (
        _npy(npy_bytes("{'descr': '<i2', 'fortran_order': False, 'shape': (4, 4, 4)}", VOXELS),
             sidecar='{"affine": [[1, 0, 0, 0]]}'), "E_AFFINE"),
}  # fmt: skip
