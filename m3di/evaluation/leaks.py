"""What could make scores too good: test subjects and test scans that a network has seen before.

Exact duplicates are told by digests of the scans' bytes; near ones by the cosine between volume embeddings, the mean
of the rows that the store has cached anyway (`embedding_of`). Measured with the embedded teacher at 48 voxels on 200
MSD hippocampus and 70 ACDC scans: two scans of different people lie at 0.946 or below (36,314 pairs; the one pair
above, at 1, has equal bytes under two names). Of 16 of them, copies lie

- with rescaled values at 1.000, in 8 bits at 0.995 or above, with gamma 0.9 at 0.992 or above;
- with noise of 2% of the standard deviation at 0.989 or above, of 5% at 0.919 or above (13 of 16 over 0.96);
- mirrored at 0.971 or above, without the outermost voxels in plane at 0.926 or above (12 of 16 over 0.96);
- resampled by a quarter at 0.83 to 0.94, blurred by half a voxel at 0.87 to 0.96: not told from other people's.

`NEAR_COSINE` lies between; another teacher needs its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from stores import Store
from stores.geometry import PLANES

Kind = Literal["duplicate", "near-duplicate", "subject"]

NEAR_COSINE: Final = 0.96
MAX_NAMED: Final = 3  # leaks that the line names
IMAGE: Final = 0  # part of a row
WORDS: Final[dict[Kind, str]] = {
    "duplicate": "has the same bytes as",
    "near-duplicate": "looks the same as",
    "subject": "is of the same subject as",
}


@dataclass(frozen=True, eq=False)
class Scan:
    """What is known of a scan; what is not is empty, and said to be unknown.

    Attributes:
        name: Its id.
        dataset: Where it comes from: equal subject names of different datasets are different people.
        subject: The person.
        digest: sha256 of its bytes.
        embedding: (e,) of unit length, all by the same teacher.
    """

    name: str
    dataset: str = ""
    subject: str = ""
    digest: str = ""
    embedding: npt.NDArray[np.floating[Any]] | None = None


# What scans are compared by, and whether it is known of one.
KNOWN: Final[dict[str, Callable[[Scan], bool]]] = {
    "subject": lambda scan: bool(scan.subject),
    "scan": lambda scan: bool(scan.digest),
    "near-duplicate": lambda scan: scan.embedding is not None,
}


@dataclass(frozen=True)
class Leak:
    """A test scan that is shared with another group.

    Attributes:
        test: The test scan.
        seen: The other scan.
        group: The group it is of, for example `training`.
        kind: The strongest thing that they share: the bytes, the looks, or the subject.
        cosine: Between their embeddings, for near-duplicates; else 1.
    """

    test: str
    seen: str
    group: str
    kind: Kind
    cosine: float = 1.0

    def __str__(self) -> str:
        near = f" (cosine {self.cosine:.3f})" if self.kind == "near-duplicate" else ""
        return f"test scan {self.test} {WORDS[self.kind]} {self.seen} of {self.group}{near}"


@dataclass(frozen=True)
class LeakReport:
    """What is shared, and what could not be looked at.

    Attributes:
        leaks: One for each test scan and scan of another group that share something.
        num_test: Test scans.
        num_seen: Scans of each other group.
        compared: What some scans of both sides could be compared by: subject, scan, near-duplicate.
        unknown: What could not be compared, in words.
    """

    leaks: tuple[Leak, ...]
    num_test: int
    num_seen: Mapping[str, int]
    compared: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def line(self) -> str:
        """One line, without which no score is shown."""
        among = ", ".join([f"{self.num_test} test", *(f"{n} {group}" for group, n in self.num_seen.items())])
        if self.leaks:
            shared = len({leak.test for leak in self.leaks})
            named = "; ".join(str(leak) for leak in self.leaks[:MAX_NAMED])
            more = f"; and {len(self.leaks) - MAX_NAMED} more" if len(self.leaks) > MAX_NAMED else ""
            text = f"{shared} of the test scans shared among {among} scans: {named}{more}"
        elif self.compared:
            *first, last = self.compared
            text = f"no {', '.join(first)}{' or ' if first else ''}{last} shared among {among} scans"
        else:
            text = f"nothing could be compared among {among} scans"
        return "; ".join([text, *(f"not known: {one}" for one in self.unknown)])


def find_leaks(
    test: Sequence[Scan], seen: Mapping[str, Sequence[Scan]], *, near_cosine: float = NEAR_COSINE
) -> LeakReport:
    """Compare the test scans with all others.

    Args:
        test: The scans that are scored.
        seen: Groups of scans by name, `training` and `pretraining`: what the network has learnt from.
        near_cosine: Embeddings this close or closer are near-duplicates; the module says where it comes from.
    """
    leaks = [leak for group, scans in seen.items() for leak in _shared(test, scans, group, near_cosine)]
    groups = {"test": test, **seen}
    return LeakReport(
        leaks=tuple(sorted(leaks, key=lambda leak: list(WORDS).index(leak.kind))),
        num_test=len(test),
        num_seen={group: len(scans) for group, scans in seen.items()},
        compared=tuple(kind for kind, is_known in KNOWN.items() if _comparable(test, seen, is_known)),
        unknown=tuple(_unknown(groups)),
    )


def scans_in(store: Store, names: Iterable[str] | None = None) -> list[Scan]:
    """Volumes of a store as scans, with embeddings where its current teacher has rows of them.

    Args:
        store: An open store.
        names: Ids; by default every volume.
    """
    current = store.current_or_none()
    wanted = None if names is None else set(names)
    return [
        Scan(
            record.volume,
            record.dataset,
            record.subject,
            record.source_digest,
            embedding_of(store, current["teacher"], record.volume) if current else None,
        )
        for record in store.records()
        if wanted is None or record.volume in wanted
    ]


def embedding_of(store: Store, teacher: str, volume: str) -> npt.NDArray[np.float64] | None:
    """(e,) mean of a volume's image rows, each plane counted alike, of unit length; None without rows."""
    if store.rows_record(teacher, volume) is None:
        return None
    return mean_embedding([store.plane_rows(teacher, volume, plane)[:, IMAGE] for plane in range(len(PLANES))])


def mean_embedding(planes: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """(e,) mean of the rows (s, e) of a volume's planes, each plane counted alike, of unit length."""
    mean = np.sum([rows.astype(np.float64).mean(axis=0) for rows in planes if len(rows)], axis=0)
    return mean / np.linalg.norm(mean)


def _shared(test: Sequence[Scan], scans: Sequence[Scan], group: str, near_cosine: float) -> list[Leak]:
    cosines = _cosines(test, scans)
    same_bytes = _equal([one.digest for one in test], [one.digest for one in scans])
    people = [[(one.dataset, one.subject) if one.subject else "" for one in side] for side in (test, scans)]
    same_person = _equal(*people)
    found = []
    for i, j in np.argwhere(same_bytes | same_person | (cosines >= near_cosine)):
        names = test[i].name, scans[j].name, group
        if same_bytes[i, j]:
            found.append(Leak(*names, "duplicate"))
        elif cosines[i, j] >= near_cosine:
            found.append(Leak(*names, "near-duplicate", float(cosines[i, j])))
        else:
            found.append(Leak(*names, "subject"))
    return found


def _equal(first: Sequence[object], second: Sequence[object]) -> npt.NDArray[np.bool_]:
    """(n, m) where two things are the same; what is empty is the same as nothing."""
    numbers = {thing: number for number, thing in enumerate(dict.fromkeys([*first, *second]))}
    left, right = (np.array([numbers[thing] for thing in side], np.int64) for side in (first, second))
    known = np.array([bool(thing) for thing in first], bool)
    return (left[:, None] == right) & known[:, None]


def _cosines(test: Sequence[Scan], scans: Sequence[Scan]) -> npt.NDArray[np.float64]:
    """(n, m) cosines; -1 where an embedding is not known."""
    cosines = np.full((len(test), len(scans)), -1.0)
    places = [[i for i, one in enumerate(side) if one.embedding is not None] for side in (test, scans)]
    if all(places):
        vectors = [
            np.array([side[i].embedding for i in known], np.float64)
            for side, known in zip((test, scans), places, strict=True)
        ]
        cosines[np.ix_(*places)] = vectors[0] @ vectors[1].T
    return cosines


def _comparable(test: Sequence[Scan], seen: Mapping[str, Sequence[Scan]], is_known: Callable[[Scan], bool]) -> bool:
    """Whether both sides have something to compare, or there is nobody to compare with."""
    others = [scan for scans in seen.values() for scan in scans]
    return not others or (any(map(is_known, test)) and any(map(is_known, others)))


def _unknown(groups: Mapping[str, Sequence[Scan]]) -> Iterable[str]:
    for kind, is_known in KNOWN.items():
        counts = {group: sum(not is_known(scan) for scan in scans) for group, scans in groups.items()}
        if any(counts.values()):
            yield f"{kind} of {', '.join(f'{n} {group}' for group, n in counts.items() if n)} scans"
