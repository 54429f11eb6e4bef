"""The error tree: grouped by what the caller would do, each error with a stable code (see cli.md).

Every message names the thing, the value and where; `hint` says what to do about it.
"""

from typing import ClassVar

# fmt: off
CASE_CODES = frozenset((
    "E_MISSING", "E_NOT_FILE", "E_EMPTY", "E_FORMAT", "E_NOT_NIFTI", "E_NOT_DICOM", "E_HEADER", "E_TRUNCATED",
    "E_CORRUPT", "E_DECODE", "E_TOO_LARGE", "E_DTYPE", "E_NDIM", "E_SPACING", "E_AFFINE", "E_GEOMETRY",
    "E_SERIES", "E_NO_PIXELS", "E_NO_SIGNAL", "E_LABEL_GEOMETRY", "E_LABEL_VALUES", "E_CAPTION", "E_WORKER",
))
REFUSAL_CODES = CASE_CODES | frozenset((
    "E_DUPLICATE_ID", "E_SPLIT", "E_PATH", "E_MANIFEST", "E_CONFIG", "E_WEIGHTS", "E_UNSAFE_WEIGHTS",
    "E_NETWORK", "E_STORE",
))
# fmt: on


class M3diError(Exception):
    """Base of every error that m3di raises on purpose.

    Args:
        code: Stable code, one of the class's `codes`.
        message: One line: the thing, the value, the place.
        hint: One line: what the user can do.
    """

    exit_code: ClassVar[int] = 1
    codes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        if code not in self.codes:
            raise ValueError(f"{type(self).__name__} has no code {code!r}")
        super().__init__(code, message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.message, self.hint)

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


def _rebuild(cls: type[M3diError], code: str, message: str, hint: str) -> M3diError:
    """Unpickle an error that crosses a process border (keyword-only arguments need the help)."""
    return cls(code, message, hint=hint)


class CaseError(M3diError):
    """One case cannot be used: it is quarantined and the others go on."""

    exit_code = 2
    codes = CASE_CODES


class RefusedError(M3diError):
    """Refused before anything was written: usage, configuration, manifest, unsafe path or weights."""

    exit_code = 2
    codes = REFUSAL_CODES


class DamagedError(M3diError):
    """The store, a run or weights are damaged or incompatible."""

    exit_code = 4
    codes = frozenset({"E_STORE", "E_VERSION", "E_WEIGHTS", "E_CORRUPT", "E_MISSING"})


class ResourceError(M3diError):
    """Out of a resource; what was committed is intact and a rerun continues."""

    exit_code = 5
    codes = frozenset({"E_DISK", "E_MEMORY", "E_WORKER", "E_NETWORK"})


class LockedError(M3diError):
    """Another process holds the store or the run."""

    exit_code = 6
    codes = frozenset({"E_LOCKED"})


class DivergedError(M3diError):
    """Training met a loss or gradient that is not finite, before the optimiser step."""

    exit_code = 7
    codes = frozenset({"E_DIVERGED"})
