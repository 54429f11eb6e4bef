"""Cases prepared in worker processes: a few ahead, in order, and none able to take the others down with it."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import Final

import SimpleITK as sitk
from threadpoolctl import threadpool_limits

from m3di.volumes.cases import Case
from m3di.volumes.prepare import Look, Prepared, prepare
from stores.chunks import LAYOUTS, Layout
from stores.errors import CaseError, ResourceError
from stores.recipe import Recipe

AHEAD: Final = 3  # cases in hand for each worker, so that a slow one does not leave the others idle

Outcome = Prepared | CaseError | None
Call = Callable[[], Prepared | None]


def prepare_all(
    cases: Iterable[Case],
    recipe: Recipe,
    known: Mapping[str, str],
    *,
    workers: int,
    layout: Layout = LAYOUTS["compact"],
    look: Look | None = None,
) -> Iterator[tuple[Case, Outcome]]:
    """Prepare cases in worker processes.

    A worker that dies, as a decoder of hostile bytes can make it, costs its own case only: those in hand are done
    again, each in a process of its own, and the one that dies there is refused.

    Args:
        cases: What to prepare.
        recipe: How.
        known: Item digests of what is up to date, by case id.
        layout: How chunks are compressed.
        look: What else is made of each volume where it is prepared, given as `Prepared.seen`.
        workers: Processes; 0 prepares in this one, unprotected.

    Yields:
        The outcomes, in the order of the cases: what was prepared, None when it is up to date, or why it is refused.

    Raises:
        ResourceError: E_MEMORY; E_WORKER, when no process can be started.
    """
    calls: Iterator[tuple[Case, Call]] = (
        (case, partial(prepare, case, recipe, known.get(case.id, ""), layout, look)) for case in cases
    )
    if not workers:
        for case, call in calls:
            yield case, _outcome(case, call)
        return
    in_hand: deque[tuple[Case, Call]] = deque()
    while True:
        with _executor(workers) as executor:
            try:
                yield from _while_whole(executor, calls, in_hand, most=(1 + AHEAD) * workers)
                return
            except BrokenProcessPool:
                pass
        while in_hand:
            case, call = in_hand.popleft()
            yield case, _alone(case, call)


def _while_whole(
    executor: ProcessPoolExecutor, calls: Iterator[tuple[Case, Call]], in_hand: deque[tuple[Case, Call]], *, most: int
) -> Iterator[tuple[Case, Outcome]]:
    """Give outcomes as long as no worker dies; `in_hand` then holds those that have none."""
    futures: deque[Future[Prepared | None]] = deque()
    while True:
        while len(in_hand) < most and (following := next(calls, None)) is not None:
            in_hand.append(following)
            futures.append(executor.submit(following[1]))
        if not in_hand:
            return
        case, _ = in_hand[0]
        outcome = _outcome(case, futures.popleft().result)
        in_hand.popleft()
        yield case, outcome


def _alone(case: Case, call: Call) -> Outcome:
    """Prepare a case in a process of its own."""
    with _executor(1) as executor:
        try:
            executor.submit(os.getpid).result()
        except BrokenProcessPool as error:
            message = "processes that read scans end before they have read anything"
            raise ResourceError("E_WORKER", message, hint="see what they say above, then run again") from error
        try:
            return _outcome(case, executor.submit(call).result)
        except BrokenProcessPool:
            message = f"{case.source} ends the process that reads it, also when it is read alone"
            return CaseError("E_WORKER", message, hint="convert it with another program, or leave it out")


def _outcome(case: Case, call: Call) -> Outcome:
    try:
        return call()
    except CaseError as error:
        return error
    except OSError as error:  # no right to read it, or a medium that fails
        message = f"{case.source} cannot be read: {error.strerror}"
        return CaseError("E_MISSING", message, hint="check its permissions and the disk, and run again")
    except MemoryError as error:
        raise ResourceError("E_MEMORY", f"out of memory at case {case.id}", hint="lower --workers") from error


@contextmanager
def _executor(count: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, spawned, so that no lock or open store is inherited."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin_worker) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker() -> None:
    """One core a worker, as they are as many as the cores; signals are the parent's to handle."""
    parent = parent_process()
    if parent is not None:  # a killed parent cannot say goodbye: leave when it is gone
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threadpool_limits(1)
