"""What validation has told so far: the best score, and when to stop early. A pure function of the scores."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The course of validation.

    Attributes:
        best: The best rank: scores to compare, the most important one first; empty before the first evaluation.
        best_samples_seen: The clock of the best.
        since: Evaluations since then.
    """

    best: tuple[float, ...] = ()
    best_samples_seen: int = 0
    since: int = 0

    def after(self, rank: tuple[float, ...], samples_seen: int) -> "Progress":
        """The course with one more evaluation; scores that are not numbers are the worst.

        Of equal ones the later counts as the best, but it is no progress.
        """
        known = tuple(-math.inf if math.isnan(score) else score for score in rank)
        if not self.best or known > self.best:
            return Progress(known, samples_seen)
        if known == self.best:
            return Progress(known, samples_seen, self.since + 1)
        return replace(self, since=self.since + 1)

    def is_best_at(self, samples_seen: int) -> bool:
        """Whether the best evaluation is the one at this clock."""
        return bool(self.best) and self.best_samples_seen == samples_seen

    def is_over(self, patience: int) -> bool:
        """Whether there was no better evaluation for too long; a patience of 0 waits for ever."""
        return 0 < patience <= self.since

    def to_dict(self) -> dict[str, Any]:
        """Return the course as JSON-ready values; `from_dict` reads them back."""
        return asdict(self) | {"best": [score if math.isfinite(score) else None for score in self.best]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Progress":
        """Rebuild a course from `to_dict`."""
        best = tuple(-math.inf if score is None else score for score in fields["best"])
        return cls(best, fields["best_samples_seen"], fields["since"])
