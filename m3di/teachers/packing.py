"""A teacher looked at, checked, and packed into a folder that needs no network: `m3di teacher info|check|pack`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from m3di.teachers.clip import Teacher, load_teacher
from m3di.teachers.folder import CONFIG_FILE, digests_of, write_towers
from m3di.teachers.towers import trims_padding, weights_digest
from stores.errors import DamagedError, M3diError, RefusedError

CARD_FILE: Final = "m3di_teacher.json"
SCHEMA: Final = "m3di.teacher/1"
LICENCES: Final = {
    "embedded": "EfficientNet-Lite0 and all-MiniLM-L6-v2, both Apache-2.0 upstream; heads untrained, made by m3di",
}
_UNKNOWN_LICENCE: Final = "not known to m3di: see where the model was published"
_TEXTS: Final = ("Axial CT slice of the chest, at its centre.", "Sagittal MR slice of the brain, near its left end.")
_LOWEST_COSINE: Final = 0.99  # bfloat16 against float32; 0.999 and more for vision transformers
_EDGE: Final = 224


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and whether it is as it should be."""

    name: str
    sound: bool
    found: str


def describe_teacher(teacher: Teacher, spec: str) -> dict[str, Any]:
    """Facts of a teacher, JSON-ready: towers, sizes, precision, fingerprint."""
    model, config = teacher.towers.model, teacher.towers.config
    vision = config["model_cfg"]["vision_cfg"]
    text = config["model_cfg"]["text_cfg"]
    return {
        "spec": spec,
        "fingerprint": teacher.fingerprint,
        "weights": weights_digest(model),
        "image tower": vision.get("timm_model_name") or type(model.visual).__name__,
        "text tower": text.get("hf_model_name") or type(getattr(model, "text", model)).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image size": list(teacher.image_size),
        "context length": text.get("context_length", 77),
        "padding is trimmed": trims_padding(model),
        "embedding dim": teacher.embedding_dim,
        "precision": teacher.dtype,
        "random": teacher.towers.random,
    }


def pack(spec: str, folder: Path, *, precision: str, licence: str = "") -> dict[str, Any]:
    """Write a teacher as a folder that loads from any path without a network, and read it back.

    Args:
        spec: Any teacher; its weights come from the network if the spec needs one.
        folder: Where to; must not exist, or be an older pack.
        precision: What the folder asks its reader to use; `auto` is the reader's fastest.
        licence: What is known of the weights' licence; by default what m3di knows.

    Raises:
        RefusedError: E_PATH, when `folder` holds something else; E_WEIGHTS, when the teacher cannot be had.
        DamagedError: E_WEIGHTS, when what was written does not read back the same.
    """
    teacher = load_teacher(spec, dtype=precision)
    facts = {
        "schema": SCHEMA,
        **describe_teacher(teacher, spec),
        "precision": precision,
        "licence": licence or LICENCES.get(spec) or _UNKNOWN_LICENCE,
    }
    del facts["fingerprint"]  # follows from the weights and the reader's precision

    def finish(aside: Path) -> None:
        facts["files"] = digests_of(aside)
        (aside / CARD_FILE).write_text(json.dumps(facts, indent=2), encoding="utf-8")

    write_towers(teacher.towers, folder, dtype=precision, finish=finish)
    again = load_teacher(f"local-dir:{folder}", dtype=teacher.dtype)
    if again.fingerprint != teacher.fingerprint:
        message = f"{folder} does not give back the teacher {spec}"
        raise DamagedError("E_WEIGHTS", message, hint="pack it again; if that does not help, report it")
    return facts


def check(spec: str, *, precision: str = "auto", device: str = "cpu") -> list[Finding]:
    """Load a teacher and try whether it can be trusted with a store."""
    findings = []
    if spec.startswith("local-dir:"):
        findings += _check_files(Path(spec.removeprefix("local-dir:")))
    try:
        teacher = load_teacher(spec, dtype=precision, device=device)
    except M3diError as error:
        return [*findings, Finding("loads", False, f"{error}; {error.hint}")]
    findings.append(Finding("loads", True, f"fingerprint {teacher.fingerprint[:16]}, {teacher.dtype}"))
    trained = "weights were never trained: a control experiment" if teacher.towers.random else "yes"
    return [*findings, Finding("is trained", not teacher.towers.random, trained), *_check_outputs(teacher)]


def _check_files(folder: Path) -> list[Finding]:
    """Compare a packed folder with its own list of digests."""
    card = folder / CARD_FILE
    if not card.is_file():
        return []
    try:
        expected = json.loads(card.read_bytes())["files"]
    except (ValueError, KeyError, TypeError):
        return [Finding("files", False, f"{card} is not a card of a packed teacher")]
    found = digests_of(folder)
    wrong = sorted(name for name, digest in expected.items() if found.get(name) != digest)
    if wrong:
        return [Finding("files", False, f"not as they were packed: {', '.join(wrong)}")]
    return [Finding("files", True, f"{len(expected)} files as they were packed (sha256)")]


def _check_outputs(teacher: Teacher) -> list[Finding]:
    images = _probes()
    rows, texts = teacher.encode_image(images), teacher.encode_text(_TEXTS)
    both = torch.cat([rows, texts]).float()
    finite = bool(both.isfinite().all()) and bool((both.norm(dim=1) - 1).abs().max() < 1e-3)
    alike = max(float(rows[0] @ rows[1]), float(texts[0] @ texts[1]))
    again = torch.equal(teacher.encode_image(images), rows) and torch.equal(teacher.encode_text(_TEXTS), texts)
    findings = [
        Finding("embeddings are finite unit vectors", finite, f"{both.shape[1]} wide"),
        Finding("different inputs give different rows", alike < 1 - 1e-4, f"largest cosine {alike:.4f}"),
        Finding("encoding twice gives equal bits", again, "yes" if again else "no"),
    ]
    if teacher.dtype != "float32" and finite:
        full = Teacher(teacher.towers, device=str(teacher.device), dtype="float32")
        cosine = float((torch.cat([full.encode_image(images), full.encode_text(_TEXTS)]) * both).sum(dim=1).min())
        name = f"{teacher.dtype} agrees with float32"
        findings.append(Finding(name, cosine >= _LOWEST_COSINE, f"lowest cosine {cosine:.5f}"))
    return findings


def _probes() -> torch.Tensor:
    """Two smooth pictures that no teacher should confuse: a disc, and stripes."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, _EDGE), torch.linspace(-1, 1, _EDGE), indexing="ij")
    disc = torch.sigmoid((0.6 - (x**2 + y**2).sqrt()) * 20)
    stripes = 0.5 + 0.5 * torch.sin(12 * x)
    return (torch.stack([disc, stripes]) * 255).to(torch.uint8)


def teacher_spec(spec: str | None, store_folder: Path | None) -> str:
    """The spec that a command speaks of: the one given, else the folder of the store's teacher.

    Raises:
        RefusedError: E_CONFIG, when there is neither.
    """
    if spec:
        return spec
    if store_folder is not None and (store_folder / CONFIG_FILE).is_file():
        return f"local-dir:{store_folder}"
    raise RefusedError("E_CONFIG", "no teacher is named", hint="give a SPEC such as embedded, or a --store with one")
