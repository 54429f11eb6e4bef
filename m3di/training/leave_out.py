"""Who is kept out of pretraining: the people whom a downstream task will test.

Without this, pretraining and fine-tuning hold out the same people of a whole set that `split.ratios` divides. A task
that divides otherwise, by the set's own split, by folds, or one modality of a set alone, tests others.
"""

from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Final

from m3di.config import Config
from m3di.tasks.data import shares_of
from m3di.tasks.registry import load_task
from m3di.tasks.split import Owner, share_of
from m3di.training import checkpoint
from m3di.training.repeats import runs_of
from m3di.volumes.readers import content_digest
from stores import Store
from stores.errors import CaseError, RefusedError

Tested = tuple[set[Owner], set[str]]  # people, and digests of their scans
HINT: Final = "give TASK:DATA, such as chaos:datasets/chaos, or the folder of a fine-tuning run"


def people_left_out(store: Store, config: Config) -> frozenset[Owner]:
    """Everyone in a store whom `pretrain.leave_out` keeps out, as (dataset, subject).

    They are known by name, or by the bytes of a scan, which may have another name in the store.

    Args:
        store: An open store.
        config: All settings: `split` and `finetune.class_column` say how a task named as `TASK:DATA` is divided.

    Raises:
        RefusedError: E_CONFIG, when an entry names no task and no run, or nobody in the store; and as `load_task`,
            `shares_of` and `checkpoint.load`.
    """
    scans = [((record.dataset, record.subject), record.source_digest) for record in store.records()]
    refused = {row.case for row in store.quarantined()}
    left_out: set[Owner] = set()
    for entry in config.pretrain.leave_out:
        people, digests = _of_run(Path(entry)) if Path(entry).is_dir() else _of_task(entry, config, refused)
        digests |= {digest for owner, digest in scans if owner in people}
        found = {owner for owner, digest in scans if owner in people or digest in digests}
        if not found:
            message = f"pretrain.leave_out: nobody of the {len(people)} whom {entry} tests is in {store.path}"
            raise RefusedError("E_CONFIG", message, hint="check that store and task are of the same data")
        left_out |= found
    return frozenset(left_out)


def who_trains(
    owners: Sequence[Owner], config: Config, left_out: Set[Owner], *, seed: int | None = None, purpose: str
) -> list[bool]:
    """Whether each of some items is of a person who is trained on: in the training share, and not left out.

    Args:
        owners: (dataset, subject) of each item.
        config: All settings; `split` divides people.
        left_out: Who is kept out.
        seed: Of the split, in place of that of the settings.
        purpose: What nobody would be left for, in the words of the error.

    Raises:
        RefusedError: E_SPLIT, when nobody is left.
    """
    shares = share_of(owners, ratios=config.split.ratios, seed=config.split.seed if seed is None else seed)
    trains = [share == "train" and owner not in left_out for owner, share in zip(owners, shares, strict=True)]
    if not any(trains):
        message = f"pretrain.leave_out and split.ratios leave nobody to {purpose}"
        raise RefusedError("E_SPLIT", message, hint="add volumes to the store, or leave out fewer people")
    return trains


def _of_task(entry: str, config: Config, refused: Set[str]) -> Tested:
    """Whom a task tests by these settings, when the cases that the store refused are refused there too."""
    name, colon, data = entry.partition(":")
    if not colon:
        raise RefusedError("E_CONFIG", f"pretrain.leave_out: {entry!r} is no run and no TASK:DATA", hint=HINT)
    task = load_task(name, Path(data), class_column=config.finetune.class_column)
    cases = [case for case in task.cases if case.id not in refused]
    shares = shares_of([(case.dataset, case.subject) for case in cases], task, config.split)
    tested = [case for case, share in zip(cases, shares, strict=True) if share == "test"]
    digests = set()
    for case in tested:
        with suppress(CaseError):  # fine-tuning will refuse it, too
            digests.add(content_digest(case.image, case.member))
    return {(case.dataset, case.subject) for case in tested}, digests


def _of_run(run: Path) -> Tested:
    """Whom a fine-tuning run, or a folder of its repeats, tests."""
    people: set[Owner] = set()
    digests: set[str] = set()
    for one in runs_of(run):
        found = checkpoint.load(one, kind="finetune")
        if "tested_on" not in found.facts:
            message = f"pretrain.leave_out: {found.folder} does not say whom it tests: an earlier version made it"
            raise RefusedError("E_CONFIG", message, hint=HINT)
        digests |= set(found.facts["tested_on"].values())
        people |= {tuple(found.facts["people"][volume]) for volume in found.facts["tested_on"]}
    return people, digests
