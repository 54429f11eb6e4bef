"""The demo's page: what went in, what came out, and how far to trust it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3di.captions.stage import slice_images
from m3di.evaluation.evaluate import Evaluation
from m3di.evaluation.inference import load_predictor
from m3di.evaluation.retrieval import RetrievalScores
from m3di.query import Answer, Hit
from m3di.report import (
    Chart,
    ColourKey,
    Commands,
    Facts,
    Link,
    Links,
    Page,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Series,
    Table,
)
from m3di.report.pages.scores import leak_notice
from m3di.report.pages.store import card_table
from m3di.report.pages.training import FILE as REPORT
from m3di.report.pictures import PALETTE, enlarge, overlay
from m3di.training import checkpoint
from m3di.training.runtime import read_metrics
from m3di.volumes import readers
from m3di.volumes.cases import Case
from m3di.volumes.layouts import discover
from m3di.volumes.slices import displayed
from stores import Store
from stores.geometry import PLANES, CubeChain
from stores.keys import plane_number

STORE_PAGE = "store.html"  # beside the demo's own page


@dataclass(frozen=True)
class Findings:
    """What the demo has to show.

    Attributes:
        out: The demo's folder, with `store` and `runs`.
        cohort: The generated dataset.
        seconds: Time until the page.
        retrieval: Held-out retrieval at the end of pretraining; None when a finished run was only taken up again.
        scores: Test scores by how the network began.
        question: The text that was asked.
        answer: What the store answered.
    """

    out: Path
    cohort: Path
    seconds: float
    retrieval: RetrievalScores | None
    scores: Mapping[str, Evaluation]
    question: str
    answer: Answer


def demo_page(findings: Findings, *, device: str) -> Page:
    """Build the page."""
    cases = discover(findings.cohort)
    return Page(
        title="m3di demo",
        lead=f"From {len(cases)} brain scans to a pretrained encoder, a fine-tuned network and a store that answers "
        f"questions, in {findings.seconds:.0f} seconds on this machine.",
        sections=[
            _cohort(findings, cases),
            _store(findings),
            _pretraining(findings),
            _finetuning(findings, cases, device),
            _query(findings),
            _next_steps(findings),
        ],
    )


def _cohort(findings: Findings, cases: list[Case]) -> Section:
    items = [_case_picture(case, plane) for case in cases[:3] for plane in range(len(PLANES))]
    honest = (
        "All cases are deformed copies of one real brain, the MNI152 template: they differ in shape, contrast, bias "
        "field, noise and orientation, but share one anatomy. The demo shows that everything works; it says nothing "
        "about how well a network would do on other people."
    )
    return Section("The cohort", [Paragraph(honest), Pictures(items, columns=3, key=_key(findings.cohort))])


def _store(findings: Findings) -> Section:
    with Store(findings.out / "store") as store:
        records = store.records()
        current = store.current()
        facts = store.facts("teacher", current["teacher"]) or {}
        rows = int(store.embeddings(current["teacher"]).index.num_rows().sum())
        shown = [_middle(store, record.volume, plane) for plane, record in enumerate(records[:3])]
        items = [_slice_picture(store, hit) for hit in shown]
    summary = Facts([("volumes", len(records)), ("slices with caption and embeddings", rows),
                     ("teacher", f"{facts.get('spec')}, heads fitted to the training volumes")])  # fmt: skip
    card = [card_table(facts["card"])] if facts.get("card") else []
    links = Links([Link("Everything that the store holds", STORE_PAGE)])
    return Section("The store", [summary, Pictures(items, columns=3), *card, links])


def _pretraining(findings: Findings) -> Section:
    log = read_metrics(findings.out / "runs/pretrain/metrics.jsonl")
    blocks: list[Chart | Table] = [_curve({"pretraining": log}, "Contrastive loss")]
    retrieval = [line["retrieval"] for line in log if "retrieval" in line]
    if retrieval:
        last = retrieval[-1]
        rows = [(f"{part} embedding", *scores.values()) for part, scores in last["recall"].items()]
        rows.append(("a random order", *last["chance"].values()))
        caption = f"Encoder and PSAT find a held-out slice by the teacher's vector, among {last['num_slices']} slices"
        blocks.append(Table(("target", "recall at 1", "at 5", "at 10"), rows, caption))
    return Section("Pretraining", blocks)


def _finetuning(findings: Findings, cases: list[Case], device: str) -> Section:
    logs = {start: read_metrics(_run(findings, start) / "metrics.jsonl") for start in findings.scores}
    rows = []
    for start, score in findings.scores.items():
        classes = [f"{score.dice[name][0]:.3f}" for name in score.classes.values()]
        mean, low, high = score.dice["all"]
        rows.append((start, *classes, f"{mean:.3f} ({low:.3f} to {high:.3f})"))
    score = next(iter(findings.scores.values()))
    num_train = len(_facts(findings, next(iter(findings.scores)))["split"]["train"])
    caption = (
        f"Dice on {len(score.cases)} test cases, on the scanner's grid, after training on {num_train} labelled ones; "
        "95% interval over cases. One run each: a difference here is an illustration, not a result"
    )
    names = ("start", *score.classes.values(), "mean (95% interval)")
    shown = Pictures(_predictions(findings, cases, device), columns=3, key=_key(findings.cohort))
    reports = {start: _run(findings, start).relative_to(findings.out) / REPORT for start in findings.scores}
    links = Links(
        [Link(f"Every case and the worst ones, {start}", path.as_posix()) for start, path in reports.items()]
    )
    curve = _curve(logs, "Dice and cross-entropy loss")
    leaks = [
        leak_notice(f"{start}: {score.leaks}", doubtful=bool(score.warnings))
        for start, score in findings.scores.items()
    ]
    return Section("Fine-tuning", [*leaks, Table(names, rows, caption), curve, shown, links])


def _query(findings: Findings) -> Section:
    with Store(findings.out / "store") as store:
        items = [_slice_picture(store, hit) for hit in findings.answer.results]
    text = f"Asked for: {findings.question}. {' '.join(findings.answer.notes)}"
    return Section("Asking the store", [Paragraph(text), Pictures(items, columns=3)])


def _next_steps(findings: Findings) -> Section:
    lines = [
        "m3di build-store YOUR_SCANS --store store",
        "m3di pretrain --store store --run runs/first",
        "m3di finetune --task msd --data YOUR_DATASET --init runs/first",
        f'm3di query "{findings.question}" --store {findings.out / "store"}',
    ]
    return Section("The same with your own scans", [Commands(lines)])


def _case_picture(case: Case, plane: int) -> Picture:
    volume = readers.read_volume(case.image, modality=case.modality)
    assert case.label is not None
    label = readers.read_label(case.label, like=volume.geometry)
    name = f"{case.id}, {PLANES[plane]}"
    pixels = enlarge(_shown(volume, label, plane), 2)
    return Picture(pixels, f"{name} ({volume.geometry.orientation})", f"{name} slice with tissue labels")


def _shown(volume: readers.Volume, label: np.ndarray, plane: int) -> np.ndarray:
    """The middle slice of a scan in display orientation, with a label map as contours."""
    chain = CubeChain(volume.geometry, 1)
    stacks = (displayed(chain.to_canonical(array), plane) for array in (volume.data, label))
    image, mask = (np.ascontiguousarray(stack[len(stack) // 2]) for stack in stacks)
    grey = np.clip(image / np.percentile(volume.data, 99.5) * 255, 0, 255).astype(np.uint8)
    return overlay(grey, mask)


def _predictions(findings: Findings, cases: list[Case], device: str) -> list[Picture]:
    """Reference and predictions of the first test case, in each plane."""
    found = {start: checkpoint.load(_run(findings, start), kind="finetune") for start in findings.scores}
    tested = next(iter(findings.scores.values())).cases[0].case
    case = next(case for case in cases if case.id == tested)
    volume = readers.read_volume(case.image, modality=case.modality)
    assert case.label is not None
    masks = {"reference": readers.read_label(case.label, like=volume.geometry)}
    masks |= {start: load_predictor(run, device=device).mask(volume) for start, run in found.items()}
    return [
        Picture(enlarge(_shown(volume, mask, plane), 2), name, f"{name}, {PLANES[plane]} slice of {case.id}")
        for plane in range(len(PLANES))
        for name, mask in masks.items()
    ]


def _middle(store: Store, volume: str, plane: int) -> Hit:
    record = store.record(volume)
    valid = record.valid_slices(plane)
    index = int(valid[len(valid) // 2])
    captions = store.captions(store.current()["captioner"], volume)
    text = captions.texts[plane][len(valid) // 2] if captions else ""
    return Hit(volume, PLANES[plane], index, 1.0, text)


def _slice_picture(store: Store, hit: Hit) -> Picture:
    record = store.record(hit.volume)
    plane = plane_number(hit.plane)
    rank = int(np.searchsorted(record.valid_slices(plane), hit.slice))
    pixels = enlarge(slice_images(store, record, plane)[rank], 2, method="bilinear")
    return Picture(pixels, hit.caption, f"{hit.plane} slice {hit.slice} of {hit.volume}")


def _curve(logs: Mapping[str, list[dict[str, float]]], title: str) -> Chart:
    series = []
    for name, log in logs.items():
        steps = [line for line in log if "loss" in line]
        series.append(Series(name, [line["samples_seen"] for line in steps], [line["loss"] for line in steps]))
    return Chart(series, "volumes seen", "loss", title)


def _key(cohort: Path) -> list[ColourKey]:
    label = discover(cohort)[0].label
    return [ColourKey(name, PALETTE[value]) for value, name in (label.names if label else {}).items()]


def _run(findings: Findings, start: str) -> Path:
    return findings.out / "runs" / start.replace(" ", "-")


def _facts(findings: Findings, start: str) -> Mapping[str, dict[str, list[str]]]:
    return checkpoint.load(_run(findings, start), kind="finetune").facts
