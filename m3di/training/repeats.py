"""Several runs of one fine-tuning, which differ by their seeds alone: `RUN/repeat-0` and so on."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from m3di.config import Config
from stores.errors import RefusedError

if TYPE_CHECKING:
    from m3di.training.finetune import FinetuneSummary

FOLDER: Final = re.compile(r"repeat-(\d+)")


def repeat(
    run: Path, config: Config, num_repeats: int, train: "Callable[[Path, Config], FinetuneSummary]"
) -> "list[FinetuneSummary]":
    """Fine-tune with the seeds `seed`, `seed` + 1 and so on; the split stays the same.

    Args:
        run: Holds the runs; with one repeat it is the run.
        config: All settings.
        num_repeats: How many runs.
        train: Trains one, into a folder and with settings.

    Raises:
        RefusedError: E_CONFIG, for less than one; and as `finetune`.
    """
    if num_repeats < 1:
        raise RefusedError("E_CONFIG", f"--repeats {num_repeats} trains nothing", hint="give 1 or more")
    if num_repeats == 1:
        return [train(run, config)]
    return [
        train(run / f"repeat-{number}", replace(config, seed=config.seed + number)) for number in range(num_repeats)
    ]


def runs_of(run: Path) -> list[Path]:
    """The runs in a folder, in order: its repeats, or the folder itself."""
    found = {int(match[1]): path for path in run.glob("repeat-*") if (match := FOLDER.fullmatch(path.name))}
    return [found[number] for number in sorted(found)] or [run]
