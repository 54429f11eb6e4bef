"""numpy arrays: a .npy file with its geometry beside it, and the volumes of a MedMNIST .npz.

`scan.npy` needs `scan.json` with `"affine"`, 4 x 4, voxel index to RAS+ mm. MedMNIST's arrays carry no geometry; its
64^3 volumes are cut out at 1 mm (Yang et al. 2023, MedMNIST v2), and their orientation is taken as RAS.
"""

import ast
import io
import operator
import re
import struct
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from m3di.volumes.formats.header import MAX_BYTES, Header, checked_geometry, checked_shape, require_file
from m3di.volumes.manifests import read_json
from stores.errors import CaseError, RefusedError
from stores.geometry import Geometry

MAX_HEADER: Final = 1 << 14
_DTYPE: Final = re.compile(r"[<>|=]?(?:[iu][1248]|f[48]|b1)")
_BROKEN: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)  # what zipfile raises


def parse(path: Path) -> Header:
    """Read the header of a .npy file and its geometry from `<name>.json`.

    Raises:
        CaseError: E_FORMAT, E_HEADER, E_NDIM, E_DTYPE, E_AFFINE, E_SPACING or E_TOO_LARGE.
    """
    require_file(path)
    with path.open("rb") as file:
        shape, dtype, fortran, length = _read_header(file, path)
    checked_shape(shape, path)
    return Header(
        checked_geometry(shape, _sidecar_affine(path), path),
        dtype,
        path,
        offset=length,
        order="F" if fortran else "C",
    )


def sidecar(path: Path) -> Path:
    """The geometry file of a .npy scan."""
    return path.with_suffix(".json")


def _sidecar_affine(path: Path) -> npt.NDArray[np.float64]:
    file = sidecar(path)
    hint = f'write {file.name} with {{"affine": [[...], [...], [...], [0, 0, 0, 1]]}}, voxel index to RAS+ mm'
    if not file.is_file():
        raise CaseError("E_AFFINE", f"{path} has no geometry beside it", hint=hint)
    try:
        affine = np.array(read_json(file)["affine"], dtype=np.float64)
    except (RefusedError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise CaseError("E_AFFINE", f"{file} holds no 4 x 4 affine", hint=hint) from error
    if affine.shape != (4, 4) or not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise CaseError("E_AFFINE", f"{file} holds no 4 x 4 affine with 0 0 0 1 as its last row", hint=hint)
    return affine


def _read_header(file: IO[bytes] | io.BufferedIOBase, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Shape, type, Fortran order and length of a .npy header, which is never evaluated as code."""
    start = file.read(12)
    if start[:6] != b"\x93NUMPY" or len(start) < 12 or start[6] not in (1, 2, 3):
        raise CaseError("E_FORMAT", f"{path} is not a .npy file", hint="save it with numpy.save")
    wide = start[6] > 1
    length = struct.unpack_from("<I" if wide else "<H", start, 8)[0]
    begin = 12 if wide else 10
    if not 12 - begin <= length <= MAX_HEADER:
        raise CaseError("E_HEADER", f"{path} has a header of {length} bytes", hint="save it with numpy.save")
    text = (start[begin:] + file.read(length - (12 - begin))).decode("latin-1")
    try:
        fields = ast.literal_eval(text.strip())
        shape = tuple(operator.index(size) for size in fields["shape"])
        declared, fortran = fields["descr"], bool(fields["fortran_order"])
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise CaseError("E_HEADER", f"{path} has a header that cannot be read", hint="write it anew") from error
    if not isinstance(declared, str) or not _DTYPE.fullmatch(declared):
        hint = "save it with whole or real numbers, one value a voxel"
        raise CaseError("E_DTYPE", f"{path} has voxels that are no numbers", hint=hint)
    return shape, np.dtype(declared.replace("b", "u")), fortran, begin + length


def read_medmnist(path: Path, member: str) -> tuple[npt.NDArray[Any], Geometry]:
    """Read one volume of a MedMNIST 3D file.

    Args:
        path: The .npz.
        member: `<array>:<index>`, for example `train_images:12`.

    Raises:
        CaseError: E_MISSING, E_FORMAT, E_TRUNCATED, E_CORRUPT, E_NDIM, E_DTYPE or E_TOO_LARGE.
    """
    name, _, index = member.partition(":")
    require_file(path)
    stamp = path.stat()
    volumes = _member(path, name, (stamp.st_mtime_ns, stamp.st_size))
    if volumes.ndim != 4 or not index.isdecimal() or int(index) >= len(volumes):
        message = f"{path} has an array {name} of shape {volumes.shape}, without volume {index!r}"
        raise CaseError("E_NDIM", message, hint="give a 3D set of MedMNIST")
    data = np.array(volumes[int(index)], volumes.dtype.newbyteorder("="))  # a copy: the array is kept
    return data, checked_geometry(data.shape, np.eye(4), path)


def medmnist_arrays(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each array in a .npz, from the arrays' headers alone.

    Raises:
        CaseError: E_FORMAT, E_HEADER or E_DTYPE.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for entry in archive.infolist():
                _require_deflated(entry)
                with archive.open(entry) as file:
                    found[entry.filename.removesuffix(".npy")] = _read_header(file, path)[0]
            return found
    except _BROKEN as error:
        message = f"{path} is not a .npz file as numpy writes it"
        raise CaseError("E_FORMAT", message, hint="download it again") from error


@lru_cache(maxsize=1)
def _member(path: Path, name: str, _stamp: tuple[int, int]) -> npt.NDArray[Any]:
    """One array of a .npz; the last one is kept, as a compressed array can only be read whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{name}.npy")
            if entry.file_size > MAX_BYTES:
                hint = f"at most {MAX_BYTES} bytes are read"
                raise CaseError("E_TOO_LARGE", f"{path} declares {entry.file_size} bytes in {name}", hint=hint)
            _require_deflated(entry)
            with archive.open(entry) as file:
                shape, dtype, fortran, _ = _read_header(file, path)
                count = int(np.prod(shape, dtype=object))
                if count * dtype.itemsize > entry.file_size:
                    raise CaseError("E_TRUNCATED", f"{path} ends within {name}", hint="download it again")
                values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
                if file.read(1):  # the checksum counts at the end
                    raise ValueError("it holds more bytes than it declares")
        return values.reshape(shape, order="F" if fortran else "C")
    except KeyError as error:
        raise CaseError("E_FORMAT", f"{path} has no array {name}", hint="give a set of MedMNIST") from error
    except _BROKEN as error:
        message = f"{path} cannot be read to the end of {name}"
        raise CaseError("E_CORRUPT", message, hint="download it again") from error


def _require_deflated(entry: zipfile.ZipInfo) -> None:
    """Refuse an entry unlike those that numpy writes: zipfile sets no limit to how far bzip2 and LZMA expand."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed in another way than numpy does")
