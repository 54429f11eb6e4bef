"""How scores are called, and how a mean is written with its interval: on the command line and in reports alike."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from m3di.evaluation.statistics import Interval
    from m3di.evaluation.summaries import Spread

TITLES: Final = {
    "dice": "Dice", "surface_dice": "surface Dice", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm",
    "mssd_mm": "MSSD mm", "ravd_percent": "RAVD %", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy",
    "auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity", "ece": "calibration error",
    "brier": "Brier score",
}  # fmt: skip


def title_of(metric: str, tolerance_mm: float) -> str:
    """A metric's title, with the tolerance that surface Dice has."""
    return f"{TITLES[metric]} {tolerance_mm:g} mm" if metric == "surface_dice" else TITLES[metric]


def known_metrics(metrics: Sequence[str], among: Mapping[str, object]) -> list[str]:
    """The task's metrics that there are; where there is none of them, all that there are."""
    return [metric for metric in metrics if metric in among] or list(among)


def words(interval: "Interval", spread: "Spread | None" = None) -> str:
    """A mean and its interval, and how far seeds lie apart; one subject has no interval."""
    ends = f" [{interval.low:.4g}, {interval.high:.4g}]" if not math.isnan(interval.low) else ""
    return f"{interval.mean:.4g}{ends}" + (f" ± {spread.spread:.2g}" if spread is not None else "")
