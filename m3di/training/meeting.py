"""Where the processes of a run meet: the key-value store that torchrun keeps for them.

torchrun keeps one store for as long as it lives, so after a restart it still holds what the processes before wrote
into it (torch 2.14): addresses of those that are gone among it, on which a process group waits in vain. So a key here
says something that stays true, or belongs to one round of processes alone.
"""

import os
import time
import uuid
from collections.abc import Iterable
from typing import Final

import torch.distributed as dist

from m3di.events import Check, go_on
from stores.errors import ResourceError

POLL_S: Final = 0.2


class Board:
    """Notices that every process of a run can read, in the same round or a later one.

    Raises:
        ResourceError: E_WORKER, by every method, when torchrun is gone.
    """

    def __init__(self, store: dist.Store) -> None:
        self._store = store

    @classmethod
    def of_run(cls) -> "Board":
        """The board of the run that torchrun started this process for."""
        return cls(_part("m3di", _store_of_run()))

    def post(self, key: str, notice: str) -> None:
        """Put up a notice, in the place of an older one."""
        try:
            self._store.set(key, notice)
        except RuntimeError as error:
            raise _lost(error) from error

    def read(self, key: str) -> str | None:
        """A notice; None when there is none."""
        try:
            return self._store.get(key).decode() if self._store.check([key]) else None
        except RuntimeError as error:
            raise _lost(error) from error

    def wait(self, keys: Iterable[str], check: Check = go_on) -> list[str]:
        """Wait until all of some notices are there, and read them; `check` is called meanwhile."""
        found = []
        for key in keys:
            while (notice := self.read(key)) is None:
                check()
                time.sleep(POLL_S)
            found.append(notice)
        return found


def store_of_round(rank: int, size: int) -> dist.Store:
    """A part of torchrun's store for this round of processes alone, as `init_process_group` takes it.

    Each process puts up a token of its own; the first answers every token that it sees with the name of its round,
    until all have said that they read it. A token of a process that is gone is answered in vain.
    """
    store = _store_of_run()
    board, token = Board(_part("m3di round", store)), uuid.uuid4().hex
    if rank:
        board.post(f"token {rank}", token)
        (name,) = board.wait([f"answer {token}"])
        board.post(f"{name} {rank}", "here")
    else:
        name, missing = token, set(range(1, size))
        while missing:
            for other in sorted(missing):
                if (seen := board.read(f"token {other}")) is not None:
                    board.post(f"answer {seen}", name)
            missing = {other for other in missing if board.read(f"{name} {other}") is None}
            time.sleep(POLL_S if missing else 0)
    return _part(name, store)


def _store_of_run() -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    return store


def _part(prefix: str, store: dist.Store) -> dist.Store:
    """The keys of a store that begin with a prefix, without it."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _lost(error: RuntimeError) -> ResourceError:
    message = f"process {os.environ.get('RANK')}: the other processes of the run cannot be reached ({error})"
    return ResourceError("E_WORKER", " ".join(message.split()), hint="run the command again")
