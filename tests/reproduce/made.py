"""A programme of two rows, and finished cells made by hand."""

from dataclasses import replace

from m3di.reproduce.cells import Grid
from m3di.reproduce.programme import Comparison, Table
from m3di.reproduce.records import Cost, Record
from m3di.reproduce.small import SMALL

EVERYTHING = frozenset({"hippocampus", "acdc", "adrenal"})
HEARTS = Comparison("acdc", "vit", 0.2, (0, 1))
CLASSES = Comparison("acdc-diagnosis", "vit", 1.0, (0,))
TWO = Table("table1", "Segmentation", "methods", (HEARTS,))


def grid(*tables, available=EVERYTHING, **more):
    programme = replace(SMALL, tables={one.name: one for one in tables}) if tables else SMALL
    return Grid(programme, available, **more)


def record(name, kind, result, **more):
    cost = Cost(encoder_passes=600, wall_s=1800.0, cpu_s=1500.0, peak_memory_mib=1024.0, disk_bytes=2**28)
    fields = {"digest": "d", "facts": {}, "commands": (), "made_with": {}, "cost": cost, **more}
    return Record(name=name, kind=kind, result=result, **fields)


def segmented(name, *dice, leaks="no scan shared among 3 test, 7 training, 0 pretraining scans"):
    """Three test cases, each with one Dice for all three structures."""
    labels = ("label 1", "label 2", "label 3")
    cases = [
        {"case": f"case{number}", "subject": f"subject{number}", "dice": dict.fromkeys(labels, value)}
        for number, value in enumerate(dice)
    ]
    result = {"kind": "segmentation", "classes": list(labels), "values": [1, 2, 3], "cases": cases, "leaks": leaks}
    return record(name, "finetune", {**result, "samples_seen": 600})


def classified(name, *answers, leaks="no scan shared"):
    """Cases of two classes: (true class, probability of class 1)."""
    cases = [
        {"case": f"case{number}", "subject": f"subject{number}", "target": target, "probabilities": [1 - p, p]}
        for number, (target, p) in enumerate(answers)
    ]
    result = {"kind": "classification", "classes": ["no", "yes"], "cases": cases, "leaks": leaks, "samples_seen": 600}
    return record(name, "finetune", result)


def pretrained(name, recall=0.5):
    recalls = {"1": 0.1, "5": 0.2, "10": recall}
    retrieval = {
        "num_slices": 100, "recall": {"image": recalls, "text": recalls}, "chance": {"10": 0.1},
        "plane_accuracy": 1.0, "position_error": 0.01,
    }  # fmt: skip
    located = {"plane_accuracy": 1.0, "position_error": 0.02, "position_error_chance": 0.3}
    return record(name, "pretrain", {"samples_seen": 4800, "retrieval": retrieval, "localisation": located})


def hearts():
    """Two seeds of both ways to begin: 60 and 70% on average from scratch, 2 and 4 points more pretrained."""
    made = (
        segmented("acdc-vit-20pct-scratch-seed0", 0.5, 0.6, 0.7),
        segmented("acdc-vit-20pct-scratch-seed1", 0.6, 0.7, 0.8),
        segmented("acdc-vit-20pct-main-seed0", 0.52, 0.62, 0.72),
        segmented("acdc-vit-20pct-main-seed1", 0.64, 0.74, 0.84),
        pretrained("pretrain-common-vit-main-seed0"),
        pretrained("pretrain-common-vit-main-seed1", recall=0.7),
        record("store-common", "store", {"slices": 1000}),
    )
    return {one.name: one for one in made}
