"""`remove`: take a person's scans out of a store, as when consent is withdrawn, so that no file keeps a trace.

What comes back on a rerun is a matter of identity. Names must not be kept, and a hash of a name is no secret: whoever
guesses the name can hash it. So a store remembers the content digests of the scan files, which nobody can turn back
and which tell only those something who hold the files: a build leaves these very files out. It cannot know another
export of the same scan, nor one that was refused, as no digest is kept of those: take them out of the sources.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from stores.collection import size_of
from stores.errors import RefusedError
from stores.store import Store


@dataclass(frozen=True)
class Withdrawn:
    """What was taken out, or would be.

    Attributes:
        volumes: Ids of volumes and refused cases.
        chunks: Files of voxels.
        captions: Sets of captions, one a volume and captioner.
        row_sets: Sets of embeddings, one a volume and teacher.
        replies: Answers of captioning servers, all of the store's, as they do not say which volume they are about.
        teachers: Heads of the fingerprints of teachers fitted to one of them, whose weights keep what they learnt.
        num_bytes: Size of the store before and after.
    """

    volumes: tuple[str, ...]
    chunks: int
    captions: int
    row_sets: int
    replies: int
    teachers: tuple[str, ...]
    num_bytes: tuple[int, int]


def withdraw(store: Store, volumes: Sequence[str], *, dry_run: bool = False) -> Withdrawn:
    """Take volumes and refused cases out of a store; a kill in between leaves a sound store, and a rerun the rest.

    Args:
        store: Open for writing, or for reading with `dry_run`.
        volumes: Their ids, as of `choose`.
        dry_run: Only say what would go.
    """
    before = size_of(store)
    records = [record for record in map(store.find, volumes) if record is not None]
    teachers = {teacher: store.facts("teacher", teacher) or {} for teacher in store.teachers()}
    fitted = [teacher for teacher, facts in teachers.items() if set(volumes) & set(facts.get("fitted_on", ()))]
    chunks = sum(len(record.objects) for record in records)
    captions = sum(len(store.captioners(volume)) for volume in volumes)
    row_sets = sum(len(store.row_sets(volume)) for volume in volumes)
    replies = len(store.replies())
    if not dry_run:
        store.withdraw(volumes)
    return Withdrawn(
        tuple(volumes), chunks, captions, row_sets, replies, tuple(sorted(fitted)), (before, size_of(store))
    )


def choose(store: Store, *, volumes: Iterable[str] = (), subjects: Iterable[str] = ()) -> list[str]:
    """Ids of some volumes or refused cases, and of all volumes of some people; sorted.

    Args:
        store: The store.
        volumes: Ids.
        subjects: People: `SUBJECT`, or `DATASET/SUBJECT` where two sets have one of that name.

    Raises:
        RefusedError: E_MISSING, when the store knows no such volume or person; E_CONFIG, when two sets have one.
    """
    records = store.all_records()
    known = {record.volume for record in records} | {row.case for row in store.quarantined()}
    chosen = set()
    for volume in volumes:
        if volume not in known:
            raise _unknown("volume", volume, known)
        chosen.add(volume)
    for subject in subjects:
        members = [r for r in records if subject in (r.subject, f"{r.dataset}/{r.subject}")]
        if not members:
            raise _unknown("subject", subject, {record.subject for record in records})
        owners = sorted({f"{record.dataset}/{record.subject}" for record in members})
        if len(owners) > 1:
            message = f"subject {subject!r} is of {len(owners)} sets: {', '.join(owners)}"
            raise RefusedError("E_CONFIG", message, hint="name the one that is meant with its set")
        chosen.update(record.volume for record in members)
    return sorted(chosen)


def _unknown(what: str, name: str, known: Iterable[str]) -> RefusedError:
    near = get_close_matches(name, list(known), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "`m3di info --json` lists the volumes"
    return RefusedError("E_MISSING", f"the store has no {what} {name!r}", hint=hint)
