"""A build by several processes that torchrun started: each fills its shards, the first makes one store of them.

A process says on the run's board which shard has its captions, and which its rows; the first merges and fits the
teacher when all have captions, and merges the rows when all are there. Each stage commits item by item, so when
torchrun restarts the processes because one of them died, they go on; with another number of processes too, as the
shards stay as many as they were.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from m3di.build import BuildSummary, build_store, open_store, report_duplicates, require_volumes
from m3di.captions.identity import captioner_fingerprint
from m3di.captions.registry import captioner_of
from m3di.config import Config
from m3di.events import Check, Report
from m3di.shards import Shard, adopt_teacher, shards_of
from m3di.signals import stop_on_signals
from m3di.teachers.stage import embed_volumes, ensure_teacher
from m3di.training.distributed import World, this_process
from m3di.training.meeting import Board
from m3di.training.runtime import pick_device
from stores import Store
from stores.merging import merge_all

COUNTS: Final = ("cases", "built", "up_to_date", "withdrawn", "quarantined", "described", "embedded")


def build_on_ranks(
    sources: Sequence[Path],
    path: Path,
    config: Config,
    *,
    layout: str = "auto",
    limit: int | None = None,
    workers: int | None = None,
    strict: bool = False,
    device: str = "auto",
    report: Report,
) -> BuildSummary | None:
    """Build a store with the other processes of this run; arguments as of `build_store`.

    Returns:
        The first process's summary of the whole store; None for the others, which report troubles only.

    Raises:
        RefusedError, LockedError, DamagedError, ResourceError, Interrupted: As `build_store`; also E_WORKER, when
            torchrun is gone.
    """
    world, board = this_process(), Board.of_run()
    told = report if world.is_first else _troubles(report)
    place = str(pick_device(device, local_rank=world.local_rank))
    own_workers = workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"]))
    with stop_on_signals() as stop:
        count = _count(path, board, world, stop.raise_if_set)
        mine = [Shard(number, count) for number in range(1 + world.rank, count + 1, world.size)]
        for shard in mine:
            if board.read(_captioned(shard.number)) is None:
                summary = build_store(
                    sources, path, config, layout=layout, limit=limit, workers=own_workers, strict=strict,
                    device=place, shard=shard, report=told,
                )  # fmt: skip
                board.post(_captioned(shard.number), json.dumps({name: getattr(summary, name) for name in COUNTS}))
        everyone = range(1, count + 1)
        if world.is_first:
            board.wait(map(_captioned, everyone), stop.raise_if_set)
            board.post("teacher", _fit(path, config, device=place, report=report))
        (teacher,) = board.wait(["teacher"], stop.raise_if_set)
        for shard in mine:
            if board.read(_embedded(shard.number)) is None:
                board.post(_embedded(shard.number), str(_embed(path, shard, config, place, told)))
        if not world.is_first:
            return None
        embedded = sum(map(int, board.wait(map(_embedded, everyone), stop.raise_if_set)))
        counts = [json.loads(notice) for notice in board.wait(map(_captioned, everyone))]
    others, digest = _finish(path, config, teacher, device=place, report=report)
    totals = {name: sum(one[name] for one in counts) for name in COUNTS}
    totals["embedded"] += embedded + others
    return BuildSummary(store=path, teacher=teacher, digest=digest, **totals)


def _count(path: Path, board: Board, world: World, check: Check) -> int:
    """How many shards: as many as there are, else one a process, as the first says."""
    if world.is_first and board.read("shards") is None:
        known = shards_of(path)
        board.post("shards", str(known[0].count if known else world.size))
    return int(board.wait(["shards"], check)[0])


def _captioned(shard: int) -> str:
    return f"captions {shard}"


def _embedded(shard: int) -> str:
    return f"rows {shard}"


def _troubles(report: Report) -> Report:
    """Report what somebody should know, and leave the rest to the first process."""

    def told(event: str, /, **facts: object) -> None:
        if event in ("quarantined", "warning"):
            report(event, **facts)

    return told


def _embed(path: Path, shard: Shard, config: Config, device: str, report: Report) -> int:
    """Embed a shard by the teacher of the whole store; returns how many volumes."""
    with open_store(shard.folder(path), config) as store, stop_on_signals() as stop:
        captions = captioner_fingerprint(captioner_of(config, store), config)
        teacher = adopt_teacher(store, path, captions, config)
        assert teacher is not None
        return embed_volumes(store, teacher, captions, device=device, report=report, check=stop.raise_if_set)


@contextmanager
def _merged(path: Path, config: Config, report: Report) -> Iterator[tuple[Store, str, Check]]:
    """The whole store, up to date with its shards, its captions' fingerprint, and what to call between steps."""
    folders = [shard.folder(path) for shard in shards_of(path)]
    with open_store(path, config) as store, stop_on_signals() as stop:
        merge_all(store, folders, replace=True, report=report, check=stop.raise_if_set)
        require_volumes(store)
        yield store, captioner_fingerprint(captioner_of(config, store), config), stop.raise_if_set


def _fit(path: Path, config: Config, *, device: str, report: Report) -> str:
    """Merge volumes and captions, and fit the teacher to them; returns its fingerprint."""
    with _merged(path, config, report) as (store, captions, check):
        return ensure_teacher(store, captions, config, device=device, report=report, check=check)


def _finish(path: Path, config: Config, teacher: str, *, device: str, report: Report) -> tuple[int, str]:
    """Merge the rows, and embed what is in no shard; returns how many volumes that was, and the store's digest."""
    with _merged(path, config, report) as (store, captions, check):
        report_duplicates(store, report)
        embedded = embed_volumes(store, teacher, captions, device=device, report=report, check=check)
        return embedded, store.digest()
