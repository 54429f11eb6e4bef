"""The demo, top to bottom: cohort, store, pretraining, fine-tuning from scratch and from the encoder, query, page."""

import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from m3di.build import build_store
from m3di.config import Config, load_config
from m3di.demo.cohort import make_cohort
from m3di.demo.page import STORE_PAGE, Findings, demo_page
from m3di.evaluation.evaluate import Evaluation, evaluate
from m3di.evaluation.statistics import Interval
from m3di.events import Report
from m3di.inspect import describe_store
from m3di.query import Answer, Searcher, Wanted
from m3di.report import write_page
from m3di.report.pages.evaluation import write_evaluation_report
from m3di.report.pages.store import store_page
from m3di.training.finetune import finetune
from m3di.training.pretrain import pretrain

QUESTION = "Coronal slice of the front of the brain"
STARTS = ("from scratch", "from the encoder")


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        places: Folder or file of each part, by name.
        dice: Mean Dice over classes and test cases with its 95% interval, by how the network began.
        seconds: How long it took.
    """

    places: dict[str, Path]
    dice: dict[str, Interval]
    seconds: float


def demo_config(seed: int) -> Config:
    """Settings of the demo."""
    with resources.as_file(resources.files("m3di.demo") / "demo.toml") as sizes:
        return load_config(files=[sizes], overrides=[("seed", seed)])


def run_demo(out: Path, *, seed: int = 0, num_cases: int = 24, device: str = "auto", report: Report) -> DemoResult:
    """Run the whole path; a rerun continues where an earlier one stopped.

    Args:
        out: Folder for everything.
        seed: Of the cohort and of all training.
        num_cases: Size of the cohort.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        report: Receives the events.

    Raises:
        RefusedError: E_MISSING or E_WEIGHTS, when the packages of the demo extra are not installed.
    """
    started = time.monotonic()
    config = demo_config(seed)
    report("demo", part="cohort", cases=num_cases)
    cohort = make_cohort(out / "cohort", num_cases=num_cases, seed=seed)
    report("demo", part="store")
    build_store([cohort], out / "store", config, device=device, report=report)
    report("demo", part="pretraining")
    runs = out / "runs"
    pretrained = pretrain(out / "store", runs / "pretrain", config, device=device, resume=True, report=report)
    scores: dict[str, Evaluation] = {}
    for start, init in zip(STARTS, (None, runs / "pretrain"), strict=True):
        report("demo", part=f"fine-tuning {start}")
        run = runs / start.replace(" ", "-")
        finetune("msd", cohort, run, config, init=init, device=device, resume=True, report=report)
        scores[start] = evaluate(run, data=cohort, device=device, report=report)
        write_evaluation_report(scores[start], run, data=cohort, pictures=config.evaluate.pictures, device=device)
    report("demo", part="query and report")
    findings = Findings(
        out=out,
        cohort=cohort,
        seconds=time.monotonic() - started,
        retrieval=pretrained.retrieval,
        scores=scores,
        question=QUESTION,
        answer=_ask(out / "store", device),
    )
    write_page(store_page(describe_store(out / "store")), out / STORE_PAGE)
    page = write_page(demo_page(findings, device=device), out / "report.html")
    dice = {start: score.dice["all"] for start, score in scores.items()}
    places = {"report": page, "cohort": cohort, "store": out / "store", "runs": runs}
    return DemoResult(places, dice, time.monotonic() - started)


def _ask(store: Path, device: str) -> Answer:
    with Searcher(store, device=device) as searcher:
        return searcher.by_text(QUESTION, Wanted(top=6))
