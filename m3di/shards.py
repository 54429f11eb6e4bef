"""A build in shards: whose each case is, where the shards lie, and how the one store is made of them.

All scans of a person are in one shard, by a digest of dataset and subject, so that no shard needs to know the others
or the order of the cases. The shards of a store `S` lie beside it in `S.shards/I-of-N`; each is a store of its own,
written by one process. What must be the same in all of them, the teacher, is that of `S`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3di.config import Config
from m3di.teachers.identity import teacher_request
from m3di.volumes.cases import Case
from stores import Store
from stores.errors import RefusedError
from stores.manifest import MARKER
from stores.merging import copy_facts
from stores.recipe import digest_of


@dataclass(frozen=True)
class Shard:
    """One of `count` shards; `number` counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read `I/N`.

        Raises:
            RefusedError: E_CONFIG, when it is not that.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, count = (int(part) for part in found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            message = f"--shard {text} is not I/N with I from 1 to N"
            raise RefusedError("E_CONFIG", message, hint="the first of four shards is 1/4, the last 4/4")
        return cls(number, count)

    def folder(self, store: Path) -> Path:
        """Where the shard of a store lies."""
        return folder_of_shards(store) / f"{self.number}-of-{self.count}"

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """Those of some cases that belong to the shard, in their order."""
        return [case for case in cases if self._owns(case)]

    def _owns(self, case: Case) -> bool:
        owner = digest_of({"dataset": case.dataset, "subject": case.subject})
        return int(owner[:16], 16) % self.count == self.number - 1


def shards_of(store: Path) -> list[Shard]:
    """The shards of a store that there are, in order.

    Raises:
        RefusedError: E_STORE, when they are of more than one division.
    """
    folder = folder_of_shards(store)
    names = [entry.name.partition("-of-") for entry in folder.iterdir()] if folder.is_dir() else []
    found = [Shard(int(number), int(count)) for number, _, count in names if number.isdecimal() and count.isdecimal()]
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        message = f"{folder} holds shards of {', '.join(map(str, counts))}"
        raise RefusedError("E_STORE", message, hint="keep one division, and remove the folders of the others")
    return sorted(found, key=lambda shard: shard.number)


def adopt_teacher(shard: Store, whole: Path, captioner: str, config: Config) -> str | None:
    """Copy the fitted teacher of the whole store into a shard; returns its fingerprint, None when there is none yet.

    Raises:
        RefusedError: E_CONFIG, when the whole store has another recipe.
    """
    if not (whole / MARKER).exists():
        return None
    request = teacher_request(config, captioner)
    with Store(whole) as source:
        source.require_recipe(shard.recipe)
        known = source.facts("request", request)
        if known is None:
            return None
        copy_facts(shard, source, "teacher", known["teacher"])
        copy_facts(shard, source, "request", request)
        return known["teacher"]


def folder_of_shards(store: Path) -> Path:
    """Where the shards of a store lie, if it has some."""
    return store.with_name(f"{store.name}.shards")
