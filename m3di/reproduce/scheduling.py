"""Makes cells: each a few m3di command lines in processes of their own, some at a time, with a clean stop."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Final

from m3di.events import Report
from m3di.reproduce import pictures
from m3di.reproduce.cells import Cell, Command, digest_facts
from m3di.reproduce.outcomes import cost_of, outcome_of
from m3di.reproduce.records import Record
from m3di.reproduce.workspace import Workspace
from m3di.signals import StopRequest
from stores.errors import CaseError, DamagedError, RefusedError

POLL_S: Final = 0.1
GRACE_S: Final = 60.0  # for saving, when a signal asks for a stop
DONE: Final = (0, 3)  # exit codes: some quarantined cases are told, not a failure
# What a cell's files can make of reading them, when they are not what a command writes.
UNEXPECTED: Final = (KeyError, ValueError, TypeError, StopIteration, OSError, CaseError, RefusedError, DamagedError)
RESUMED: Final = ("pretrain", "finetune")
SET_PARENT_DEATH_SIGNAL: Final = 1  # linux/prctl.h
ROOT: Final = Path(__file__).parents[2]  # where the packages are


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        cells: All cells of the programme's tables by name, in order.
        to_do: Names of those to make, in order.
        digests: Digest of every cell.
        facts: What determines every cell.
    """

    cells: Mapping[str, Cell]
    to_do: tuple[str, ...]
    digests: Mapping[str, str]
    facts: Mapping[str, Mapping[str, Any]]


def make_plan(
    cells: Mapping[str, Cell], records: Mapping[str, Record], workspace: Workspace, data: Mapping[str, str]
) -> Plan:
    """Find out which cells are to be made.

    A cell is done when its record has the digest of what determines it now. One that is done is made again when
    another is to be made that needs what it left on disk, and that is gone.

    Args:
        cells: All cells, each behind those that it needs.
        records: Finished cells by name.
        workspace: Where things are.
        data: Digest of each dataset.
    """
    digests: dict[str, str] = {}
    facts: dict[str, dict[str, Any]] = {}
    to_do: set[str] = set()
    for name, cell in cells.items():
        facts[name] = cell.facts(data=data, needs=digests)
        record = records.get(name)
        done = record is not None and digest_facts(facts[name], like=record.facts) == record.digest
        digests[name] = record.digest if done and record is not None else digest_facts(facts[name])
        if not done:
            to_do.add(name)
    for name in reversed(list(cells)):
        if name in to_do:
            to_do |= {one for one in cells[name].needs if not workspace.holds(cells[one], digests[one])}
    return Plan(cells, tuple(name for name in cells if name in to_do), digests, facts)


@dataclass
class Running:
    """A cell in the making.

    Attributes:
        cell: The cell.
        commands: What is still to be run.
        process: What runs now.
        command: Its command line.
        begun: When it began, by the monotonic clock.
        log: Where its standard output goes.
        slot: Which of the places for cells it takes.
    """

    cell: Cell
    commands: list[Command]
    slot: int
    process: subprocess.Popen[bytes] | None = None
    command: Command = ()
    begun: float = 0.0
    log: IO[bytes] | None = None


class Scheduler:
    """Makes the cells of a plan, `workers` at a time.

    Args:
        plan: What to do.
        workspace: Where things are.
        workers: Cells at a time.
        devices: One for each cell that is made at a time, in turn.
        report: Receives the events.
    """

    def __init__(
        self, plan: Plan, workspace: Workspace, *, workers: int, devices: Sequence[str], report: Report
    ) -> None:
        self.failed: dict[str, dict[str, Any]] = {}
        self._plan, self._workspace, self._report = plan, workspace, report
        self._devices = devices
        self._threads = max(1, len(os.sched_getaffinity(0)) // workers)
        self._waiting = list(plan.to_do)
        self._free = list(reversed(range(workers)))
        self._running: list[Running] = []

    def run(self, stop: StopRequest) -> None:
        """Make every cell that can be made; one that fails is noted, with those that need it, and others go on.

        Raises:
            Interrupted: On TERM or INT, after the processes have saved and ended.
            ResourceError: E_DISK, when a result cannot be written.
        """
        self._report("begin", stage="reproduce", total=len(self._waiting))
        try:
            while self._waiting or self._running:
                stop.raise_if_set()
                self._start_ready()
                for running in list(self._running):
                    self._look_after(running)
                time.sleep(POLL_S)
        finally:
            self._end_all(stop.number or signal.SIGTERM)

    def _start_ready(self) -> None:
        for name in list(self._waiting):
            if not self._free:
                return
            cell = self._plan.cells[name]
            broken = [one for one in cell.needs if one in self.failed]
            if broken:
                self._waiting.remove(name)
                self._fail(cell, {"code": "E_MISSING", "message": f"it needs {broken[0]}, which failed", "hint": ""})
            elif not {*self._waiting, *(one.cell.name for one in self._running)}.intersection(cell.needs):
                self._waiting.remove(name)
                self._begin(cell)

    def _begin(self, cell: Cell) -> None:
        self._workspace.begin(cell, self._plan.digests[cell.name])
        running = Running(cell, list(cell.commands), self._free.pop())
        self._running.append(running)
        self._report("begun", cell=cell.name)
        try:
            if cell.kind == "pictures":
                running.commands = pictures.commands_of(cell, self._workspace)
            self._next(running)
        except UNEXPECTED as error:
            self._leave(running)
            self._fail(cell, _unexpected(error))

    def _next(self, running: Running) -> None:
        """Start a cell's next process."""
        running.command = running.commands.pop(0)
        notes, word = self._workspace.notes(running.cell), running.command[0]
        running.log = (notes / f"{word}.jsonl").open("ab")
        with (notes / f"{word}.stderr").open("wb") as errors:
            running.process = subprocess.Popen(
                [sys.executable, "-m", "cli", *self._workspace.command(running.command), *self._at_run_time(running)],
                stdin=subprocess.DEVNULL, stdout=running.log, stderr=errors, cwd=self._workspace.out / "work",
                env=self._environment(), start_new_session=True, preexec_fn=_end_with_parent,  # noqa: PLW1509
            )  # fmt: skip
        running.begun = time.monotonic()

    def _at_run_time(self, running: Running) -> list[str]:
        """Options that do not change what comes out."""
        options = ["--json", "--quiet"]
        if running.command[0] in RESUMED:
            options.append("--resume")
        if running.command[0] == "build-store":
            options += ["--workers", str(self._threads)]
        if running.command[0] != "info":
            options += ["--device", self._devices[running.slot % len(self._devices)]]
        return options

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("M3DI_")}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": str(self._threads)}

    def _look_after(self, running: Running) -> None:
        """See whether a cell's process has ended, and go on with the cell."""
        code = self._reap(running)
        if code is None:
            return
        if code not in DONE:
            self._leave(running)
            self._fail(running.cell, self._error(running, code))
        elif running.commands:
            self._next(running)
        else:
            self._leave(running)
            self._finish(running.cell)

    def _reap(self, running: Running) -> int | None:
        """Exit code of a cell's process, negative for a signal, and note what it took; None while it runs."""
        process, log = running.process, running.log
        assert process is not None
        assert log is not None
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if not pid:
            return None
        process.returncode = os.waitstatus_to_exitcode(status)
        running.process = None
        log.close()
        self._workspace.add_cost(
            running.cell,
            wall_s=round(time.monotonic() - running.begun, 2),
            cpu_s=round(usage.ru_utime + usage.ru_stime, 2),
            peak_memory_mib=round(usage.ru_maxrss / 1024, 1),  # KiB on Linux
        )
        return process.returncode

    def _finish(self, cell: Cell) -> None:
        """Keep a cell's result; of one that was made again for what it leaves on disk, the first stays."""
        try:
            if cell.kind == "pictures":
                result = pictures.outcome_of(cell, self._workspace)
            else:
                result = outcome_of(cell, self._workspace)
        except UNEXPECTED as error:
            self._fail(cell, _unexpected(error))
            return
        commands = [*cell.commands, *(pictures.commands_of(cell, self._workspace) if cell.kind == "pictures" else ())]
        record = Record(
            cell.name, cell.kind, self._plan.digests[cell.name], self._plan.facts[cell.name],
            tuple(written(command) for command in commands), self._made_with(),
            cost_of(cell, self._workspace, result), result,
        )  # fmt: skip
        record.write(self._workspace.records)
        self._workspace.finish(cell)
        left = len(self._waiting) + len(self._running)
        self._report("finished", cell=cell.name, wall_s=record.cost.wall_s, left=left)

    def _made_with(self) -> dict[str, Any]:
        return {
            "m3di": _version("m3di"),
            "torch": _version("torch"),
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "device": ",".join(self._devices),
            "threads": self._threads,
        }

    def _error(self, running: Running, code: int) -> dict[str, Any]:
        """What a failed process said, as `error: E_CODE what` and `hint: what to do`."""
        path = self._workspace.notes(running.cell) / f"{running.command[0]}.stderr"
        lines = path.read_text(errors="replace").splitlines()
        message = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), "")
        word, _, rest = message.partition(" ")
        if not word.startswith("E_"):
            word, rest = "E_WORKER", message
        if code < 0:
            word, rest = "E_WORKER", f"m3di {running.command[0]} was killed by {signal.Signals(-code).name}"
            hint = "with SIGKILL memory was short: lower --workers"
        return {"code": word, "message": rest or f"exit code {code}", "hint": hint, "exit_code": code}

    def _fail(self, cell: Cell, error: dict[str, Any]) -> None:
        self._workspace.notes(cell).mkdir(parents=True, exist_ok=True)
        self._workspace.fail(cell, error)
        self.failed[cell.name] = error
        self._report("failed", cell=cell.name, code=error["code"], message=error["message"])

    def _leave(self, running: Running) -> None:
        self._running.remove(running)
        self._free.append(running.slot)

    def _end_all(self, number: int) -> None:
        """Let what runs save and end; what does not in time is killed, which every command bears."""
        self._running = [running for running in self._running if running.process is not None]
        for running in self._running:
            _signal(running, number)
        until = time.monotonic() + GRACE_S
        while self._running:
            for running in list(self._running):
                if self._reap(running) is not None:
                    self._running.remove(running)
                elif time.monotonic() > until:
                    _signal(running, signal.SIGKILL)
            time.sleep(POLL_S)


def _signal(running: Running, number: int) -> None:
    """Signal a process that has not been waited for yet, and whose number is therefore still its own."""
    assert running.process is not None
    os.kill(running.process.pid, number)


def written(command: Iterable[str]) -> str:
    """A command line as one types it, its places left as variables."""
    return "m3di " + " ".join(_quoted(argument) for argument in command)


def _quoted(argument: str) -> str:
    """Quote an argument for a shell, which shall still replace `$DATA` and `$OUT`."""
    if argument.startswith("$"):
        return f'"{argument}"' if " " in argument else argument
    return shlex.quote(argument)


def _end_with_parent() -> None:
    """Let a process be told to stop when the one that started it is killed (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _unexpected(error: Exception) -> dict[str, Any]:
    message = f"the cell's files are not what was expected: {type(error).__name__} {error}"
    return {"code": "E_BUG", "message": message, "hint": "see its logs in work/logs"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
