"""The model card: what a stranger must know before using the weights, and nothing that names a person or a place."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from m3di.config import ExportConfig
from m3di.evaluation.evaluate import FILE as EVALUATION
from m3di.exports.source import Source
from m3di.report.numbers import format_number

NOT_CLINICAL: Final = "**Not for clinical use.** This is research software; nothing it computes may guide care."
TASKS: Final = {"segmentation": "image-segmentation", "classification": "image-classification"}
TITLES: Final = {
    "encoder": "3D image encoder",
    "segmentation": "3D segmentation",
    "classification": "3D classification",
}
SHOWN: Final = ("dice", "surface_dice", "hd95_mm", "balanced_accuracy", "accuracy", "auc")
METHOD: Final = (
    "Chen, Ye, Hong, *Med3DInsight: Enhancing 3D Medical Image Understanding with 2D Multi-Modal Large Language "
    "Models* (2024)"
)
TOLD: Final = ("batch_size", "learning_rate", "weight_decay", "schedule", "precision")
PATHS: Final = ("local-dir:", "checkpoint:")  # teachers that are a place on a disk
BEGUN: Final = {
    "scratch": "random weights",
    "run": "an encoder pretrained by m3di",
    "file": "an encoder's weights from a file",
    "public": "public weights",
}
MAX_OPTION: Final = 80  # characters of an option that are shown


def card(source: Source, run: Path, settings: ExportConfig, *, usage: str) -> str:
    """Write the card.

    Args:
        source: What is exported.
        run: Its folder, where its evaluation is.
        settings: What the user says of licence and data.
        usage: How the files are used, Markdown.
    """
    parts = [
        f"# {source.name}: {TITLES[source.kind]}",
        NOT_CLINICAL,
        intended_use(source),
        "## Use", usage,
        "## Input", preprocessing(source),
        "## Data", _data(source, settings),
        "## Recipe", _recipe(source),
        "## Measured", measured(run, source),
        "## Limits", _limits(source),
        "## Licence", licence(settings),
        "## Where it comes from", _origin(source),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def front_matter(source: Source, settings: ExportConfig) -> str:
    """What hubs read at the top of a card."""
    task = TASKS.get(source.kind, "image-feature-extraction")
    tags = [
        "medical",
        "3d",
        *([source.modality.lower()] if source.modality != "unknown" else []),
        "not-for-clinical-use",
    ]
    lines = [f"license: {settings.license or 'other'}", "library_name: m3di", f"pipeline_tag: {task}", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---", ""])


def intended_use(source: Source) -> str:
    """What it is for, in a sentence or two."""
    if source.kind == "encoder":
        return (
            "An encoder of whole 3D scans, pretrained without labels against a frozen 2D vision-language model. For "
            "research: to begin the training of segmentation and classification networks from, or for features."
        )
    names = ", ".join(name for value, name in source.classes.items() if value or source.kind == "classification")
    verb = "outlines" if source.kind == "segmentation" else "tells apart"
    return f"A network that {verb} {names} in 3D {source.modality} scans. Meant for research on scans like its own."


def preprocessing(source: Source) -> str:
    """How a scan becomes the network's input."""
    recipe = source.recipe
    window, percentiles = recipe.ct_window_hu, recipe.mr_percentiles
    return (
        f"One volume of {recipe.cube_size}^3 voxels, float32 in [0, 1]: tensor (b, 1, x, y, z) with axes to the "
        "patient's right, front and head. The whole scan fits into it, padded with 0 to a cube and resampled once, "
        f"without aliasing. CT: {window[0]:g} to {window[1]:g} HU become 0 to 1. Others: percentile "
        f"{percentiles[0]:g} of the voxels above background becomes 0, percentile {percentiles[1]:g} of the body 1. "
        "`m3di.make_cube` does it."
    )


def measured(run: Path, source: Source) -> str:
    """Means with intervals and the leak line, if these very weights were evaluated."""
    found = evaluation_of(run, source)
    if found is None:
        return "These weights were not evaluated."
    cases, mean = found["cases"], found["mean"]
    tables = mean["scanner"] if source.kind == "segmentation" else {"all classes": mean}
    metrics = [name for name in SHOWN if name in next(iter(tables.values()))]
    rows = [[name, *(_interval(table[metric]) for metric in metrics)] for name, table in tables.items()]
    people = len({(case["dataset"], case["subject"]) for case in cases})
    grid = " on the scanner's grid" if source.kind == "segmentation" else ""
    told = f"Mean over {len(cases)} test scans of {people} people{grid}, with 95% interval over people."
    return "\n\n".join([told, _table(["class", *metrics], rows), f"Leaks: {_leaks(found)}."])


def evaluation_of(run: Path, source: Source) -> dict[str, Any] | None:
    """The evaluation of a run, if it is of the weights that are exported."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    found = json.loads(path.read_bytes())
    digests = [one["sha256"] for one in found["runs"]]
    return found if digests == [source.provenance["weights_sha256"]] else None


def licence(settings: ExportConfig) -> str:
    """What is known of the weights' licence."""
    if settings.license:
        return f"The weights: {settings.license}. m3di: Apache-2.0."
    return (
        "Not stated by who exported the weights. It depends on the licences of the training data and of the weights "
        "that training began from: ask before you use or share them. m3di itself: Apache-2.0."
    )


def _data(source: Source, settings: ExportConfig) -> str:
    described = settings.data or "Who exported the weights did not describe the data further."
    rows = [["modality", source.modality], *([name, str(count)] for name, count in data_facts(source.facts).items())]
    return f"{described}\n\n{_table(['what', 'number'], rows)}"


def data_facts(facts: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of scans and people, without names."""
    if "data_facts" in facts:  # of a hub folder
        return dict(facts["data_facts"])
    people = {tuple(owner) for name, owner in facts.get("people", {}).items() if name in facts["trained_on"]}
    counts = {"training scans": len(facts["trained_on"])}
    if people:
        counts |= {"training people": len(people), "datasets": len({owner[0] for owner in people})}
    if facts["kind"] == "finetune":
        counts |= {f"{share} scans": len(facts["split"][share]) for share in ("validation", "test")}
        counts |= {"scans that the encoder was pretrained on": len(facts["pretrained_on"])}
    return counts


def _recipe(source: Source) -> str:
    rows = [[name, _shown(value)] for name, value in training_facts(source.facts).items()]
    return _table(["what", "value"], rows)


def training_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How it was trained: what is no path and no name."""
    if "training" in facts:  # of a hub folder
        return dict(facts["training"])
    config = facts["config"]
    settings = config[facts["kind"]]
    own = _taught(facts) if facts["kind"] == "pretrain" else _tuned(facts)
    options = {"encoder": facts["encoder"]["name"], "options": facts.get("options", facts["encoder"]["options"])}
    return {**options, **own, **{name.replace("_", " "): settings[name] for name in TOLD}, "seed": config["seed"]}


def _taught(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What pretraining learnt from."""
    objective, spec = facts["config"]["objective"], str(facts["config"]["teacher"]["spec"])
    weights = {name.removesuffix("_weight"): value for name, value in objective.items() if name.endswith("_weight")}
    return {
        "objective": objective["kind"],
        "weights of its terms": {name: value for name, value in weights.items() if value},
        "slices a volume and step": facts["config"]["pretrain"]["slices_per_volume"],
        "teacher": spec.partition(":")[0] if spec.startswith(PATHS) else spec,
    }


def _tuned(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What fine-tuning began from."""
    return {
        "loss": facts["loss"],
        "begun from": BEGUN[facts["init"]["kind"]],
        "label fraction": facts["config"]["finetune"]["label_fraction"],
    }


def _limits(source: Source) -> str:
    lines = [
        "Scans unlike those in training (scanner, sequence, field of view, age, disease) can fail silently.",
        f"A cube of {source.recipe.cube_size} voxels loses structures thinner than a voxel.",
        "It may carry the biases of its data, and of the 2D model that taught it.",
        "It was not tested against attempts to recover training data from it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _origin(source: Source) -> str:
    found = source.provenance
    return (
        f"m3di {found['m3di_version']}, checkpoint sha256 `{found['run_sha256']}`, weights (`{found['weights']}`) "
        f"sha256 `{found['weights_sha256']}`, after {found['samples_seen']} volumes seen. Method: {METHOD}."
    )


def _leaks(found: Mapping[str, Any]) -> str:
    """The leak line without what it names: scans, and places of weights."""
    parts = []
    for part in found["leaks"].split("; "):
        if part.startswith("not known: what "):
            parts.append("not known: what the initial weights were pretrained on")
        elif re.match(r"\d+ of the test scans shared among ", part):
            parts.append(part.partition(": ")[0])
        elif part.startswith(("not known: ", "no ", "nothing ")):
            parts.append(part)
    return "; ".join(dict.fromkeys(parts))


def _interval(values: Sequence[float | None]) -> str:
    mean, low, high = (float("nan") if value is None else value for value in values)
    return f"{format_number(mean)} ({format_number(low)} to {format_number(high)})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _shown(value: object) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= MAX_OPTION else f"{text[:MAX_OPTION]}..."
