"""An approximate index (HNSW, by usearch) for stores too big for exact search at the pace of a conversation.

Exact search takes 0.38 s of CPU time a million rows, 0.17 from a copy in memory, and cores share it: at 20,000
volumes 2.4 and 1.1 s (`benchmarks/search.py`). The index answers in 1 to 3 ms, but misses some rows (3 to 6% of the
first ten, of 150 thousand synthetic rows; how many is measured when it is built and said beside each answer), and
takes the longer to build the bigger it is: 0.09 s of CPU time a thousand rows at 50 thousand, 0.18 at 150 thousand;
2 KB a row. What it finds is scored again from the checked rows.

It is kept beside the store, not in it, under the digest of the store's content: another content asks for another
index, and old ones may be deleted at any time.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from m3di.query.ranking import best
from m3di.query.scan import Part
from stores import Store, atomic
from stores.errors import DamagedError, RefusedError
from stores.index import Indices
from stores.recipe import digest_of

WORTH_IT: Final = 3_000_000  # rows, from which exact search takes more than half a second on two cores
_VERSION: Final = 2
_EFFORT: Final = 256  # candidates that a search keeps
_CARE: Final = 64  # and that an addition keeps: usearch's 128 doubles the time to build
_OVERSAMPLED: Final = 64  # rows looked up for each answer, since filters and one row a volume leave out most
_PROBES: Final = 32
_RECALL_AT: Final = 10
_STEP: Final = 50_000  # rows added at a time
_FIRST: Final = 1_000  # rows that one thread adds: several at once, in a graph nearly empty, miss each other for good


@dataclass(frozen=True, eq=False)
class ApproximateIndex:
    """An index that is open.

    Attributes:
        index: usearch's.
        recall: Share of the exact first ten that it found, over probes between the rows.
    """

    index: Any
    recall: float

    def candidates(self, vector: npt.NDArray[np.float32], top: int) -> Indices:
        """Rows that are likely near to a vector (e,), ascending; many more than `top`."""
        count = min(top * _OVERSAMPLED, len(self.index))
        self.index.expansion_search = max(_EFFORT, count)
        return np.sort(self.index.search(vector.astype(np.float32), count).keys.astype(np.int64))


def open_index(store: Store, fingerprint: str, part: Part, number: int) -> ApproximateIndex:
    """Open the index of one part of a row set; built first when there is none for what the store holds.

    Raises:
        RefusedError: E_CONFIG, without usearch; E_PATH, when it cannot be kept beside the store.
        DamagedError: E_CORRUPT, when it is not what was written.
    """
    usearch = _usearch()
    path = _path(store, fingerprint, number)
    facts = path.with_suffix(".json")
    if not facts.exists():
        try:
            _build(usearch, part, path, facts)
        except PermissionError as error:
            message = f"the index cannot be kept beside the store: {error}"
            raise RefusedError("E_PATH", message, hint="leave --approximate out, or copy the store") from error
    try:
        known = json.loads(facts.read_bytes())
        recall = float(known["recall"])
        if path.stat().st_size != known["bytes"]:  # usearch does not look before it reads
            raise ValueError(f"{path.stat().st_size} bytes in place of {known['bytes']}")
        index = _empty(usearch, part.dim)
        index.view(str(path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = f"{path} is not an index: {error}"
        raise DamagedError("E_CORRUPT", message, hint=f"delete {facts.name} beside the store") from error
    return ApproximateIndex(index, recall)


def measure_recall(index: Any, part: Part) -> float:
    """Share of the exact first ten that the index finds, for probes halfway between two rows each."""
    random = np.random.default_rng(0)
    shares = []
    for first, second in random.integers(0, len(part), (_PROBES, 2)):
        probe = part.rows(np.array([first, second])).astype(np.float32).sum(axis=0)
        probe /= np.linalg.norm(probe)
        top = min(_RECALL_AT, len(part))
        exact = best(part.scores(probe), partial(part.exact, vector=probe), top=top, margin=part.margin)
        truth = [row for row, _ in exact]
        shares.append(np.isin(truth, index.search(probe, top).keys).mean())
    return float(np.mean(shares))


def _build(usearch: Any, part: Part, path: Path, facts: Path) -> None:
    index = _empty(usearch, part.dim)
    for start in [0, *range(_FIRST, len(part), _STEP)]:
        numbers = np.arange(start, min(start + _STEP if start else _FIRST, len(part)))
        index.add(numbers, part.rows(numbers), threads=0 if start else 1)
    recall = measure_recall(index, part)
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".part")
    index.save(str(aside))
    aside.replace(path)
    atomic.write_bytes(facts, json.dumps({"recall": recall, "bytes": path.stat().st_size}).encode())


def _empty(usearch: Any, dim: int) -> Any:
    return usearch.Index(ndim=dim, metric="ip", dtype="f16", expansion_add=_CARE, expansion_search=_EFFORT)


def _path(store: Store, fingerprint: str, number: int) -> Path:
    """Where the index of what the store holds lies: its seal says the content's digest, if nothing came after."""
    seal = None if store.unfinished() else store.read_seal()
    digest = seal["digest"] if seal and seal["transaction"] == store.transaction else store.digest()
    name = digest_of({"version": _VERSION, "store": digest, "rows": fingerprint, "part": number})[:32]
    place = store.path.resolve()
    return place.with_name(f"{place.name}.search") / f"{name}.usearch"


def _usearch() -> Any:
    # Before usearch, whose wheel exports a C++ runtime of its own: loaded after it, SimpleITK reads its streams by
    # parts of that, and DICOM has spacings of 1e-310 mm, MetaImage no sizes (usearch 2.26.6, SimpleITK 2.5.7).
    import SimpleITK  # noqa: F401, PLC0415

    try:
        from usearch import index  # noqa: PLC0415
    except ImportError as error:
        hint = 'pip install "m3di[search]", or leave --approximate out: exact search needs nothing'
        raise RefusedError("E_CONFIG", "--approximate needs usearch", hint=hint) from error
    return index
