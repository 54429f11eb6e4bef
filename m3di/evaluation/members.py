"""The runs of an evaluation: seeds of one training, folds of a cross-validation, or both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3di.evaluation.inference import run_folder, same_task
from m3di.tasks.registry import load_task
from m3di.tasks.task import Task
from m3di.training import checkpoint
from m3di.training.repeats import runs_of
from m3di.volumes.cases import Case
from stores.errors import RefusedError


@dataclass(frozen=True, eq=False)
class Members:
    """Runs with the cases that each is tested on.

    Attributes:
        checkpoints: Of each run, in the order given.
        task: Their task and its cases.
        folds: Numbers of the runs that are tested on the same cases, one group a fold; equally many in each.
    """

    checkpoints: tuple[checkpoint.Checkpoint, ...]
    task: Task
    folds: tuple[tuple[int, ...], ...]

    @property
    def num_seeds(self) -> int:
        """How many runs are tested on each case."""
        return len(self.folds[0])

    def tested(self, number: int) -> list[Case]:
        """Test cases of one run, in the task's order."""
        names = set(self.checkpoints[number].facts["split"]["test"])
        return [case for case in self.task.cases if case.id in names]


def members_of(runs: Sequence[Path], data: Path | None) -> Members:
    """Find the runs in some folders, and the cases that they are tested on.

    Args:
        runs: Fine-tuning runs, or folders of repeats.
        data: The task's dataset; by default where the first run found it.

    Raises:
        RefusedError: When the runs, or runs and data, do not fit together.
    """
    found = tuple(checkpoint.load(path, kind="finetune") for run in runs for path in runs_of(run))
    same_task(found)
    facts = found[0].facts
    task = load_task(facts["task"], data or Path(facts["data"]), class_column=facts.get("class_column", ""))
    members = Members(found, task, _folds(found))
    for number, one in enumerate(found):
        missing = sorted(set(one.facts["split"]["test"]) - {case.id for case in members.tested(number)})
        if missing:
            message = f"test case {missing[0]} of {run_folder(one)} is not in {task.data}"
            raise RefusedError("E_MISSING", message, hint="give the dataset of the run by --data")
    return members


def _folds(found: Sequence[checkpoint.Checkpoint]) -> tuple[tuple[int, ...], ...]:
    """Group runs by what they are tested on.

    Raises:
        RefusedError: E_CONFIG, when the groups are no folds.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for number, one in enumerate(found):
        groups.setdefault(frozenset(one.facts["split"]["test"]), []).append(number)
    hint = "give seeds of one split, or folds of one cross-validation, with equally many runs each"
    if not all(groups):
        raise RefusedError("E_SPLIT", f"{run_folder(found[0])} holds no test cases out", hint="raise split.ratios")
    if sum(map(len, groups)) != len(frozenset().union(*groups)):
        raise RefusedError("E_CONFIG", "the runs are tested on different cases that overlap", hint=hint)
    if len({len(numbers) for numbers in groups.values()}) > 1:
        raise RefusedError("E_CONFIG", "some test cases have more runs than others", hint=hint)
    return tuple(tuple(numbers) for numbers in groups.values())
